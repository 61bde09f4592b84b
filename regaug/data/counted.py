"""Which samples of an evaluation count: each image once, and only those that could be read."""

from typing import Any

import torch
from timm.task import evaluation_sample_limit

_LEFT_OUT = -100  # class index that no loss takes


def left_out(target: torch.Tensor):
    """What takes the place of an unreadable image's target, by which `Counted` knows it."""
    if torch.is_tensor(target) and target.ndim:
        return torch.full_like(target, float('nan'))
    return _LEFT_OUT


class Counted:
    """Tells, batch by batch, which samples of a loader count.

    Those that only pad a process's share to the length of the others' do not; nor do images that cannot be read, which
    `Samples` marks.

    Args:
        loader: timm's evaluation loader, at its beginning.

    Attributes:
        unreadable: images of this process's share that were left out so far.
    """

    def __init__(self, loader: Any):
        self.dataset = loader.dataset
        self.left = evaluation_sample_limit(loader)
        self.unreadable = 0

    def __call__(self, target: torch.Tensor) -> slice | torch.Tensor:
        """Index of the samples that count in the next batch.

        Args:
            target: Class indices [B] or label vectors [B, K].
        """
        size = len(target) if self.left is None else min(self.left, len(target))
        self.left = None if self.left is None else self.left - size
        if not getattr(self.dataset, 'num_unreadable', 0):  # a look at the target would wait for the device
            return slice(size)
        target = target[:size]
        readable = target != _LEFT_OUT if target.ndim == 1 else ~target.isnan().any(dim=1)
        self.unreadable += size - int(readable.sum())
        return readable.nonzero()[:, 0]
