"""What the tests of mixing share: images, generators, ways to look at what was pasted."""

import numpy as np
import torch

SIDE = 16


LABELS = dict(num_classes=8, smoothing=0.1)


def images(count=8, channels=3, height=SIDE, width=SIDE, seed=3):
    """Images of noise: no pixel is like another, and none is zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator)


def rng(seed=0):
    return np.random.default_rng(seed)


def distance(sample, others):
    """Largest difference between the distribution functions of two samples (Kolmogorov and Smirnov)."""
    points = np.concatenate([sample, others])
    below = [np.searchsorted(np.sort(values), points, side='right') / len(values) for values in (sample, others)]
    return np.abs(below[0] - below[1]).max()


def rectangle(mask):
    """Top, bottom, left and right of the pixels where a mask [H, W] is true, which fill the rectangle; or None."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    assert mask[top:bottom, left:right].all()
    return top, bottom, left, right
