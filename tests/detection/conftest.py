"""Drawn rectangles in COCO's format, and pyramids of few maps, with which a test takes a tenth of the time."""

import pytest

from regaug.detection import model
from tests.helpers.detection import MAPS, random_boxes, write_split


@pytest.fixture(scope='session')
def coco(tmp_path_factory):
    """Five training and three validation images of 80x64 pixels with two rectangles each."""
    root = tmp_path_factory.mktemp('coco')
    write_split(root, 'train2017', random_boxes(5, seed=1))
    write_split(root, 'val2017', random_boxes(3, seed=2))
    return root


@pytest.fixture(scope='session', autouse=True)
def few_maps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, 'MAPS', MAPS)
        yield
