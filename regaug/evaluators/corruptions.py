"""Robustness to common corruptions: ImageNet-C and CIFAR-10-C (Hendrycks and Dietterich, arXiv 1903.12261).

ImageNet-C lies in `<type>/<severity>/<class>/*` and is evaluated as it is, cropped at the centre but not resized. The
error of a type over its five severities is divided by AlexNet's (CE), and the mean over 15 types is mCE; the relative
one takes the errors on clean images off first. CIFAR-10-C is `<type>.npy` and `labels.npy`, five severities one after
the other; its convention is the plain mean of the errors.

`python -m regaug.evaluators.corruptions SRC DST` makes the former layout from a folder of images.
"""

import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image
from timm.task import ClassificationEvaluator
from torch import nn
from torch.utils.data import Dataset

from regaug.errors import OptionError
from regaug.evaluators.accuracy import measure
from regaug.evaluators.evaluator import CONDITION, Needs
from regaug.evaluators.progress import Progress

_logger = logging.getLogger('validate')

SEVERITIES = (1, 2, 3, 4, 5)
# Mean error of AlexNet over the five severities.
ALEXNET = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}
ALEXNET_CLEAN = 0.435
EXTRA = ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate')  # for validation, not part of mCE
TYPES = (*ALEXNET, *EXTRA)


def corruption_error(name: str, error: float) -> float:
    """CE of a type in per cent, from its mean error over the five severities, in [0, 1]."""
    return 100 * error / ALEXNET[name]


def mean_corruption_error(errors: Mapping[str, float]) -> float:
    """mCE in per cent, from the mean error of each of the 15 types, in [0, 1]."""
    return fmean(corruption_error(name, errors[name]) for name in ALEXNET)


def relative_mean_corruption_error(errors: Mapping[str, float], clean: float) -> float:
    """mCE of what corruption adds to the error on clean images, in per cent; all errors in [0, 1]."""
    return 100 * fmean((errors[name] - clean) / (ALEXNET[name] - ALEXNET_CLEAN) for name in ALEXNET)


