"""Fixtures of the tests of validate.py: a small folder of images, a model for it, and the script run on them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import regaug.cli
import validate
from tests.helpers.validate import NUM_CLASSES, PER_CLASS, PIXELS, SIDE, make_model, prepare_images


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Noise images in `train` and `val`, one sub-folder per class, named as ImageNet's validation images are."""
    root = tmp_path_factory.mktemp('images')
    generator = np.random.default_rng(7)
    for split in ('train', 'val'):
        for index in range(NUM_CLASSES * PER_CLASS):
            path = root / split / f'class{index // PER_CLASS}' / f'ILSVRC2012_val_{index + 1:08d}.JPEG'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.normal(generator.uniform(60, 190, 3), 40, (SIDE, SIDE, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
    return root


@pytest.fixture(scope='module')
def images(folder):
    """Images and labels of the validation split."""
    return prepare_images(folder, 'val')


@pytest.fixture(scope='module')
def model(images):
    return make_model(images, seed=1)


@pytest.fixture(scope='module')
def checkpoint(model, tmp_path_factory):
    path = tmp_path_factory.mktemp('weights') / 'model.pth'
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def run(capsys, folder):
    """Runs validate.py in this process and returns what stands after `--result` on stdout."""

    def run(*argv, data=('--data-dir', folder)):
        common = ['--model', 'test_resnet', '--num-classes', NUM_CLASSES, '--img-size', PIXELS, '--device', 'cpu']
        capsys.readouterr()
        validate.main([str(item) for item in (*data, *common, '-j', 0, '-b', 16, *argv)])
        return json.loads(capsys.readouterr().out.partition('--result\n')[2])

    return run


@pytest.fixture
def refusal(capsys, monkeypatch, run):
    """Runs validate.py as the command line does and returns its one line of complaint."""

    def refusal(*argv, **kwargs):
        monkeypatch.setattr(regaug.cli, 'setup_default_logging', lambda: None)
        with pytest.raises(SystemExit) as stop:
            regaug.cli.run(lambda: run(*argv, **kwargs))
        lines = capsys.readouterr().err.strip().splitlines()
        assert (stop.value.code, len(lines)) == (2, 1), lines
        return lines[0].partition('error: ')[2]

    return refusal
