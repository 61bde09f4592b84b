import hashlib

import numpy as np
import pytest
import torch
from timm.data import AugMixDataset, ImageDataset, create_loader

from regaug.data.digits import create_digits, load_digits, split_indices
from regaug.errors import OptionError


def sha256(array):
    return hashlib.sha256(array.tobytes()).hexdigest()


def test_stored_values_have_the_committed_checksums():
    images, labels = load_digits()
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((1797, 8, 8), np.uint8, (1797,), np.uint8)
    assert sha256(images) == '8f26b2bd9d135c256808f68f14fdabddde6d9c7f869ae419704b051f0f14b3b3'
    assert sha256(labels) == '8ba4f891220f5e4c9c819638d1602d74b83618f167043c6da52a2a247841ddf0'


def test_stored_values_equal_the_copy_of_scikit_learn():
    reference = pytest.importorskip('sklearn.datasets').load_digits()
    images, labels = load_digits()
    np.testing.assert_array_equal(images, reference.images)
    np.testing.assert_array_equal(labels, reference.target)


def test_split_is_the_committed_one_and_covers_the_set_without_overlap():
    _, labels = load_digits()
    train, validation = split_indices(labels, 'train'), split_indices(labels, 'validation')
    assert sha256(train.astype('<i8')) == '87ff38d9d2fd331f5b99197e81cf7d1354f50ffd0741b5515960de9e43e57190'
    assert sorted([*train, *validation]) == list(range(1797))
    assert np.bincount(labels[train]).tolist() == [142, 146, 141, 147, 144, 146, 145, 143, 139, 144]
    assert np.bincount(labels[validation]).tolist() == [36, 36, 36, 36, 37, 36, 36, 36, 35, 36]


def test_every_fifth_image_of_the_sorted_set_is_for_validation():
    labels = np.array([1, 0, 0, 1, 0, 1, 0])  # sorted: places 1 2 4 6 0 3 5
    assert split_indices(labels, 'validation').tolist() == [1, 3]


def test_unknown_split_is_an_error_that_names_option_and_value():
    with pytest.raises(OptionError, match=r"'test'.*--train-split, --val-split.*'train' or 'validation'"):
        create_digits('test')


def test_grey_levels_are_stretched_to_a_byte():
    images, labels = load_digits()
    dataset = create_digits('validation', input_img_mode='L')
    places = split_indices(labels, 'validation')
    for index in (0, 100, 359):
        image, label = dataset[index]
        np.testing.assert_array_equal(np.asarray(image), np.rint(images[places[index]] / 16 * 255))
        assert label == labels[places[index]] and type(label) is int


@pytest.mark.parametrize('mode', ['L', 'RGB'])
def test_image_mode_is_the_one_asked_for(mode):
    image, _ = create_digits('train', input_img_mode=mode)[0]
    assert (image.mode, image.size) == (mode, (8, 8))


def test_files_are_named_after_class_and_original_place():
    dataset = create_digits('train')
    assert dataset.filename(0) == '1/0001.pgm'
    assert dataset.filenames(basename=True)[:2] == ['0001.pgm', '0003.pgm']
    assert len(set(dataset.filenames())) == 1437
    assert dataset.reader.class_to_idx == {str(digit): digit for digit in range(10)}


@pytest.mark.parametrize('channels, mode', [(1, 'L'), (3, 'RGB')])
def test_loader_of_timm_delivers_the_validation_images(channels, mode):
    images, labels = load_digits()
    places = split_indices(labels, 'validation')
    loader = create_loader(
        create_digits('validation', input_img_mode=mode),
        input_size=(channels, 8, 8),
        batch_size=100,
        num_workers=0,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
        crop_pct=1.0,
        device=torch.device('cpu'),
    )
    batches = list(loader)
    assert [len(target) for _, target in batches] == [100, 100, 100, 60]
    assert torch.cat([target for _, target in batches]).tolist() == labels[places].tolist()
    expected = torch.from_numpy(np.rint(images[places] / 16 * 255) / 255).float()
    for channel in torch.cat([input for input, _ in batches]).unbind(1):
        torch.testing.assert_close(channel, expected)


def test_augmentation_splits_of_timm_wrap_the_set():
    dataset = create_digits('train')
    assert isinstance(dataset, ImageDataset)
    loader = create_loader(
        AugMixDataset(dataset, num_splits=2),
        input_size=(3, 32, 32),
        batch_size=8,
        is_training=True,
        num_workers=0,
        num_aug_splits=2,
        auto_augment='rand-m3',
        device=torch.device('cpu'),
    )
    input, target = next(iter(loader))
    assert input.shape == (16, 3, 32, 32)
    assert target[:8].tolist() == target[8:].tolist()
