"""Singular values of features against numpy's svd."""

import csv

import numpy as np
import pytest
import torch

from regaug.evaluators.spectrum import Moments
from tests.helpers.validate import NUM_CLASSES, PER_CLASS

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


def svd(features):
    """Singular values of the scatter matrix, by numpy, from the features themselves."""
    centred = np.asarray(features, dtype=np.float64)
    centred = centred - centred.mean(axis=0)
    values = np.zeros(features.shape[1])
    found = np.linalg.svd(centred, compute_uv=False) ** 2
    values[: len(found)] = found[: len(values)]
    return values


@pytest.mark.parametrize('count', [5, 200])
def test_one_pass_equals_numpys_svd(count):
    features = 3 + torch.randn(count, 12) @ torch.randn(12, 12)
    weight = torch.rand(count) < 0.7
    every, some = Moments(12, torch.device('cpu')), Moments(12, torch.device('cpu'))
    for rows, weights in zip(features.split(7), weight.split(7), strict=True):
        every.update(rows, torch.ones(len(rows)))
        some.update(rows, weights)
    for moments, chosen in ((every, features), (some, features[weight])):
        number, values = moments.singular_values(distributed=False)
        assert number == len(chosen)
        assert np.allclose(values, svd(chosen), rtol=1e-6, atol=1e-9 * values[0])


def test_files_hold_class_0_and_all_classes_of_every_width(run, model, images, checkpoint, tmp_path):
    rows = run('--checkpoint', checkpoint, '--spectrum', tmp_path / 'out', '--width', 1.0, 0.5)
    assert [row['class_0_images'] for row in rows] == [PER_CLASS] * 2
    with torch.no_grad():
        features = model.forward_head(model.forward_features(images[0]), pre_logits=True)
    stem = f'test_resnet-{checkpoint.parent.name}-model'
    found = np.load(tmp_path / 'out' / f'{stem}-w1.npz')
    for which, chosen in (('class_0', features[:PER_CLASS]), ('all', features)):
        expected = svd(chosen)
        assert np.allclose(found[f'{which}_scatter'], expected, rtol=1e-4, atol=1e-6 * expected[0])
        assert np.allclose(
            found[f'{which}_covariance'], expected / (len(chosen) - 1), rtol=1e-4, atol=1e-6 * expected[0]
        )
        assert found[f'{which}_images'] == len(chosen)
    with (tmp_path / 'out' / f'{stem}-w1.csv').open(newline='') as file:
        lines = list(csv.DictReader(file))
    assert [int(line['rank']) for line in lines] == list(range(1, features.shape[1] + 1))
    assert [float(line['all_scatter']) for line in lines] == found['all_scatter'].tolist()
    narrow = np.load(tmp_path / 'out' / f'{stem}-w0.5.npz')
    assert len(narrow['all_scatter']) < features.shape[1]
    assert narrow['all_images'] == NUM_CLASSES * PER_CLASS


def test_picture_where_matplotlib_is_installed(run, checkpoint, tmp_path):
    pytest.importorskip('matplotlib')
    run('--checkpoint', checkpoint, '--spectrum', tmp_path)
    assert (tmp_path / f'test_resnet-{checkpoint.parent.name}-model.png').stat().st_size > 10_000


def test_data_without_class_0_is_refused(refusal, folder, checkpoint, tmp_path):
    for path in sorted(folder.glob('val/class*'))[1:]:
        (tmp_path / 'val').mkdir(exist_ok=True)
        (tmp_path / 'val' / path.name).symlink_to(path)
    (tmp_path / 'map.txt').write_text('\n'.join(f'class{index}' for index in range(NUM_CLASSES)))
    data = ['--data-dir', tmp_path, '--class-map', tmp_path / 'map.txt']
    complaint = refusal('--checkpoint', checkpoint, '--spectrum', tmp_path / 'out', data=data)
    assert f'--spectrum {tmp_path / "out"}' in complaint
    assert 'class 0' in complaint
    assert not (tmp_path / 'out').exists()
