"""Whose labels validate.py judges by: the folders', a map's, re-assessed ones, those of chosen outputs."""

import json

import numpy as np
import pytest
import torch

from tests.helpers.validate import NUM_CLASSES, make_model, top_k

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


def test_real_labels_replace_the_labels_of_the_folder(run, model, images, checkpoint, tmp_path):
    generator = np.random.default_rng(3)
    real = [generator.choice(NUM_CLASSES, size, replace=False).tolist() for size in generator.integers(0, 4, 40)]
    (tmp_path / 'real.json').write_text(json.dumps(real))
    with torch.no_grad():
        best = model(images[0]).argsort(dim=1, descending=True).tolist()
    judged = [(row, labels) for row, labels in zip(best, real, strict=True) if labels]
    assert 0 < len(judged) < len(real)
    row = run('--checkpoint', checkpoint, '--real-labels', tmp_path / 'real.json')
    for k in (1, 5):
        hits = [bool(set(row[:k]) & set(labels)) for row, labels in judged]
        assert row[f'top{k}'] == round(100 * sum(hits) / len(hits), 4)


def test_valid_labels_choose_the_outputs(run, images, tmp_path):
    wide = make_model(images, seed=5, num_classes=25)
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    chosen = [20, 3, 4, 7, 24, 9, 11, 0, 16, 2]
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, chosen)) + '\n')
    with torch.no_grad():
        output = wide(images[0])[:, chosen]
    row = run('--checkpoint', tmp_path / 'wide.pth', '--num-classes', 25, '--valid-labels', tmp_path / 'valid.txt')
    assert (row['top1'], row['top5']) == (top_k(output, images[1], 1), top_k(output, images[1], 5))


def test_real_labels_are_classes_where_valid_labels_choose_the_outputs(run, images, tmp_path):
    wide = make_model(images, seed=5, num_classes=25)
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    chosen = [20, 3, 4, 7, 24, 9, 11, 0, 16, 2]
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, chosen)) + '\n')
    real = [[chosen[label]] for label in images[1].tolist()]
    (tmp_path / 'real.json').write_text(json.dumps(real))
    options = ('--checkpoint', tmp_path / 'wide.pth', '--num-classes', 25, '--valid-labels', tmp_path / 'valid.txt')
    plain, row = run(*options), run(*options, '--real-labels', tmp_path / 'real.json')
    assert (row['top1'], row['top5']) == (plain['top1'], plain['top5'])
    assert 0 < row['top5'] < 100


@pytest.mark.parametrize('place', ['.', 'val'])
def test_a_class_map_beside_or_within_the_splits_gives_the_labels(run, model, images, checkpoint, folder, place):
    (folder / place / 'turned.txt').write_text('\n'.join(f'class{NUM_CLASSES - 1 - i}' for i in range(NUM_CLASSES)))
    with torch.no_grad():
        output = model(images[0])
    row = run('--checkpoint', checkpoint, '--class-map', 'turned.txt')
    (folder / place / 'turned.txt').unlink()
    assert (row['top1'], row['top5']) == tuple(top_k(output, NUM_CLASSES - 1 - images[1], k) for k in (1, 5))
    assert row['top5'] != top_k(output, images[1], 5)


def test_a_class_map_that_names_no_folder_is_named(refusal, checkpoint, tmp_path):
    (tmp_path / 'map.txt').write_text('cat\ndog\n')
    assert f'--class-map {tmp_path / "map.txt"}' in refusal(
        '--checkpoint', checkpoint, '--class-map', tmp_path / 'map.txt'
    )


def test_without_a_class_map_none_is_named(refusal, checkpoint, tmp_path):
    (tmp_path / 'notes.txt').write_text('no images')
    complaint = refusal('--checkpoint', checkpoint, data=['--dataset', 'torch/cifar10', '--data-dir', tmp_path])
    assert 'torch/cifar10' in complaint and '--class-map' not in complaint
