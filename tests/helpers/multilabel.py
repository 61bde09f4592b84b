"""What the tests of `--task multilabel` share: images of four quadrants, bright or dark, four independent labels."""

import io

import numpy as np
from PIL import Image
from timm.data.readers.reader import Reader

from tests.helpers.training import CLASSES, train_args

COUNTS = {'train': 64, 'validation': 40}
AS_THEY_ARE = ('--hflip', 0, '--color-jitter', 0, '--scale', 1, 1, '--ratio', 1, 1)  # a flip exchanges labels
LABELS = ('--dataset', 'hfds/quadrants', '--task', 'multilabel', '--val-split', 'validation', *AS_THEY_ARE)


def quadrants(split):
    """PNG files of noise whose quadrants are bright where a label holds, and the labels bool [N, 4]."""
    rng = np.random.default_rng(len(split))
    labels = rng.random((COUNTS[split], CLASSES)) < 0.4
    labels[0] = False
    bright = labels.reshape(-1, 2, 2).repeat(16, axis=1).repeat(16, axis=2)[..., None]
    pixels = (rng.normal(90, 40, (len(labels), 32, 32, 3)) + 70 * bright).clip(0, 255).astype(np.uint8)
    return [png(image) for image in pixels], labels


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, 'PNG')
    return buffer.getvalue()


class LabelReader(Reader):
    """Reader of timm's protocol for images of several labels, in memory."""

    def __init__(self, images, labels, dense):
        super().__init__()
        self.images, self.labels, self.dense_target = images, labels, dense
        self.class_to_idx = {'no': 0, 'yes': 1} if dense else {str(label): label for label in range(CLASSES)}

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        row = self.labels[index]
        return io.BytesIO(self.images[index]), row.tolist() if self.dense_target else np.flatnonzero(row).tolist()

    def _filename(self, index, basename=False, absolute=False):
        return f'{index}.png'


def label_args(*options):
    return train_args(*LABELS, '--num-classes', CLASSES, *options)
