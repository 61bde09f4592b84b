"""Policies of torchvision: they stand where timm's stand, and fade, refine and combine like them."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AutoAugment
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from regaug.data.transforms import TORCHVISION_POLICIES
from regaug.errors import OptionError
from regaug.options import parse_train, timm_data_checks
from regaug.training.phases import phase_at
from tests.helpers.data import BYTES_CONFIG, MemoryDataset, deliver, make_train_data, noise_set

PLAIN = ('--scale', 1, 1, '--ratio', 1, 1, '--hflip', 0, '--color-jitter', 0, '--workers', 0, '--batch-size', 8)
SHORT = ('--epochs', 3, '--warmup-epochs', 0)
REFERENCES = {
    'tv-cifar10': lambda **kwargs: transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, **kwargs),
    'tv-svhn': lambda **kwargs: transforms.AutoAugment(transforms.AutoAugmentPolicy.SVHN, **kwargs),
    'tv-imagenet': lambda **kwargs: transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET, **kwargs),
    'trivial': transforms.TrivialAugmentWide,
}
by_name = pytest.mark.parametrize('name', REFERENCES)


def smooth_set(count):
    """Pictures with colour gradients, so that every operation shows."""
    ramp = np.linspace(20, 230, 32)
    images = [
        np.stack([np.tile(ramp, (32, 1)), np.tile(ramp[:, None], 32), np.full((32, 32), 60 + index)], axis=-1)
        for index in range(count)
    ]
    return MemoryDataset([image.astype(np.uint8) for image in images], np.arange(count) % 4)


def steps_of(train_data):
    return train_data.loader.dataset.transform.transforms


@by_name
def test_images_are_those_of_torchvisions_policy_with_the_mean_colour_as_filling(name):
    config = {**BYTES_CONFIG, 'mean': (0.5, 0.25, 0.75)}
    dataset = smooth_set(40)
    train_data, _ = make_train_data(dataset, *PLAIN, '--aa', name, config=config)
    policy = REFERENCES[name](interpolation=InterpolationMode.BILINEAR, fill=[128, 64, 191])
    changed = 0
    for index in range(40):
        torch.manual_seed(index)
        delivered, _ = train_data.loader.dataset[index]
        torch.manual_seed(index)
        expected = np.asarray(policy(Image.fromarray(dataset.images[index]))).transpose(2, 0, 1)
        np.testing.assert_array_equal(np.asarray(delivered), expected)
        changed += not np.array_equal(expected, dataset.images[index].transpose(2, 0, 1))
    assert changed > 15


@by_name
def test_policy_stands_where_timms_stands_and_nothing_else_changes(name):
    rest = ('--grayscale-prob', 0.3, '--gaussian-blur-prob', 0.3, '--vflip', 0.1, '--color-jitter', 0.4)
    options = (*rest, '--workers', 0, '--batch-size', 8)
    for crop in ((), ('--pad-crop', 4)):
        ours, _ = make_train_data(noise_set(8), *options, *crop, '--aa', name)
        timms, _ = make_train_data(noise_set(8), *options, *crop, '--aa', 'original')
        kinds = [type(step) for step in steps_of(ours)]
        place = [type(step) for step in steps_of(timms)].index(AutoAugment)
        assert kinds[place] in (transforms.AutoAugment, transforms.TrivialAugmentWide)
        assert kinds[:place] + [AutoAugment] + kinds[place + 1 :] == [type(step) for step in steps_of(timms)]
        assert transforms.ColorJitter not in kinds


def test_interpolation_given_for_training_is_that_of_the_policy():
    train_data, _ = make_train_data(noise_set(8), *PLAIN, '--aa', 'trivial', '--train-interpolation', 'bicubic')
    assert [step.interpolation for step in steps_of(train_data) if isinstance(step, transforms.TrivialAugmentWide)] == [
        InterpolationMode.BICUBIC
    ]


def test_command_line_knows_the_policies_by_the_same_names():
    assert tuple(TORCHVISION_POLICIES) == timm_data_checks.TORCHVISION_POLICIES == tuple(REFERENCES)


class Grey:
    """Stands for a policy that is easy to see."""

    def __init__(self, **kwargs):
        pass

    def __call__(self, image):
        return Image.new('RGB', image.size, (77, 77, 77))


@pytest.fixture
def grey_policy(monkeypatch):
    monkeypatch.setitem(TORCHVISION_POLICIES, 'trivial', Grey)
    monkeypatch.setattr('regaug.data.transforms._POLICIES', (Grey, AutoAugment))


def share_of_grey(images):
    return (images == 77).flatten(1).all(dim=1).float().mean().item()


def test_policy_fades_and_is_gone_in_refinement(grey_policy):
    options = (*PLAIN, *SHORT, '--epochs', 4, '--refine-epochs', 1, '--refine-fade', 3, '--aa', 'trivial')
    train_data, args = make_train_data(noise_set(800), *options)
    shares = []
    for epoch in range(5):
        train_data.use(phase_at(epoch, args))
        shares.append(share_of_grey(deliver(train_data)[0]))
    assert shares[0] == 1
    assert shares[1:4] == pytest.approx([0.75, 0.5, 0.25], abs=0.06)
    assert shares[4] == 0


@pytest.mark.parametrize(
    ('options', 'share'),
    [
        (('--mixup', 0.0), 1),
        (('--pad-crop', 4), 1),
        (('--train-img-sizes', 32, 32), 1),
        (('--aug-splits', 2), 0.5),
        (('--maxup', 2, '--maxup-aug', 'views', '--maxup-warmup-epochs', 0), 1),
        (('--updates-per-epoch', 3), 1),
        (('--no-prefetcher',), 1),
    ],
)
def test_policy_reaches_the_images_whatever_goes_with_it(grey_policy, options, share):
    train_data, _ = make_train_data(noise_set(16), *PLAIN, *SHORT, '--aa', 'trivial', *options)
    images = [batch[0] for batch in train_data.loader]
    images = torch.cat([batch.flatten(0, -4) for batch in images])
    assert share_of_grey(images.round()) == share


@by_name
def test_grey_images_take_the_policy(name):
    config = {**BYTES_CONFIG, 'input_size': (1, 32, 32), 'mean': (0.5,), 'std': (1 / 255,)}
    dataset = smooth_set(24)
    dataset.images = [image[..., 0] for image in dataset.images]
    train_data, _ = make_train_data(dataset, *PLAIN, '--aa', name, '--batch-size', 8, config=config)
    assert deliver(train_data)[0].shape == (24, 1, 32, 32)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--aa', 'tv-mnist'], r'--aa tv-mnist: .+'),
        (['--aa', 'trivial', '--naflex-loader', '--model', 'naflexvit_base_patch16_gap'], r'--aa trivial: .*naflex'),
        (['--aa', 'trivial', '--uada'], r'--aa trivial|--uada'),
    ],
)
def test_policies_that_cannot_be_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        parse_train(['--dataset', 'regaug/digits', '--device', 'cpu', *options])
