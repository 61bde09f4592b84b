"""What the loader delivers under UADA, and the normalised images that the network trains on."""

import numpy as np
import pytest
import torch
from torch import nn

from regaug.data.loaders import TrainLoader
from regaug.data.samples import training_samples
from regaug.methods.uada import create_uada
from regaug.training.phases import phase_at
from tests.helpers.data import as_bytes, noise_images, noise_set
from tests.helpers.training import (
    CLASSES,
    CPU,
    assert_equal,
    make_model,
    make_task,
    train_args,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = ('--uada-groups', 'crop', 'flip', 'policy', 'cutout', '--pad-crop', 4)
PLAIN = ('--color-jitter', 0, '--hflip', 0)


def delivered(epoch, *options, size=(32, 32), img_dtype=torch.float32, images=None):
    """The images of an epoch [N, 3, H, W] as the loop gets them, in the order of their labels."""
    images = noise_images(16, *size) if images is None else images
    dataset = noise_set(len(images))
    dataset.images, dataset.labels = images, np.arange(len(images))
    config = {'input_size': (3, 32, 32), 'interpolation': 'bicubic', 'mean': MEAN, 'std': STD, 'crop_pct': 1.0}
    args = train_args('--num-classes', len(images), '--batch-size', 8, '--workers', 0, '--warmup-epochs', 0, *options)
    data = TrainLoader(training_samples(dataset), config, device=CPU, img_dtype=img_dtype, num_classes=len(images))
    data.use(phase_at(epoch, args))
    batches = [(input.clone(), target.clone()) for input, target in data.loader]
    order = torch.cat([target for _, target in batches]).argsort()
    return torch.cat([input for input, _ in batches])[order]


REFINED = ('--uada', *PLAIN, '--epochs', 1, '--refine-epochs', 1)


@pytest.mark.parametrize('fetch', [[], ['--no-prefetcher']])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_in_the_main_phase_images_come_as_they_are_on_disk_divided_by_255(fetch, dtype):
    images = noise_images(16)
    input = delivered(0, *REFINED, *ALL, *fetch, images=images, img_dtype=dtype)
    assert input.dtype == torch.float32  # whatever the model's number format
    assert_equal((input * 255).round().to(torch.uint8), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    assert input.max() <= 1 and (input * 255 - (input * 255).round()).abs().max() < 1e-4


@pytest.mark.parametrize('fetch', [[], ['--no-prefetcher']])
def test_in_refinement_images_are_normalised_cropped_and_flipped_as_without_uada(fetch):
    options = (*REFINED[1:], '--hflip', 0.5, '--pad-crop', 4, *fetch)
    torch.manual_seed(3)
    input = delivered(1, '--uada', *ALL, *options)
    torch.manual_seed(3)
    assert_equal(input, delivered(1, *options))
    pixels = input * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    original = torch.from_numpy(noise_images(16)).permute(0, 3, 1, 2) / 255
    centre = pixels[:, :, 12:20, 12:20]
    shifts, flips = set(), 0
    for sample, image in zip(centre, original):
        places = [
            (row, column, flipped)
            for flipped, source in ((False, image), (True, image.flip(-1)))
            for row in range(-4, 5)
            for column in range(-4, 5)
            if (source[:, 12 + row : 20 + row, 12 + column : 20 + column] - sample).abs().max() < 1e-3
        ]
        [(row, column, flipped)] = places
        shifts.add((row, column))
        flips += flipped
    assert len(shifts) > 8
    assert 1 <= flips <= 15


@pytest.mark.parametrize('groups', [['crop', 'policy'], ['flip'], ['policy'], ['crop', 'flip', 'cutout']], ids='+'.join)
def test_the_loader_leaves_out_the_crop_and_the_flip_that_adapt_and_keeps_the_others(groups):
    images = noise_images(16)
    original = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    options = ('--uada', '--uada-groups', *groups, '--color-jitter', 0, '--hflip', 1.0, '--pad-crop', 4)
    input = delivered(0, *options, '--epochs', 1, images=images)
    if 'flip' not in groups:
        input = input.flip(-1)
    unmoved = (input - original).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert unmoved.all() if 'crop' in groups else unmoved.sum() <= 3


@pytest.mark.parametrize('size', [(40, 56), (24, 24), (32, 50)])
def test_images_of_other_sizes_arrive_in_that_of_training_with_the_crop_left_to_uada(size):
    """They are resized to the smallest size that holds the training size; the rest is cut off, black is never added."""
    images = np.full((8, *size, 3), 200, dtype=np.uint8)
    input = delivered(0, *REFINED, *ALL, images=images)
    assert input.shape == (8, 3, 32, 32)
    assert (input - 200 / 255).abs().max() < 1e-5


def test_noise_of_the_data_is_delivered_bytewise():
    images = noise_images(8)
    assert np.array_equal(as_bytes(delivered(0, *REFINED, *ALL, images=images) * 255), images)


@pytest.mark.parametrize('groups', [('policy',), ('crop', 'flip', 'policy', 'cutout')], ids='+'.join)
def test_what_the_model_trains_on_is_normalised(groups):
    """White images: whatever is neither filled nor changed is (1 - mean) / std."""
    args = train_args('--num-classes', CLASSES, '--uada', '--uada-groups', *groups, '--pad-crop', 4)
    task = make_task(make_model(dtype=torch.float32))
    config = {'input_size': (3, 32, 32), 'mean': MEAN, 'std': STD}
    selector = create_uada(phase_at(0, args), task, args, config)
    chosen, _, _ = selector(torch.ones(32, 3, 32, 32), torch.arange(32) % CLASSES, (0, 0, 0))
    for channel, (mean, std) in enumerate(zip(MEAN, STD)):
        values, counts = chosen[:, channel].unique(return_counts=True)
        assert values[counts.argmax()].item() == pytest.approx((1 - mean) / std, abs=1e-5)
        assert values.min().item() >= (0 - mean) / std - 1e-5
        assert values.max().item() <= (1 - mean) / std + 1e-5
        if 'cutout' in groups:
            assert values.min().item() == pytest.approx((0 - mean) / std, abs=1e-5)


@pytest.mark.parametrize('channels', [1, 3])
def test_one_mean_serves_all_channels(channels):
    """As in timm: `--mean 0.5` for a model with three channels."""
    args = train_args('--num-classes', CLASSES, '--uada', '--uada-groups', 'flip', '--uada-epsilon', 0)
    config = {'input_size': (channels, 8, 8), 'mean': (0.5,), 'std': (0.25,)}
    selector = create_uada(phase_at(0, args), make_task(nn.Identity()), args, config)
    chosen, _, _ = selector(torch.ones(4, channels, 8, 8), torch.zeros(4, dtype=torch.int64), (0, 0, 0))
    assert_equal(chosen, torch.full((4, channels, 8, 8), 2.0))
