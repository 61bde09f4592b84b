"""Accuracy and what judges the same outputs: multi-label metrics, several processes, rows and conditions."""

import csv

import numpy as np
import pytest
import timm
import torch
from sklearn.metrics import average_precision_score, f1_score
from timm.data import ImageDataset
from timm.data.readers.reader import Reader

import validate
from regaug.evaluators import Needs
from regaug.validation import data as validation_data
from regaug.validation.bulk import best_first
from regaug.validation.loop import evaluate, gradient_mode
from regaug.validation.results import result_rows, write_results
from tests.helpers.validate import NUM_CLASSES, PIXELS, validate_args

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


class NamedTargets(Reader):
    """Image files whose targets are lists of class indices, or dense vectors."""

    def __init__(self, paths, targets):
        super().__init__()
        self.paths = paths
        self.targets = targets

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.paths[index].open('rb'), self.targets[index]

    def _filename(self, index, basename=False, absolute=False):
        return self.paths[index].name


@pytest.mark.parametrize('target_format', ['indices', 'multihot'])
def test_multilabel_metrics_equal_scikit_learn(folder, images, checkpoint, model, monkeypatch, target_format):
    dense = (np.random.default_rng(8).random((len(images[0]), NUM_CLASSES)) < 0.3).astype(int)
    targets = [row.tolist() if target_format == 'multihot' else np.flatnonzero(row).tolist() for row in dense]
    paths = sorted(folder.glob('val/*/*.JPEG'))

    def create(name, root, split, target_transform=None, **kwargs):
        assert kwargs['target_format'] == target_format
        return ImageDataset(root, reader=NamedTargets(paths, targets), target_transform=target_transform)

    monkeypatch.setattr(validation_data, 'create_dataset', create)
    args = validate_args(['--data-dir', folder, '--checkpoint', checkpoint, '-b', 16])
    vars(args).update(task='multilabel', target_format=target_format, multilabel_threshold=0.6)
    (row,) = validate.validate(args)
    with torch.no_grad():
        scores = model(images[0]).double()
    predicted = (scores.sigmoid() >= 0.6).int().numpy()
    expected = {'map': average_precision_score(dense, scores.numpy(), average='macro')}
    for average in ('micro', 'macro', 'samples'):
        name = 'sample_f1' if average == 'samples' else f'{average}_f1'
        expected[name] = f1_score(dense, predicted, average=average, zero_division=0)
    assert list(row)[:6] == ['model', 'map', 'micro_f1', 'macro_f1', 'sample_f1', 'threshold']
    for name, value in expected.items():
        assert row[name] == pytest.approx(100 * value, abs=1e-3), name
    assert row['threshold'] == 0.6


