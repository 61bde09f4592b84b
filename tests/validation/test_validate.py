"""validate.py: rows, files and bulk validation, against evaluations written without timm's loaders."""

import argparse
import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

import validate
from regaug.validation import bulk
from regaug.validation import data as validation
from regaug.validation import model as inference
from tests.helpers.validate import COLUMNS, NUM_CLASSES, PER_CLASS, PIXELS, make_model, normalise, top_k

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


def test_accuracy_equals_a_plain_loop(run, model, images, checkpoint):
    with torch.no_grad():
        output = model(images[0])
    assert len(set(output.argmax(1).tolist())) > 3, 'a model with one answer would test nothing'
    row = run('--checkpoint', checkpoint)
    assert list(row) == COLUMNS
    assert row['top1'] == top_k(output, images[1], 1)
    assert row['top5'] == top_k(output, images[1], 5)
    assert row['top1_err'] == round(100 - row['top1'], 4)
    assert row['top5_err'] == round(100 - row['top5'], 4)
    assert row['param_count'] == round(sum(p.numel() for p in model.parameters()) / 1e6, 2)
    assert [row[key] for key in COLUMNS[6:]] == [PIXELS, 0.95, 'bilinear']


@pytest.mark.parametrize(
    'options',
    [
        '--no-prefetcher',
        '-b 7',
        '-j 1',
        '--channels-last',
        '--num-gpu 2',
        '--torchcompile eager',
        '--fast-norm',
        '--fuser te',
        '--dataset torch/image_folder',
        '--input-size 3 32 32',
        '--model-dtype float32',
    ],
)
@pytest.mark.few(4)
def test_how_it_is_computed_does_not_change_the_row(run, checkpoint, options):
    assert run('--checkpoint', checkpoint, *options.split()) == run('--checkpoint', checkpoint)


def test_positional_data_folder_and_split_folder(run, checkpoint, folder):
    plain = run('--checkpoint', checkpoint)
    assert run('--checkpoint', checkpoint, data=[folder]) == plain
    assert run('--checkpoint', checkpoint, data=[folder / 'val']) == plain
    assert run('--checkpoint', checkpoint, '--split', 'train') != plain


@pytest.mark.few(1)
@pytest.mark.filterwarnings('ignore:.*torch.jit|The TorchScript')  # torch calls its own torch.jit deprecated
@pytest.mark.parametrize('option', ['--torchscript', '--aot-autograd'])
def test_compilers_of_old_do_not_change_the_row(run, checkpoint, option):
    # Two equal batches: the code that AOT autograd generates is for one batch size.
    assert run('--checkpoint', checkpoint, option, '-b', 20) == run('--checkpoint', checkpoint)


@pytest.mark.parametrize('options', [['--amp', '--amp-dtype', 'bfloat16'], ['--model-dtype', 'bfloat16']])
def test_bfloat16_follows_the_model_run_in_bfloat16(run, model, images, checkpoint, options):
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled='--amp' in options):
        if '--amp' in options:
            output = model(images[0])
        else:
            loaded = timm.create_model('test_resnet', num_classes=NUM_CLASSES).to(torch.bfloat16).eval()
            loaded.load_state_dict(model.state_dict())
            mean = torch.full((1, 3, 1, 1), 127.5, dtype=torch.bfloat16)
            pixels = ((images[0] * 0.5 + 0.5) * 255).round().to(torch.bfloat16)
            output = loaded((pixels - mean) / mean)
    row = run('--checkpoint', checkpoint, '-b', NUM_CLASSES * PER_CLASS, *options)
    assert (row['top1'], row['top5']) == (top_k(output, images[1], 1), top_k(output, images[1], 5))


def test_digits_need_no_download(run, checkpoint):
    row = run('--checkpoint', checkpoint, data=['--dataset', 'regaug/digits'])
    assert row['top1'] * 3.6 == pytest.approx(round(row['top1'] * 3.6), abs=1e-3), '360 images'


def test_results_file_in_both_formats_holds_what_is_printed(run, checkpoint, tmp_path):
    row = run('--checkpoint', checkpoint, '--results-file', tmp_path / 'row.csv')
    with (tmp_path / 'row.csv').open(newline='') as file:
        header, values = csv.reader(file)
    assert (header, values) == (COLUMNS, [str(value) for value in row.values()])
    run('--checkpoint', checkpoint, '--results-file', tmp_path / 'row.json', '--results-format', 'json')
    assert json.loads((tmp_path / 'row.json').read_text()) == row
    assert sorted(path.name for path in tmp_path.iterdir()) == ['row.csv', 'row.json']


