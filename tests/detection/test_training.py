"""`python -m regaug.detection` from the options to the files: training, resuming, schedule, evaluation, pictures."""

import importlib.util
import logging
import signal
import sys

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor

from regaug.detection import __main__ as script
from regaug.detection import evaluate
from regaug.detection.__main__ import DetectionRun
from regaug.detection.data import Detections, Split, TrainBatches
from regaug.detection.evaluate import average_precision, save_picture
from regaug.errors import OptionError
from regaug.training import loop
from regaug.training.interrupt import StopRequest
from tests.helpers.detection import annotation, detection_args, detection_argv, run_detection
from tests.helpers.training import assert_same_training, read_checkpoint, read_summary

LOSSES = ['loss_classifier', 'loss_box_reg', 'loss_mask', 'loss_objectness', 'loss_rpn_box_reg']


@pytest.fixture(autouse=True)
def handlers():
    """A run's handlers of signals do not outlive the test."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.fixture
def without_pycocotools(monkeypatch):
    for module in (script, evaluate):
        monkeypatch.setattr(module, 'can_measure', lambda: False)


@pytest.fixture(scope='module')
def whole(coco, tmp_path_factory):
    """The folder of a run of two epochs with one sub-network, where nothing measures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script, 'can_measure', lambda: False)
        patch.setattr(evaluate, 'can_measure', lambda: False)
        return run_detection(coco, tmp_path_factory.mktemp('whole'), '--gradaug', 1)


# --- runs --------------------------------------------------------------------------------------------------------


def test_a_run_notes_every_loss_and_saves_checkpoints_that_fit_torchvision(whole, coco):
    rows = read_summary(whole)
    assert [row['epoch'] for row in rows] == ['0', '1']
    names = [f'train_{name}' for name in ['loss', *LOSSES, 'sub1_loss', 'sub1_width', 'sub1_size']]
    assert set(names) <= set(rows[0])
    assert float(rows[1]['train_loss']) == pytest.approx(
        sum(float(rows[1][f'train_{name}']) for name in LOSSES), rel=1e-3
    )
    assert 0.9 <= float(rows[1]['train_sub1_width']) <= 1
    checkpoint = read_checkpoint(whole / 'last.pth.tar')
    run = DetectionRun(detection_args(coco, '--dry-run')).build()
    run.model.load_state_dict(checkpoint['state_dict'])
    assert {path.name for path in whole.iterdir()} >= {'last.pth.tar', 'model_best.pth.tar', 'args.yaml', 'summary.csv'}


def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(whole, coco, tmp_path, without_pycocotools, monkeypatch):
    build_schedule, set_epoch, epochs = DetectionRun.build_schedule, TrainBatches.set_epoch, []
    monkeypatch.setattr(TrainBatches, 'set_epoch', lambda self, epoch: epochs.append(epoch) or set_epoch(self, epoch))

    def stop_after_one(run):
        build_schedule(run)
        run.num_epochs = 1

    with monkeypatch.context() as patch:
        patch.setattr(DetectionRun, 'build_schedule', stop_after_one)
        run_detection(coco, tmp_path, '--gradaug', 1)
    torch.rand(7)  # what the process drew before is no part of it
    folder = run_detection(coco, tmp_path, '--gradaug', 1, '--resume', 'auto')
    assert_same_training(folder, whole)
    assert epochs == [0, 1]  # by which images are ordered and flipped


