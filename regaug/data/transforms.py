"""Changes to the transforms that timm's factory builds."""

from timm.data.auto_augment import AugMixAugment, AutoAugment, RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation, ResizeKeepRatio
from torchvision import transforms


def use_pad_crop(dataset, data_config, *, padding, mode):
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


def weaken_policies(dataset, probability):
    """Apply a training set's AutoAugment, RandAugment or AugMix policies to some of the images only.

    Args:
        dataset: training set whose transform timm has set, one pipeline or, with scheduled sizes, one for each size.
        probability: share of the images to which the policy is applied.
    """
    pipelines = getattr(dataset, 'transforms', None) or [dataset.transform]
    for pipeline in pipelines:
        pipeline.transforms = [
            transforms.RandomApply([step], p=probability)
            if isinstance(step, AutoAugment | RandAugment | AugMixAugment)
            else step
            for step in pipeline.transforms
        ]