def test_a_folder_of_checkpoints_gives_sorted_rows(run, images, tmp_path, caplog):
    for seed in range(3):
        torch.save(make_model(images, seed).state_dict(), tmp_path / f'seed{seed}.pth')
    (tmp_path / 'broken.pth.tar').write_bytes(b'no checkpoint')
    (tmp_path / 'notes.txt').write_text('not read')
    rows = run('--checkpoint', tmp_path, '--results-file', tmp_path / 'all.csv')
    assert [row['top1'] for row in rows] == sorted((row['top1'] for row in rows), reverse=True)
    assert len({row['top1'] for row in rows}) > 1, 'equal rows would not show the order'
    singles = {str(path): run('--checkpoint', path) for path in tmp_path.glob('seed*.pth')}
    assert {row.pop('checkpoint'): row for row in rows} == singles
    assert [r.getMessage() for r in caplog.records if 'broken.pth.tar failed' in r.getMessage()]
    with (tmp_path / 'all.csv').open(newline='') as file:
        assert [list(row) for row in csv.DictReader(file)] == [[*COLUMNS, 'checkpoint']] * 3


@pytest.fixture
def no_download(monkeypatch):
    """Stands in for published weights: random ones."""
    create = timm.create_model
    monkeypatch.setattr(inference, 'create_model', lambda **kwargs: create(**kwargs | {'pretrained': False}))


def test_a_wildcard_and_a_file_of_names_give_one_row_a_model(run, no_download, tmp_path):
    (tmp_path / 'names.txt').write_text('test_resnet\n\ntest_efficientnet.r160_in1k\n')
    rows = run('--model', tmp_path / 'names.txt')
    assert sorted(row['model'] for row in rows) == ['test_efficientnet.r160_in1k', 'test_resnet']
    rows = run('--model', 'test_re*')
    assert [row['model'] for row in rows] == ['test_resnet.r160_in1k']


def test_all_leaves_out_models_with_other_classes():
    names = [name for name, _ in bulk.find_jobs(argparse.Namespace(model='all', checkpoint=''))]
    assert 'resnet50.a1_in1k' in names
    assert not [name for name in names if name.endswith(('_in21k', '_in22k', '_in12k', '.fcmae', '_dino'))]


def test_ctrl_c_keeps_the_rows_so_far():
    def evaluate(args):
        if args.model == 'c':
            raise KeyboardInterrupt
        return [{'model': args.model, 'top1': {'a': 1, 'b': 2}[args.model]}]

    rows = bulk.validate_all(evaluate, argparse.Namespace(), [(name, '') for name in 'abcd'])
    assert [row['model'] for row in rows] == ['b', 'a']


def test_retry_halves_the_batch_until_it_fits(run, checkpoint, monkeypatch, refusal):
    to_device, sizes = validation.EvaluationData.to_device, []

    def to_device_if_it_fits(self, input):
        sizes.append(len(input))
        if len(input) > limit:
            raise torch.OutOfMemoryError('CUDA out of memory.')
        return to_device(self, input)

    expected = run('--checkpoint', checkpoint, '-b', 4)
    monkeypatch.setattr(validation.EvaluationData, 'to_device', to_device_if_it_fits)
    limit = 5
    assert run('--checkpoint', checkpoint, '--retry') == expected
    assert sizes[:3] == [16, 8, 4]
    limit = 0
    assert '--batch-size' in refusal('--checkpoint', checkpoint, '--retry')


def test_retry_does_not_repeat_other_errors():
    calls = []

    def fail(args):
        calls.append(args.batch_size)
        raise RuntimeError('shapes cannot be multiplied')

    with pytest.raises(RuntimeError, match='multiplied'):
        bulk.with_retry(fail, argparse.Namespace(batch_size=64))
    assert calls == [64]


@pytest.mark.parametrize('average', ['micro', 'macro', 'weighted'])
def test_metrics_average_equals_counting(run, model, images, checkpoint, average):
    pytest.importorskip('sklearn')
    with torch.no_grad():
        predicted = model(images[0]).argmax(1).numpy()
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES))
    np.add.at(counts, (images[1].numpy(), predicted), 1)
    hits, found, true = counts.diagonal(), counts.sum(0), counts.sum(1)
    if average == 'micro':
        hits, found, true = (np.atleast_1d(value.sum()) for value in (hits, found, true))
    weights = true if average == 'weighted' else np.ones_like(true)
    per_class = hits / np.maximum(found, 1), hits / true, 2 * hits / (found + true)
    expected = [100 * np.average(values, weights=weights) for values in per_class]
    row = run('--checkpoint', checkpoint, '--metrics-avg', average)
    names = [f'{average}_{name}' for name in ('precision', 'recall', 'f1_score')]
    assert list(row) == [*COLUMNS[:5], *names, *COLUMNS[5:]]
    assert [row[name] for name in names] == pytest.approx(expected, abs=1e-4)