def test_multilabel_tar_is_read(run, images, folder, checkpoint, tmp_path):
    wds = pytest.importorskip('webdataset')
    with wds.TarWriter(str(tmp_path / 'shard.tar')) as tar:
        for index, path in enumerate(sorted(folder.glob('val/*/*.JPEG'))):
            labels = {'tags': [index % NUM_CLASSES, (index // 4) % NUM_CLASSES]}
            tar.write({'__key__': f'{index:03d}', 'jpg': path.read_bytes(), 'json': labels})
    data = ['--dataset', 'wds/set', '--data-dir', tmp_path, '--split', 'shard.tar|40', '--target-key', 'tags']
    args = validate_args([*data, '--checkpoint', checkpoint, '-b', 16])
    vars(args).update(task='multilabel', target_format='indices', multilabel_threshold=0.5)
    (row,) = validate.validate(args)
    assert 0 < row['map'] < 100


class Stub:
    """An evaluator that says under which mode it ran."""

    def __init__(self, pairs=(), **needs):
        self.needs = Needs(**needs)
        self.pairs = pairs

    def run(self, network, data):
        yield 'seen', (data.needs.pixels, torch.is_inference_mode_enabled(), torch.is_grad_enabled())
        yield from self.pairs


@pytest.fixture
def data(folder):
    args = validate_args(['--data-dir', folder, '-b', 16])
    config = {'input_size': (3, PIXELS, PIXELS), 'interpolation': 'bilinear', 'crop_pct': 0.95, 'crop_mode': 'center'}
    config |= {'mean': (0.5,) * 3, 'std': (0.5,) * 3}
    precision = validate.Precision(args, torch.device('cpu'))
    return validation_data.EvaluationData(
        args, config, num_classes=NUM_CLASSES, device=torch.device('cpu'), precision=precision
    )


def test_inference_mode_is_not_entered_where_an_evaluator_needs_gradients(data):
    for evaluators, inference in (([Stub(), Stub()], True), ([Stub(), Stub(gradients=True)], False)):
        with gradient_mode(evaluators):
            (row,) = evaluate(evaluators[:1], None, data)
        assert row['seen'] == (False, inference, False)


def test_images_come_as_the_evaluator_asks_for_them(data, images):
    normalised = torch.cat([input for input, _ in data.batches(data.loader(data.dataset))])
    view = data.as_needed(Needs(pixels=True), width=None, metrics={})
    pixels = torch.cat([input for input, _ in view.batches(view.loader(view.dataset))])
    assert torch.allclose(normalised, images[0], atol=1e-6)
    assert torch.allclose(pixels * 2 - 1, images[0], atol=1e-6)


def test_a_condition_opens_a_row_of_its_own(data, tmp_path):
    first = Stub([('top1', 50.0)])
    second = Stub([('condition', 'fog'), ('top1', 12.34567), ('condition', 'snow'), ('extra', 'text')])
    evaluated = evaluate([first, second], None, data)
    rows = result_rows(data.args, evaluated, data.data_config, 2_500_000, {'width': 0.5})
    assert [row['condition'] for row in rows] == ['clean', 'fog', 'snow']
    assert [row.get('top1') for row in rows] == [50.0, 12.3457, None]
    assert {row['width'] for row in rows} == {0.5}
    write_results(tmp_path / 'rows.csv', rows, 'csv')
    with (tmp_path / 'rows.csv').open(newline='') as file:
        written = list(csv.DictReader(file))
    assert [row['extra'] for row in written] == ['', '', 'text']
    assert [row['top1'] for row in written] == ['50.0', '12.3457', '']


def test_conditions_stay_with_their_network_when_networks_are_sorted():
    rows = [{'top1': top1, 'condition': name} for top1, name in ((20, 'clean'), (99, 'fog'), (30, 'clean'), (1, 'fog'))]
    assert [row['top1'] for row in best_first(rows)] == [30, 1, 20, 99]


def test_no_batch_waits_for_the_device(data, monkeypatch, checkpoint):
    waits = []
    monkeypatch.setattr(torch.Tensor, 'item', lambda self: waits.append('item') or self.tolist())
    model = timm.create_model('test_resnet', num_classes=NUM_CLASSES, checkpoint_path=str(checkpoint)).eval()
    data.args.batch_size = 2
    from regaug.evaluators.accuracy import Accuracy

    with torch.inference_mode():
        dict(Accuracy(log_freq=1000).run(model, data.as_needed(Needs(), width=None, metrics={})))
    assert len(waits) <= 4, 'one line of the log and the result, not 20 batches'


def test_table_of_all_rows_goes_to_weights_and_biases(run, checkpoint, monkeypatch, caplog):
    wandb = pytest.importorskip('wandb')
    logged = []

    class Run:
        def log(self, values):
            logged.append(values['evaluation'])

        def finish(self):
            logged.append('finished')

    monkeypatch.setattr(wandb, 'init', lambda **kwargs: logged.append(kwargs['project']) or Run())
    rows = run('--checkpoint', checkpoint, '--attack', 'fgsm', '--log-wandb', '--wandb-project', 'mine')
    project, table, end = logged
    assert (project, end) == ('mine', 'finished')
    assert table.columns == [*rows[0]]
    assert table.data == [[row[name] for name in table.columns] for row in rows]

    monkeypatch.setattr(wandb, 'init', lambda **kwargs: (_ for _ in ()).throw(OSError('no network')))
    assert run('--checkpoint', checkpoint, '--log-wandb')['top1'] == rows[0]['top1']
    assert 'no network' in caplog.text


def test_table_to_read_shows_what_differs_between_the_rows(run, checkpoint, caplog):
    caplog.set_level('INFO', logger='validate')
    rows = run('--checkpoint', checkpoint, '--attack', 'fgsm', '--attack-eps', 0.05)
    table = next(record.getMessage() for record in caplog.records if record.getMessage().startswith('Results:'))
    _, head, *lines = table.splitlines()
    assert [line.split()[0] for line in lines] == [str(row['top1']) for row in rows]
    assert head.split()[-1] == 'condition'
    assert lines[1].endswith('fgsm normalized 0.05')
    assert 'test_resnet' not in table, 'the same in all rows'
