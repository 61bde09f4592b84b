"""`--pad-crop`: the delivered images are crops of the padded ones, as cut out by NumPy."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from tests.helpers.data import BYTES_CONFIG, MemoryDataset, as_bytes, deliver, make_train_data, noise_images, noise_set

PADDING = 3
CROPS_ONLY = ('--pad-crop', PADDING, '--hflip', 0, '--color-jitter', 0, '--smoothing', 0, '--batch-size', 16)


def all_crops(image, height, width, mode):
    """{(top, left): crop} of an image [H, W, 3] padded by `PADDING` on every side."""
    padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode=mode)
    tops, lefts = padded.shape[0] - height + 1, padded.shape[1] - width + 1
    return {
        (top, left): padded[top : top + height, left : left + width] for top in range(tops) for left in range(lefts)
    }


def find_places(delivered, images, height, width, mode):
    """Where each delivered image was cut out of one of `images`: {index of the image: [(top, left), ...]}."""
    table = {}
    for index, image in enumerate(images):
        for place, crop in all_crops(image, height, width, mode).items():
            table[crop.tobytes()] = (index, place)
    places = {}
    for image in delivered:
        found = table.get(image.tobytes())
        assert found is not None, 'an image is no crop of any padded one'
        index, place = found
        places.setdefault(index, []).append(place)
    return places


@pytest.mark.parametrize('mode', ['reflect', 'constant'])
@pytest.mark.parametrize('loading', [('--workers', 0), ('--workers', 2), ('--workers', 0, '--no-prefetcher')])
def test_each_image_is_delivered_once_as_a_random_crop_of_its_padded_self(mode, loading):
    images = noise_images(64)
    dataset = MemoryDataset(images, np.arange(64))
    train_data, _ = make_train_data(dataset, *CROPS_ONLY, '--pad-mode', mode, *loading, classes=64)
    delivered, labels = deliver(train_data)
    places = find_places(as_bytes(delivered), images, 32, 32, mode)
    assert {index: len(found) for index, found in places.items()} == dict.fromkeys(range(64), 1)
    assert sorted(labels.tolist()) == list(range(64))
    tops, lefts = zip(*(place for [place] in places.values()), strict=True)
    assert set(tops) == set(lefts) == set(range(2 * PADDING + 1))
    assert abs(np.corrcoef(tops, lefts)[0, 1]) < 0.5  # two draws, not one


def test_crops_change_from_epoch_to_epoch():
    train_data, _ = make_train_data(noise_set(16), *CROPS_ONLY, '--workers', 0)
    epochs = [sorted(image.tobytes() for image in as_bytes(deliver(train_data)[0])) for _ in range(2)]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize('hflip', [0, 1])
def test_crops_may_be_flipped_afterwards(hflip):
    images = noise_images(16)
    train_data, _ = make_train_data(
        MemoryDataset(images, np.arange(16) % 4), *CROPS_ONLY, '--hflip', hflip, '--workers', 0
    )
    delivered = as_bytes(deliver(train_data)[0])
    places = find_places(delivered[:, :, ::-1] if hflip else delivered, images, 32, 32, 'reflect')
    assert len(places) == 16


def test_pixels_outside_are_black_under_constant_padding_and_mirrored_otherwise():
    white = MemoryDataset(np.full((16, 32, 32, 3), 255, dtype=np.uint8), np.zeros(16))
    for mode, has_black in (('constant', True), ('reflect', False)):
        train_data, _ = make_train_data(white, *CROPS_ONLY, '--pad-mode', mode, '--workers', 0)
        delivered = as_bytes(deliver(train_data)[0])
        assert set(np.unique(delivered)) == ({0, 255} if has_black else {255})


@pytest.mark.parametrize(('height', 'width'), [(40, 60), (60, 40), (20, 20)])
def test_images_of_another_size_are_resized_to_fit_their_shorter_side_first(height, width):
    images = noise_images(16, height, width)
    scale = 32 / min(height, width)
    resized = [
        np.asarray(Image.fromarray(image).resize((int(width * scale), int(height * scale)), Image.BICUBIC))
        for image in images
    ]
    train_data, _ = make_train_data(MemoryDataset(images, np.arange(16) % 4), *CROPS_ONLY, '--workers', 0)
    delivered = as_bytes(deliver(train_data)[0])
    assert len(find_places(delivered, resized, 32, 32, 'reflect')) == 16


def test_images_of_the_training_size_are_not_resized_even_if_it_is_not_square():
    images = noise_images(16, 24, 32)
    config = {**BYTES_CONFIG, 'input_size': (3, 24, 32)}
    train_data, _ = make_train_data(
        MemoryDataset(images, np.arange(16) % 4), *CROPS_ONLY, '--workers', 0, config=config
    )
    assert len(find_places(as_bytes(deliver(train_data)[0]), images, 24, 32, 'reflect')) == 16


def test_views_of_augmentation_splits_share_one_crop():
    images = noise_images(16)
    train_data, _ = make_train_data(
        MemoryDataset(images, np.arange(16)), *CROPS_ONLY, '--aug-splits', 2, '--workers', 0, classes=16
    )
    delivered, labels = deliver(train_data)
    clean, augmented = as_bytes(delivered).reshape(2, 16, 32, 32, 3)
    assert len(find_places(clean, images, 32, 32, 'reflect')) == 16
    np.testing.assert_array_equal(clean, augmented)  # the augmentation of this test is none
    assert labels[:16].tolist() == labels[16:].tolist()


def test_augmented_views_start_from_the_crop_of_the_clean_one():
    images = noise_images(16)
    train_data, _ = make_train_data(
        MemoryDataset(images, np.arange(16) % 4), *CROPS_ONLY, '--aug-splits', 3, '--aa', 'rand-m9', '--workers', 0
    )
    clean, *augmented = as_bytes(deliver(train_data)[0]).reshape(3, 16, 32, 32, 3)
    assert len(find_places(clean, images, 32, 32, 'reflect')) == 16
    assert all((view != clean).any() for view in augmented)


def test_each_worker_draws_crops_of_its_own():
    class SameImage(MemoryDataset):
        """One image 64 times, labelled by the worker that reads it."""

        def __getitem__(self, index):
            return super().__getitem__(index)[0], get_worker_info().id

    dataset = SameImage(np.repeat(noise_images(1), 64, axis=0), np.zeros(64))
    train_data, _ = make_train_data(dataset, *CROPS_ONLY, '--workers', 2, '--no-prefetcher')
    delivered, workers = deliver(train_data)
    assert sorted(torch.unique(workers).tolist()) == [0, 1]
    by_worker = [[image.tobytes() for image in as_bytes(delivered[workers == worker])] for worker in (0, 1)]
    assert by_worker[0] != by_worker[1]


def test_workers_are_seeded_as_timm_seeds_them():
    class Seeds(MemoryDataset):
        """Images labelled by whether NumPy's generator has the seed that timm gives a worker."""

        def __getitem__(self, index):
            seed = get_worker_info().seed % (2**32 - 1)
            return super().__getitem__(index)[0], int(np.random.get_state()[1][0] == seed)

    train_data, _ = make_train_data(Seeds(noise_images(64), np.zeros(64)), *CROPS_ONLY, '--workers', 2)
    _, labels = deliver(train_data)
    assert set(labels.tolist()) == {1}