class NumpyImages(Dataset):
    """A part of a `.npy` file of images as a data set.

    Args:
        images: uint8 [N, H, W, 3].
        labels: Class indices [N].
        mode: Of the images that it gives, as Pillow names it.

    Attributes:
        transform: Set by timm's loader factory.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, mode: str = 'RGB'):
        self.images = images
        self.labels = labels
        self.mode = mode
        self.transform = None

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index: Any):
        image = Image.fromarray(self.images[index]).convert(self.mode)
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


class Corruptions:
    """Accuracy on corrupted images: a row for each type, and the means in the row of the network.

    Args:
        folder: ImageNet-C's layout or CIFAR-10-C's.
        types: Types to evaluate; None for all there are.
        severities: Severities to evaluate; None for all there are.
        resize: Resize the images to the input of the model, in place of a plain crop.
        log_freq: Parts (a type at a severity) from one log line to the next.
    """

    needs = Needs()

    def __init__(
        self,
        folder: str | Path,
        *,
        types: Sequence[str] | None = None,
        severities: Sequence[int] | None = None,
        resize: bool = False,
        log_freq: int = 1,
    ):
        self.folder = Path(folder)
        self.types = types
        self.severities = severities
        self.resize = resize
        self.log_freq = log_freq
        self.numpy = (self.folder / 'labels.npy').is_file()

    def check(self, model: nn.Module, data: Any):
        """Refuse a folder that lacks what is asked for, or whose classes are not those of the data."""
        parts = self._parts()
        if self.numpy:
            images, labels = self._arrays(next(iter(parts)))
            size, highest = images.shape[1:3], int(labels.max())
            outputs = data.num_classes if data.valid_labels is None else len(data.valid_labels)
            if highest >= outputs:
                self._refuse(f'labels.npy has class {highest}, the model has {outputs} outputs')
        else:
            expected = data.classes_with_images()
            if expected is None:
                self._refuse('the data set of --split has no named classes to find these folders by')
            for name, severities in parts.items():
                for severity in severities:
                    self._check_classes(self.folder / name / str(severity), set(expected))
            name, severities = next(iter(parts.items()))
            first = next(path for path in sorted((self.folder / name / str(severities[0])).glob('*/*')))
            with Image.open(first) as image:
                size = image.size[::-1]
        height, width = data.data_config['input_size'][1:]
        if (size[0] < height or size[1] < width) and not self.resize:
            self._refuse(
                f'its images have {size[0]}x{size[1]} pixels, the model takes {height}x{width}: '
                f'give --img-size {min(size)}, or --corruption-resize'
            )
        if tuple(size) != (height, width) and not self.resize:
            _logger.info(
                f'--imagenet-c {self.folder}: of {size[0]}x{size[1]} pixels the middle {height}x{width} are taken, as '
                f'the benchmark does; --corruption-resize resizes.'
            )

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Yield means over types in per cent, then each type."""
        parts = self._parts()
        total = sum(map(len, parts.values()))
        progress = Progress('Corruptions', total, self.log_freq)
        errors, counts = {}, {}
        for name, severities in parts.items():
            errors[name] = {}
            for severity in severities:
                dataset = self._open(data, name, severity)
                counts[f'{name} {severity}'] = len(dataset)
                loader = data.loader(dataset, crop_pct=1.0, crop_only=not self.resize)
                metrics = measure(network, data, loader, ClassificationEvaluator(data.device))
                errors[name][severity] = 1 - metrics['top1'] / 100
                progress.step(len(dataset), f'{name} {severity}: top1 {metrics["top1"]:.2f}')
        self._compare(counts, data)
        yield from self._means(errors, 1 - data.metrics['top1'] / 100)
        for name, by_severity in errors.items():
            yield CONDITION, name
            yield 'top1', 100 * (1 - fmean(by_severity.values()))
            if self._normalised(name, by_severity):
                yield 'ce', corruption_error(name, fmean(by_severity.values()))
            for severity, error in by_severity.items():
                yield f'top1_severity{severity}', 100 * (1 - error)

    def _compare(self, counts: Mapping[str, int], data: Any):
        """Tell of parts that have not as many images as the clean ones: half made, or a subset."""
        clean = len(data.dataset) if hasattr(data.dataset, '__len__') else None
        others = [f'{part} ({count})' for part, count in counts.items() if clean not in (None, count)]
        if others:
            _logger.warning(
                f'--imagenet-c {self.folder}: {len(others)} of {len(counts)} parts have not as many images as --split '
                f'{data.args.split} ({clean}), such as {others[0]}.'
            )

    def _means(self, errors: Mapping[str, Mapping[int, float]], clean: float) -> Iterator[tuple[str, Any]]:
        means = {name: fmean(by_severity.values()) for name, by_severity in errors.items()}
        common = [mean for name, mean in means.items() if name in ALEXNET]
        extra = [mean for name, mean in means.items() if name in EXTRA]
        if common:
            yield 'corruption_top1', 100 * (1 - fmean(common))
        if extra:
            yield 'extra_corruption_top1', 100 * (1 - fmean(extra))
        if self.numpy:
            return
        missing = [name for name in ALEXNET if not self._normalised(name, errors.get(name, {}))]
        if missing:
            yield 'mce_missing', ' '.join(missing)
            return
        yield 'mce', mean_corruption_error(means)
        yield 'relative_mce', relative_mean_corruption_error(means, clean)

    def _normalised(self, name: str, by_severity: Mapping[int, float]) -> bool:
        """Whether the type has a CE: AlexNet's error is known, and over all five severities."""
        return not self.numpy and name in ALEXNET and set(by_severity) == set(SEVERITIES)

    def _parts(self) -> dict[str, list[int]]:
        """Severities to evaluate for each type, in the order of `TYPES`.

        Raises:
            OptionError: A type or severity that was asked for is not there, or there is none at all.
        """
        unknown = next((name for name in self.types or () if name not in TYPES), None)
        if unknown:
            raise OptionError(f'--corruptions {unknown}: no such type; there are {", ".join(TYPES)}.')
        parts = {}
        for name in TYPES:
            found = self._severities(name)
            if self.types is not None and name not in self.types:
                continue
            missing = sorted(set(self.severities or ()) - set(found))
            if self.types is not None and not found:
                self._refuse(f'there is no {name}, which --corruptions asks for')
            if found and missing:
                self._refuse(f'{name} has no severity {missing[0]}, which --severities asks for')
            if found:
                parts[name] = [severity for severity in found if self.severities is None or severity in self.severities]
        if not parts:
            self._refuse('there is no corruption in it, neither <type>/<severity>/<class>/* nor <type>.npy')
        return parts

    def _severities(self, name: str) -> list[int]:
        if self.numpy:
            return list(SEVERITIES) if (self.folder / f'{name}.npy').is_file() else []
        return [severity for severity in SEVERITIES if (self.folder / name / str(severity)).is_dir()]

    def _check_classes(self, folder: Path, expected: set[str]):
        found = {path.name for path in folder.iterdir() if path.is_dir() and next(path.iterdir(), None) is not None}
        if found != expected:
            differences = {'missing': expected - found, 'unknown': found - expected}
            which = [f'{len(names)} {what} (such as {min(names)})' for what, names in differences.items() if names]
            self._refuse(f'classes in {folder.relative_to(self.folder)} are not those of --split: {", ".join(which)}')

    def _arrays(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        try:
            images, labels = (np.load(self.folder / f'{each}.npy', mmap_mode='r') for each in (name, 'labels'))
        except (OSError, ValueError) as error:
            self._refuse(f'{error}')
        if images.ndim != 4 or images.dtype != np.uint8 or len(images) % 5 or len(labels) != len(images):
            self._refuse(f'{name}.npy {images.shape} and labels.npy {labels.shape} are not five severities of images')
        return images, labels

    def _open(self, data: Any, name: str, severity: int) -> Dataset:
        if not self.numpy:
            return data.open_folder(self.folder / name / str(severity))
        images, labels = self._arrays(name)
        count = len(images) // 5
        part = slice((severity - 1) * count, severity * count)
        return NumpyImages(images[part], labels[part], data.image_mode)

    def _refuse(self, why: str):
        raise OptionError(f'--imagenet-c {self.folder}: {why}.')


def create(args: Namespace) -> Corruptions | None:
    """Build the evaluator from the options of validate.py."""
    if not args.imagenet_c:
        return None
    return Corruptions(
        args.imagenet_c, types=args.corruptions, severities=args.severities, resize=args.corruption_resize
    )


if __name__ == '__main__':
    from regaug import cli
    from regaug.evaluators.corrupt import main

    cli.run(main)