def test_a_signal_ends_the_run_with_a_recovery_checkpoint(coco, tmp_path, without_pycocotools, monkeypatch, caplog):
    agree = StopRequest.agree

    def stop(request, bad=False):
        request.signum = signal.SIGTERM
        return agree(request, bad)

    run_epoch = loop.run_epoch

    def signalled(run, epoch):
        monkeypatch.setattr(StopRequest, 'agree', stop)
        return run_epoch(run, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(loop, 'run_epoch', signalled)
        folder = run_detection(coco, tmp_path, '--detector', 'faster', status=128 + signal.SIGTERM)
    [path] = folder.glob('recovery-0-1.pth.tar')
    assert f'--experiment run --resume {path}' in caplog.text
    assert not (folder / '.lock').exists()
    monkeypatch.setattr(StopRequest, 'agree', agree)
    run_detection(coco, tmp_path, '--detector', 'faster', '--resume', 'auto')
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1']


def test_a_diverging_run_ends_with_one_line(coco, tmp_path, without_pycocotools):
    options = ['--detector', 'faster', '--lr', 1e30, '--warmup-updates', 0, '--max-bad-updates', 1]
    with pytest.raises(OptionError, match=r'^Epoch 0: loss .* was not finite .* There is no good checkpoint'):
        run_detection(coco, tmp_path, *options)


def test_a_dry_run_tries_everything_and_writes_nothing_but_pictures(coco, tmp_path, without_pycocotools, caplog):
    options = ['--dry-run', '--save-images', '--gradaug', 1, '--size', 48, '--workers', 1]
    with caplog.at_level(logging.INFO):
        run_detection(coco, tmp_path, *options)
    assert [path.name for path in tmp_path.rglob('*') if path.is_file()] == ['epoch-0.png']
    text = caplog.text
    assert 'No average precision is measured: pip install -r regaug/detection/requirements.txt' in text
    assert 'Dry run: up to 2 images evaluated in ' in text
    assert 'Dry run: input (3, 48, 80), batch 2 x 1 ranks x 1 accumulated, 2 updates per epoch' in text
    assert 'epochs 0 to 1, sgd lr 0.01, multistep schedule' in text
    assert all(f'{name.capitalize().replace("_", " ")}: ' in text for name in [*LOSSES, 'sub_loss', 'sub_width'])
    assert 'layers are slimmed; width 0.9 (divisor 8) keeps' in text


def test_learning_rate_warms_up_and_falls_after_the_milestones(coco):
    options = ['--epochs', 12, '--batch-size', 1, '--warmup-updates', 3, '--lr', 0.1, '--dry-run']
    run = DetectionRun(detection_args(coco, *options)).build()
    rates = []
    for num_updates in range(60):
        rates.append(run.optimizer.param_groups[0]['lr'])
        run.scheduler.step_update(num_updates + 1)
    start = 1e-4
    assert rates[:3] == pytest.approx([start, start + (0.1 - start) / 3, start + (0.1 - start) * 2 / 3])
    assert rates[3:] == pytest.approx([0.1] * 37 + [0.01] * 15 + [0.001] * 5)  # 5 updates an epoch: at 40 and 55


def test_learning_rate_follows_the_batch_and_decay_reaches_all_parameters(coco):
    options = ['--epochs', 6, '--batch-size', 2, '--grad-accum-steps', 2, '--lr', 0, '--dry-run', '--momentum', 0.8]
    run = DetectionRun(detection_args(coco, *options, '--clip-grad', 3.0)).build()
    assert run.args.lr == pytest.approx(0.02 * 4 / 16)
    assert run.args.decay_milestones == [4, 5.5]
    [group] = run.optimizer.param_groups
    assert (group['momentum'], group['weight_decay'], group['nesterov']) == (0.8, 1e-4, False)
    assert len(group['params']) == len(list(run.model.parameters()))
    assert run.updater.clip_grad == 3.0


def test_metrics_go_to_wandb(coco, tmp_path, without_pycocotools, monkeypatch):
    logged = []

    class Log:
        def __init__(self, args, **kwargs):
            pass

        def on_update(self, record, phase):
            logged.append({'.'.join(name) for name in record.terms})

        def on_epoch(self, row):
            logged.append(row)

        def finish(self):
            logged.append('end')

    monkeypatch.setattr('regaug.training.run.WandbLog', Log)
    run_detection(coco, tmp_path, '--epochs', 1, '--log-wandb', '--detector', 'faster')
    assert {'full.loss_classifier', 'full.loss_objectness'} <= logged[0]
    assert logged[-2]['train_loss_box_reg'] > 0 and logged[-1] == 'end'


def test_splits_of_other_categories_are_refused(coco, tmp_path):
    for split, names in (('train2017', [(7, 'red'), (3, 'blue')]), ('val2017', [(7, 'red'), (4, 'blue')])):
        (tmp_path / split).mkdir()
        (tmp_path / split / 'one.png').write_bytes((coco / 'train2017' / '100.png').read_bytes())
        image = {'id': 1, 'file_name': 'one.png', 'width': 80, 'height': 64}
        categories = f'[{{"id": {names[0][0]}, "name": "red"}}, {{"id": {names[1][0]}, "name": "blue"}}]'
        content = f'{{"images": [{image}], "annotations": [{annotation(1, 1, 7, (1, 1, 9, 9))}], "categories": '
        (tmp_path / f'instances_{split}.json').write_text(content.replace("'", '"') + categories + '}')
    with pytest.raises(OptionError, match='--val-split val2017: its categories are not those of train2017'):
        run_detection(tmp_path, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()


def test_the_module_is_a_program_that_reports_a_mistake_in_one_line(tmp_path, monkeypatch, capsys):
    import regaug.cli

    monkeypatch.setattr(sys, 'argv', ['python -m regaug.detection', *detection_argv(tmp_path)])
    with pytest.raises(SystemExit) as status:
        regaug.cli.run(script.main)
    assert status.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f'python -m regaug.detection: error: --data-dir {tmp_path} --train-split train2017: there')


# --- evaluation --------------------------------------------------------------------------------------------------


def dataset(coco):
    return Detections(Split(coco, 'val2017', option='--val-split', masks=True), masks=True)


def as_predictions(data, shift=0, score=0.9):
    """What a detector would say that sees the truth, moved to the right by some pixels."""
    found = []
    for index in range(len(data)):
        _, target = data[index]
        masks = torch.roll(target['masks'], shift, dims=2)[:, None].float()
        boxes = target['boxes'] + torch.tensor([shift, 0, shift, 0])
        scores = torch.full((len(boxes),), score)
        found.append({'boxes': boxes, 'labels': target['labels'], 'scores': scores, 'masks': masks})
    return found


def measure(data, predictions):
    entries = zip(data.images, predictions, strict=True)
    results = [part for entry, found in entries for part in evaluate.as_results(found, entry['id'], data.split)]
    return average_precision(results, data.split, [entry['id'] for entry in data.images], masks=True)


def test_the_truth_has_full_average_precision_and_a_moved_one_has_less(coco):
    pytest.importorskip('pycocotools')
    data = dataset(coco)
    exact, moved = measure(data, as_predictions(data)), measure(data, as_predictions(data, shift=3))
    assert list(exact) == ['box_ap', 'box_ap50', 'box_ap75', 'mask_ap', 'mask_ap50', 'mask_ap75']
    assert list(exact.values()) == pytest.approx([100] * 6)
    assert 20 < moved['box_ap'] < 80 and 20 < moved['mask_ap'] < 80 and moved['box_ap50'] > moved['box_ap75']
    wrong = [{**found, 'labels': 3 - found['labels']} for found in as_predictions(data)]
    assert measure(data, wrong)['box_ap'] == 0
    nothing = [{name: value[:0] for name, value in found.items()} for found in as_predictions(data)]
    assert set(measure(data, nothing).values()) == {0}


def test_a_run_measures_ranks_by_box_ap_and_a_finished_one_only_measures(coco, tmp_path, monkeypatch):
    pytest.importorskip('pycocotools')

    def see_the_truth(detector, images):
        data = dataset(coco)
        found = as_predictions(data)
        whole = [(data[index][0].float() / 255, found[index]) for index in range(len(data))]
        return [next(found for known, found in whole if torch.equal(known, image)) for image in images]

    forward = torch.nn.Module.__call__

    def call(module, *args, **kwargs):
        if type(module).__name__ == 'MaskRCNN' and not module.training:
            return see_the_truth(module, *args)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(torch.nn.Module, '__call__', call)
    folder = run_detection(coco, tmp_path, '--epochs', 1, '--validation-batch-size', 2)
    assert float(read_summary(folder)[0]['eval_box_ap']) == pytest.approx(100)
    assert float(read_summary(folder)[0]['eval_mask_ap75']) == pytest.approx(100)
    assert read_checkpoint(folder / 'last.pth.tar')['metric'] == pytest.approx(100)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    seen = []
    monkeypatch.setattr(script, 'average_precision', lambda *args, **kwargs: seen.append(args) or {'box_ap': 1.0})
    run_detection(coco, tmp_path, '--epochs', 1, '--resume', 'auto')
    assert len(seen) == 1 and len(seen[0][0]) == 6  # two rectangles on each of three images
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_evaluation_needs_no_more_than_the_package_that_requirements_name():
    assert evaluate.can_measure() == (importlib.util.find_spec('pycocotools') is not None)


def test_pictures_show_ground_truth_beside_sure_predictions(coco, tmp_path):
    data = dataset(coco)
    kept = []
    for index, found in enumerate(as_predictions(data, shift=3)[:2]):
        image, target = data[index]
        kept.append((image.float() / 255, target, {**found, 'scores': torch.tensor([0.9, 0.2])}))
    save_picture(tmp_path / 'pictures' / 'epoch-0.png', kept, ['blue', 'red'])
    [path] = (tmp_path / 'pictures').iterdir()
    with Image.open(path) as picture:
        assert picture.size == (160, 128)
        pixels = pil_to_tensor(picture).long().permute(1, 2, 0)
    for row, (image, target, found) in enumerate(kept):
        plain = (255 * image).round().long().permute(1, 2, 0)
        shown = pixels[64 * row : 64 * row + 64]
        for half, masks in ((shown[:, :80], target['masks']), (shown[:, 80:], found['masks'][:1, 0])):
            changed = (half != plain).any(-1)
            inside = masks.bool().any(0)
            assert changed[inside].float().mean() > 0.9  # shaded
        unsure = found['masks'][1, 0].bool()
        assert not (shown[:, 80:] != plain).any(-1)[unsure].float().mean() > 0.3
