"""Crop and flip of a batch, each sample its own: equal to torchvision's on each image."""

import pytest
import torch
from torchvision.transforms import functional

from regaug.augment.operators import flip, shift_crop

pytest_plugins = ['tests.helpers.operators']


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
@pytest.mark.parametrize('channels', [1, 3])
def test_shift_crop_equals_torchvisions_pad_and_crop(batch, mode, channels):
    offsets = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    images = batch.repeat(2, 1, 1, 1)[: len(offsets), :channels]
    height, width = images.shape[-2:]
    padded = functional.pad(images, 3, padding_mode=mode)
    expected = torch.stack(
        [functional.crop(image, top, left, height, width) for image, (top, left) in zip(padded, offsets.tolist())]
    )
    assert torch.equal(shift_crop(images, offsets, 3, mode), expected)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(shift_crop(images, offsets.to(dtype), 3, mode), expected)
    results = shift_crop(images.contiguous(memory_format=torch.channels_last), offsets, 3, mode)
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(results, expected)


def test_flip_turns_the_marked_images_from_left_to_right(batch):
    flags = torch.rand(len(batch)) < 0.5
    assert 0 < flags.sum() < len(batch)
    expected = torch.stack([functional.hflip(image) if flag else image for image, flag in zip(batch, flags)])
    assert torch.equal(flip(batch, flags), expected)
    results = flip(batch.contiguous(memory_format=torch.channels_last), flags)
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(results, expected)
