"""The embedded data set `regaug/digits`: 1,797 handwritten digits, so that a first training run needs no download.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits" (1998), UCI Machine Learning Repository,
https://archive.ics.uci.edu/dataset/80, CC BY 4.0. `assets/digits.npz` holds the test part of that set (the part that
scikit-learn bundles too), unchanged: images of 8x8 pixels with grey levels 0 (paper) to 16 (ink), in the original
order; its licence note lies beside it.

The split is ours and fixed: with the images sorted by class (in the original order within a class), every fifth one,
from the first on, is for validation. That gives 1,437 training and 360 validation images with nearly the same share
of each class. The same writers occur in both parts.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np
from timm.data import ImageDataset
from timm.data.readers.reader import Reader

from regaug.errors import OptionError

SPLITS = ('train', 'validation')
_ASSET = Path(__file__).parent.parent / 'assets' / 'digits.npz'
_MAX_LEVEL = 16


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Reads the whole set in its original order.

    Returns:
        Grey levels 0..16 as uint8 [1797, 8, 8], and labels 0..9 as uint8 [1797].
    """
    with np.load(_ASSET, allow_pickle=False) as asset:
        return asset['images'], asset['labels']


def split_indices(labels: np.ndarray, split: str) -> np.ndarray:
    """Places in the original order of the images of one split, ascending (the rule is in the module's docstring).

    Args:
        labels: Labels of the whole set, [N].
        split: 'train' or 'validation'.

    Raises:
        OptionError: There is no such split.
    """
    if split not in SPLITS:
        raise OptionError(
            f'Split {split!r} of regaug/digits does not exist (--train-split, --val-split): '
            f'choose {" or ".join(map(repr, SPLITS))}.'
        )
    is_validation = np.zeros(len(labels), dtype=bool)
    is_validation[np.argsort(labels, kind='stable')[::5]] = True
    return np.flatnonzero(is_validation == (split == 'validation'))


class DigitsReader(Reader):
    """Reader of timm's protocol: yields an open image file and a label, names files after their original place.

    Attributes:
        class_to_idx: {'0': 0, ..., '9': 9}.
        samples: (file name, label) of every image, as in timm's folder reader.
    """

    def __init__(self, split: str):
        super().__init__()
        images, labels = load_digits()
        indices = split_indices(labels, split)
        self.images = np.rint(images[indices] * (255 / _MAX_LEVEL)).astype(np.uint8)
        self.class_to_idx = {str(digit): digit for digit in range(10)}
        self.samples = [(f'{labels[i]}/{i:04d}.pgm', int(labels[i])) for i in indices]

    def __getitem__(self, index: Any):
        image = self.images[index]
        height, width = image.shape
        # timm's data set decodes what it gets: a PGM file is a short header and the bytes as they are.
        return io.BytesIO(b'P5 %d %d 255\n' % (width, height) + image.tobytes()), self.samples[index][1]

    def __len__(self):
        return len(self.samples)

    def _filename(self, index: Any, basename: bool = False, absolute: bool = False):
        name = self.samples[index][0]
        return name.rpartition('/')[2] if basename else name


def create_digits(split: str, *, input_img_mode: str = 'RGB', **kwargs) -> ImageDataset:
    """Builds one split of the digits as timm's `ImageDataset`, for timm's `create_loader`.

    Args:
        split: 'train' or 'validation'.
        input_img_mode: 'RGB' for models with 3 input channels, 'L' for 1.
        **kwargs: More arguments of `ImageDataset` (`transform`, `target_transform`, ...).

    Returns:
        Data set of (PIL image of 8x8 pixels, label 0..9), grey levels stretched to 0..255.

    Raises:
        OptionError: There is no such split.
    """
    return ImageDataset(root=None, reader=DigitsReader(split), input_img_mode=input_img_mode, **kwargs)