def test_checkpoints_of_timms_saver_with_and_without_ema(run, images, tmp_path):
    trained, averaged = make_model(images, seed=2), make_model(images, seed=3)
    saver = CheckpointSaver(
        trained,
        torch.optim.SGD(trained.parameters(), lr=0.1),
        args=argparse.Namespace(model='test_resnet'),
        model_ema=ModelEmaV3(averaged),
        checkpoint_dir=str(tmp_path),
    )
    saver.save_checkpoint(epoch=0, metric=1.0)
    with torch.no_grad():
        expected = [top_k(each(images[0]), images[1], 1) for each in (trained, averaged)]
    assert expected[0] != expected[1]
    last = tmp_path / 'last.pth.tar'
    assert [run('--checkpoint', last)['top1'], run('--checkpoint', last, '--use-ema')['top1']] == expected


def test_test_time_pooling_averages_the_predictions_of_a_larger_input(run, model, folder, checkpoint):
    size, pool = 192, 5
    paths = sorted(folder.glob('val/*/*.JPEG'))
    whole = normalise([np.asarray(Image.open(path).resize((size, size), Image.BILINEAR)) for path in paths])
    with torch.no_grad():
        features = model.forward_features(whole)
        local = nn.functional.avg_pool2d(features, pool, stride=1).permute(0, 2, 3, 1)
        scores = model.fc(local).flatten(1, 2)
        output = 0.5 * (scores.mean(1) + scores.amax(1))
    labels = torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)
    row = run('--checkpoint', checkpoint, '--test-pool', '--img-size', size)
    assert (row['crop_pct'], row['img_size']) == (1.0, size)
    assert (row['top1'], row['top5']) == (top_k(output, labels, 1), top_k(output, labels, 5))


def test_reparam_merges_branches_and_keeps_the_accuracy(run, images, tmp_path):
    branched = make_model(images, seed=4, name='repghostnet_050')
    torch.save(branched.state_dict(), tmp_path / 'branched.pth')
    options = ['--model', 'repghostnet_050', '--checkpoint', tmp_path / 'branched.pth']
    plain, merged = run(*options), run(*options, '--reparam')
    assert merged['param_count'] < plain['param_count']
    assert (merged['top1'], merged['top5']) == (plain['top1'], plain['top5'])


@pytest.mark.parametrize('options', [[], ['--no-prefetcher']])
def test_naflex_loader_feeds_patches(run, folder, tmp_path, options):
    paths = sorted(folder.glob('val/*/*.JPEG'))
    whole = normalise([np.asarray(Image.open(path).resize((64, 64), Image.BICUBIC)) for path in paths])
    labels = torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)
    naflex = make_model((whole,), seed=6, name='test_vit', use_naflex=True)
    nn.init.normal_(naflex.head.weight)
    torch.save(naflex.state_dict(), tmp_path / 'naflex.pth')
    with torch.no_grad():
        output = naflex(whole)
    argv = ['--model', 'test_vit', '--model-kwargs', 'use_naflex=True', '--checkpoint', tmp_path / 'naflex.pth']
    row = run(*argv, '--naflex-loader', '--naflex-max-seq-len', 16, '--img-size', 160, *options)
    assert len(set(output.argmax(1).tolist())) > 1, 'a model with one answer would test nothing'
    assert (row['top1'], row['top5']) == (top_k(output, labels, 1), top_k(output, labels, 5))


def test_warm_up_draws_one_batch_from_the_global_generator(run, checkpoint, monkeypatch):
    drawn = []
    monkeypatch.setattr(validate, 'evaluate', lambda *_: drawn.append(torch.rand(3)) or [{'top1': 0.0, 'top5': 0.0}])
    run('--checkpoint', checkpoint, '--seed', 11)
    torch.manual_seed(11)
    timm.create_model('test_resnet', num_classes=NUM_CLASSES)
    torch.randn(16, 3, PIXELS, PIXELS)
    assert torch.equal(drawn[0], torch.rand(3))
