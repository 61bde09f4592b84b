"""validate.py --width: sub-networks with batch-norm statistics of their own."""

import argparse
import tarfile

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from regaug.slimmable import SlimmablePlan, extract
from regaug.validation import widths
from tests.helpers.validate import COLUMNS, NUM_CLASSES, PER_CLASS, PIXELS, make_model, normalise, prepare_images, top_k

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none

WIDTH_COLUMNS = [*COLUMNS, 'width', 'calibrate_images']
ALL = ['-b', NUM_CLASSES * PER_CLASS]  # all images in one batch


def subnetwork(model, width, train_input, width_divisor=8, size=PIXELS):
    """The sub-network with the statistics of one batch, by nothing but batch-norm in train mode."""
    small = extract(model, SlimmablePlan(model, (3, size, size)), width, width_divisor)
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        small.train()(train_input)
    return small.eval()


def test_row_of_a_width_equals_a_network_calibrated_by_hand(run, model, folder, images, checkpoint):
    train_input, _ = prepare_images(folder, 'train')
    rows = run('--checkpoint', checkpoint, *ALL, '--width', 0.75, 0.5)
    assert [list(row) for row in rows] == [WIDTH_COLUMNS] * 2
    for row, width in zip(rows, (0.75, 0.5), strict=True):
        small = subnetwork(model, width, train_input)
        with torch.no_grad():
            output = small(images[0])
        assert (row['width'], row['calibrate_images']) == (width, 40)
        assert (row['top1'], row['top5']) == (top_k(output, images[1], 1), top_k(output, images[1], 5))
        assert row['param_count'] == round(sum(p.numel() for p in small.parameters()) / 1e6, 2)


def test_width_one_is_the_plain_row(run, checkpoint):
    plain = run('--checkpoint', checkpoint)
    assert run('--checkpoint', checkpoint, '--width', 1.0) == [plain | {'width': 1.0, 'calibrate_images': 0}]


@pytest.mark.parametrize('options', [[], ['--model-dtype', 'bfloat16'], ['--channels-last'], ['--no-prefetcher']])
@pytest.mark.few(1)
def test_rows_do_not_depend_on_one_another(run, checkpoint, options):
    rows = run('--checkpoint', checkpoint, *options, '--width', 1.0, 0.75, 0.5)
    assert rows[::-1] == run('--checkpoint', checkpoint, *options, '--width', 0.5, 0.75, 1.0)
    assert len({row['top1'] for row in rows}) > 1


def test_autocast_holds_for_the_calibration_too(run, model, folder, images, checkpoint):
    with torch.autocast('cpu', torch.bfloat16):
        small = subnetwork(model, 0.5, prepare_images(folder, 'train')[0])
        with torch.no_grad():
            output = small(images[0])
    (row,) = run('--checkpoint', checkpoint, *ALL, '--amp', '--amp-dtype', 'bfloat16', '--width', 0.5)
    assert (row['top1'], row['top5']) == (top_k(output, images[1], 1), top_k(output, images[1], 5))


def test_calibration_takes_full_batches_from_all_of_the_training_images(run, folder, checkpoint, monkeypatch):
    seen = []

    def calibrate(network, batches):
        seen.extend(batches)
        return sum(map(len, seen))

    monkeypatch.setattr(widths, 'calibrate', calibrate)
    (row,) = run('--checkpoint', checkpoint, '-b', 6, '--calibrate-images', 20, '--width', 0.5)
    assert [len(batch) for batch in seen] == [6, 6, 6]
    assert row['calibrate_images'] == 18
    train_input, labels = prepare_images(folder, 'train')
    distances = torch.cdist(torch.cat(seen).flatten(1), train_input.flatten(1))
    assert distances.amin(1).max() < 0.1, 'prepared as for evaluation; other images are 10 and more away'
    chosen = distances.argmin(1)
    assert len(chosen.unique()) == 18
    assert len(labels[chosen].unique()) > 5, 'not the first classes only'


