"""`--task multilabel`: labels that fit no vector, and which classes are compared."""

import io

import numpy as np
import pytest
import torch
from timm.data import ImageDataset
from torch.utils.data import DataLoader

from regaug.data import datasets
from regaug.data.datasets import check_classes, create_dataset, target_kwargs
from regaug.data.probe import check_samples
from regaug.data.samples import Samples
from regaug.errors import OptionError
from tests.helpers.multilabel import LabelReader, label_args, png, quadrants
from tests.helpers.training import CLASSES, train_args

pytest_plugins = ['tests.helpers.multilabel_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files


class RawLabels(LabelReader):
    """Images with labels that are given as they are."""

    def __getitem__(self, index):
        return io.BytesIO(self.images[index]), self.labels[index]


def labelled(labels, *options):
    """A data set of grey images whose labels become vectors as the options say."""
    images = [png(np.zeros((8, 8, 3), dtype=np.uint8))] * len(labels)
    target_transform = target_kwargs(label_args(*options), CLASSES)['target_transform']
    return ImageDataset(None, reader=RawLabels(images, labels, False), target_transform=target_transform)


@pytest.mark.parametrize(
    ('row', 'options', 'reason'),
    [
        ([0, 4], (), r'class indices must be in \[0, 4\)'),
        (3, (), 'must be a 1-D sequence'),
        ([0.5], (), 'must be integers'),
        ([0, 1, 1], ('--target-format', 'multihot'), 'must have 4 entries, got 3'),
        ([0, 1, 2, 0], ('--target-format', 'multihot'), r'must be in \[0, 1\]'),
    ],
)
@pytest.mark.parametrize('workers', [0, 1])
def test_labels_that_fit_no_vector_are_one_line_from_workers_too(no_package, row, options, reason, workers):
    dataset = Samples(labelled([[0, 1], row], *options))
    dataset.transform = lambda image: torch.zeros(3)
    with pytest.raises(OptionError, match=rf'--task multilabel --num-classes 4: .*{reason}') as caught:
        list(DataLoader(dataset, sampler=[1], num_workers=workers))
    assert '\n' not in str(caught.value)
    assert dataset.num_unreadable == 0


def test_the_first_look_finds_labels_that_do_not_fit(no_package):
    with pytest.raises(OptionError, match=r'--task multilabel --num-classes 4: .*\[0, 4\)'):
        check_samples(labelled([[9]]), 3, '--train-split train')


def test_several_labels_without_the_task_are_an_error(monkeypatch, no_package):
    dataset = ImageDataset(None, reader=LabelReader(*quadrants('train'), dense=False))
    monkeypatch.setattr(datasets, 'create_timm_dataset', lambda name, **kwargs: dataset)
    args = train_args('--dataset', 'hfds/quadrants', '--num-classes', CLASSES)
    with pytest.raises(OptionError, match=r'several labels .*--task multilabel takes'):
        datasets.create_datasets(args, {'input_size': (3, 32, 32)})


def test_classes_are_compared_unless_targets_are_dense():
    images, labels = quadrants('train')
    sets = {dense: Samples(ImageDataset(None, reader=LabelReader(images, labels, dense))) for dense in (False, True)}
    check_classes(sets[True], sets[True], 9, given=True)
    check_classes(sets[False], sets[False], CLASSES, given=True)
    with pytest.raises(OptionError, match=r'--num-classes 9: the training data has 4 classes'):
        check_classes(sets[False], None, 9, given=True)


@pytest.mark.parametrize('kwargs', [{'target_key': 'tags'}, {'target_format': 'indices'}])
@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_folders_have_no_keys_of_labels(image_folder, name, kwargs):
    with pytest.raises(OptionError, match=r'--target-key, --target-format: the images of'):
        create_dataset(name, str(image_folder), 'train', **kwargs)
