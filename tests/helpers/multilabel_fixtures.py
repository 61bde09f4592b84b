"""Fixtures of the tests of `--task multilabel`.

timm's readers that know several labels need packages of their own; a stand-in takes their place behind the factory.
"""

import pytest
from timm.data import ImageDataset

from regaug.data import datasets
from regaug.options import timm_data_checks
from tests.helpers.multilabel import LabelReader, quadrants


@pytest.fixture
def no_package(monkeypatch):
    monkeypatch.setattr(timm_data_checks, 'require_package', lambda *args: None)


@pytest.fixture
def factory(monkeypatch, no_package):
    """Puts the quadrants in the place of timm's factory; returns the arguments of its calls."""
    calls = []

    def create(name, root, split, **kwargs):
        calls.append({'name': name, 'split': split, **kwargs})
        reader = LabelReader(*quadrants(split), dense=kwargs['target_format'] == 'multihot')
        common = {key: kwargs[key] for key in ('input_img_mode', 'target_transform')}
        return ImageDataset(root=None, reader=reader, **common)

    monkeypatch.setattr(datasets, 'create_timm_dataset', create)
    return calls
