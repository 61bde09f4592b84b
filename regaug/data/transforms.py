"""Changes to the transforms that timm's factory builds."""

from collections.abc import Callable
from typing import Any

from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.loader import adapt_to_chs
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio, str_to_interp_mode
from torchvision import transforms

# Policies of torchvision that timm lacks, by the names that `--aa` takes: AutoAugment's tables for three data sets
# (arXiv 1805.09501, appendix A) and TrivialAugment (arXiv 2103.10158).
TORCHVISION_POLICIES: dict[str, Callable] = {
    'tv-cifar10': lambda **kwargs: transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10, **kwargs),
    'tv-svhn': lambda **kwargs: transforms.AutoAugment(transforms.AutoAugmentPolicy.SVHN, **kwargs),
    'tv-imagenet': lambda **kwargs: transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET, **kwargs),
    'trivial': transforms.TrivialAugmentWide,
}
_PLACEHOLDER = 'original'
_POLICIES = (AutoAugment, RandAugment, AugMixAugment, transforms.AutoAugment, transforms.TrivialAugmentWide)


def timm_policy(name: str | None) -> str | None:
    """The policy that timm's factory is asked for: a placeholder where `use_torchvision_policy` comes after it."""
    return _PLACEHOLDER if name in TORCHVISION_POLICIES else name


def use_torchvision_policy(dataset: Any, name: str, data_config: dict, *, interpolation: str):
    """Put a policy of torchvision in the place of timm's, among the steps that go with one.

    What moves into the picture has the mean colour, as with timm's policies.

    Args:
        dataset: training set whose transform timm has set, with a policy.
        name: of `TORCHVISION_POLICIES`.
        data_config: timm's data configuration.
        interpolation: of geometric operations; `random`, which torchvision does not have, is bilinear.
    """
    mean = adapt_to_chs(data_config['mean'], data_config['input_size'][0])
    policy = TORCHVISION_POLICIES[name](
        interpolation=str_to_interp_mode('bilinear' if interpolation == 'random' else interpolation),
        fill=[round(255 * value) for value in mean],
    )
    replace_policies(dataset, lambda step: policy)


def replace_policies(dataset: Any, replacement: Callable):
    """Put others in the place of a training set's policies.

    Args:
        dataset: training set whose transform timm has set: one pipeline, with scheduled sizes one for each size, with
            augmentation splits that of the views.
        replacement: function from a policy to what takes its place.
    """
    pipelines = getattr(dataset, 'transforms', None) or [getattr(dataset, 'augmentation', None) or dataset.transform]
    for pipeline in pipelines:
        steps = pipeline.transforms
        pipeline.transforms = [replacement(step) if isinstance(step, _POLICIES) else step for step in steps]


def use_pad_crop(dataset: Any, data_config: dict[str, Any], *, padding: int, mode: Any):
    """Replace the random resized crop of a training set by the CIFAR augmentation: pad, then crop at random.

    Images of another size are first resized, keeping their aspect ratio, to the smallest size that holds the input.

    Args:
        dataset: training set whose transform timm has set.
        data_config: timm's data configuration (input size and interpolation).
        padding: pixels added on every side.
        mode: `reflect` or `constant` (zeros: black).
    """
    steps = dataset.transform.transforms
    assert isinstance(steps[0], RandomResizedCropAndInterpolation), 'checked with the options'
    height, width = data_config['input_size'][-2:]
    steps[0] = transforms.Compose(
        [
            ResizeKeepRatio((height, width), longest=0.0, interpolation=data_config['interpolation']),
            transforms.RandomCrop((height, width), padding=padding, padding_mode=mode),
        ]
    )


def weaken_policies(dataset: Any, probability: float):
    """Apply a training set's policies (AutoAugment and the like) to some of the images only.

    Args:
        dataset: training set whose transform timm has set.
        probability: share of the images to which the policy is applied.
    """
    replace_policies(dataset, lambda step: transforms.RandomApply([step], p=probability))
