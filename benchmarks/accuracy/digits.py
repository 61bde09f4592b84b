"""The embedded digits as image folders: some images of each class to train on, all others to test on."""

import os
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from regaug.data.digits import load_digits
from regaug.data.subsets import stratified_subset

_MAX_LEVEL = 16


def write_digits(folder: Path, per_class: int, split: int) -> Path:
    """Writes `train/<digit>/` and `test/<digit>/` as PNG files of 8x8 pixels, grey levels stretched to 0..255.

    No image is in both. The folder appears whole or not at all; one that is there is left as it is.

    Args:
        folder: Where to.
        per_class: Training images of each class.
        split: Which of the many possible subsets, as in `--label-split`.

    Returns:
        The folder.

    Raises:
        OptionError: A class has no more than so many images.
    """
    if folder.exists():
        return folder
    images, labels = load_digits()
    chosen = set(stratified_subset(labels, per_class, split).tolist())
    unfinished = folder.with_name(f'{folder.name}.tmp')
    shutil.rmtree(unfinished, ignore_errors=True)
    for part in ('train', 'test'):
        for digit in range(10):
            (unfinished / part / str(digit)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        pixels = np.rint(image * (255 / _MAX_LEVEL)).astype(np.uint8)
        part = 'train' if index in chosen else 'test'
        Image.fromarray(pixels).save(unfinished / part / str(label) / f'{index:04d}.png')
    os.replace(unfinished, folder)
    return folder
