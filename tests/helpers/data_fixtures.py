"""Fixtures of the tests of data sets: a folder of photographs."""

import pytest
from PIL import Image

from tests.helpers.data import noise_images


@pytest.fixture
def photos(tmp_path):
    """Six PNG files in two classes."""
    for index, pixels in enumerate(noise_images(6, 40, 40)):
        path = tmp_path / 'photos' / 'train' / f'class{index // 3}' / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return tmp_path / 'photos'