def test_a_model_without_batch_norm_needs_no_training_images(run, images, folder, tmp_path):
    vit = make_model(images, seed=1, name='test_vit', img_size=PIXELS)
    torch.save(vit.state_dict(), tmp_path / 'vit.pth')
    argv = ['--model', 'test_vit', '--checkpoint', tmp_path / 'vit.pth', '--width', 0.5]
    (row,) = run(*argv, data=['--data-dir', folder / 'val'])
    assert row['calibrate_images'] == 0
    assert row['param_count'] < round(sum(p.numel() for p in vit.parameters()) / 1e6, 2)


def test_training_images_missing_for_the_calibration_are_named(refusal, folder, checkpoint, monkeypatch):
    monkeypatch.setattr('validate.evaluate', lambda *_: pytest.fail('an evaluation was spent'))
    complaint = refusal('--checkpoint', checkpoint, '--width', 1.0, 0.5, data=['--data-dir', folder / 'val'])
    assert '--calibrate-split train' in complaint
    assert '--width' in complaint


def test_an_archive_of_evaluation_images_calibrates_nothing(refusal, folder, checkpoint, tmp_path):
    with tarfile.open(tmp_path / 'val.tar', 'w') as archive:
        archive.add(folder / 'val', '.')
    data = ['--data-dir', tmp_path / 'val.tar']
    assert '--calibrate-split train' in refusal('--checkpoint', checkpoint, '--width', 0.5, data=data)


def test_merged_branches_have_no_widths(refusal, checkpoint):
    assert '--reparam' in refusal('--checkpoint', checkpoint, '--reparam', '--width', 0.5)


def test_channels_are_rounded_as_the_checkpoint_was_trained(run, model, folder, images, tmp_path):
    args = argparse.Namespace(gradaug_width_divisor=1)
    torch.save({'state_dict': model.state_dict(), 'args': args}, tmp_path / 'trained.pth.tar')
    small = subnetwork(model, 0.72, prepare_images(folder, 'train')[0], width_divisor=1)
    with torch.no_grad():
        output = small(images[0])
    (row,) = run('--checkpoint', tmp_path / 'trained.pth.tar', *ALL, '--width', 0.72)
    assert row['param_count'] == round(sum(p.numel() for p in small.parameters()) / 1e6, 2)
    assert (row['top1'], row['top5']) == (top_k(output, images[1], 1), top_k(output, images[1], 5))


def test_every_checkpoint_of_a_folder_has_a_row_a_width(run, images, tmp_path):
    for seed in range(2):
        torch.save(make_model(images, seed).state_dict(), tmp_path / f'seed{seed}.pth')
    rows = run('--checkpoint', tmp_path, '--width', 1.0, 0.5, '--results-file', tmp_path / 'rows.csv')
    assert [list(row) for row in rows] == [[*WIDTH_COLUMNS, 'checkpoint']] * 4
    assert len({(row['checkpoint'], row['width']) for row in rows}) == 4
    assert [row['top1'] for row in rows] == sorted((row['top1'] for row in rows), reverse=True)


def test_digits_have_training_images_of_their_own(run, checkpoint):
    (row,) = run('--checkpoint', checkpoint, '--width', 0.5, '-b', 64, data=['--dataset', 'regaug/digits'])
    assert row['calibrate_images'] == 1437 // 64 * 64


def test_test_time_pooling_works_at_a_width(run, model, folder, checkpoint):
    size, pool = 192, 5

    def whole(split):
        paths = sorted(folder.glob(f'{split}/*/*.JPEG'))
        return normalise([np.asarray(Image.open(path).resize((size, size), Image.BILINEAR)) for path in paths])

    small = subnetwork(model, 0.5, whole('train'), size=size)
    with torch.no_grad():
        local = nn.functional.avg_pool2d(small.forward_features(whole('val')), pool, stride=1).permute(0, 2, 3, 1)
        scores = small.fc(local).flatten(1, 2)
        output = 0.5 * (scores.mean(1) + scores.amax(1))
    labels = torch.arange(NUM_CLASSES).repeat_interleave(PER_CLASS)
    (row,) = run('--checkpoint', checkpoint, *ALL, '--test-pool', '--img-size', size, '--width', 0.5)
    assert (row['top1'], row['top5']) == (top_k(output, labels, 1), top_k(output, labels, 5))
    assert timm.is_model(row['model'])
