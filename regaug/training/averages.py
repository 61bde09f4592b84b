"""Book-keeping of losses and loss terms: averages over an epoch, last values, what there is to tell of an update."""

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from timm.utils import AverageMeter, reduce_tensor

FULL = 'full'  # the first term: the full network


def flat_name(term: str, key: str):
    """Name of a metric in the summary and in W&B: the first term's metrics stand alone."""
    return key if term == FULL else f'{term}_{key}'


class TermAverages:
    """Sample-weighted averages of everything the terms return besides their output, kept on the device."""

    def __init__(self):
        self.sums = OrderedDict()
        self.counts = {}
        self.last = {}

    def update(self, term: str, result: dict[str, Any], batch_size: int):
        """Add the result of a term for a micro-batch; the first term's loss has a place of its own in the engine."""
        tensors = {}
        for key, value in result.items():
            if key == 'output' or (term == FULL and key == 'loss'):
                continue
            name = (term, key)
            if torch.is_tensor(value):
                self.last[name] = tensors[name] = value.detach().float()
                if name not in self.sums:
                    self.sums[name] = torch.zeros_like(tensors[name])
            else:
                self.last[name] = float(value)
                self.sums[name] = self.sums.get(name, 0.0) + self.last[name] * batch_size
            self.counts[name] = self.counts.get(name, 0) + batch_size
        if tensors:  # as lists: one kernel for the thirty numbers that a method may have
            weighted = torch._foreach_mul(list(tensors.values()), batch_size)
            torch._foreach_add_([self.sums[name] for name in tensors], weighted)

    def compute(self, world_size: int = 1, device: torch.device | None = None):
        """Averages over the epoch so far and over all ranks, which must have seen the same terms.

        Args:
            device: where the ranks meet; the tensors are there, if there are any.

        Returns:
            {name: float}, in the order in which the terms ran.
        """
        averages = [value / self.counts[name] for name, value in self.sums.items()]
        return OrderedDict(
            zip((flat_name(*name) for name in self.sums), to_floats(averages, world_size, device), strict=True)
        )

    def last_values(self):
        """{(term, key): float} of the last micro-batch on this rank."""
        return dict(zip(self.last, to_floats(self.last.values()), strict=True))


def to_floats(values: Any, world_size: int = 1, device: torch.device | None = None):
    """Numbers and one-element tensors as a list of floats, waiting for the device once; averaged over ranks on it."""
    values = list(values)
    if world_size > 1 and values:
        values = torch.stack([torch.as_tensor(value, device=device, dtype=torch.float32) for value in values])
        return reduce_tensor(values, world_size).tolist()
    tensors = [value for value in values if torch.is_tensor(value)]
    fetched = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(fetched) if torch.is_tensor(value) else float(value) for value in values]


@dataclass
class UpdateRecord:
    """What there is to tell about an update at a log interval.

    Attributes:
        loss: the first term's loss, averaged over the ranks.
        terms: {(term, key): value} of the last micro-batch.
        samples: images of the update, over all ranks.
        epoch_samples: images of the epoch so far, over all ranks.
        update_time, data_time: seconds per update, and of these waiting for data.
        grad_norm: L2 norm of the gradients before clipping, or None.
    """

    epoch: int
    update_idx: int
    updates_per_epoch: int
    num_updates: int
    loss: AverageMeter
    terms: dict
    lr: float
    samples: int
    epoch_samples: int
    update_time: AverageMeter
    data_time: AverageMeter
    grad_norm: float | None


def note_losses(losses: Any, pending: Any, grad_norm: Any, *, may_overflow: bool = False):
    """Fetch what an update's micro-batches lost, waiting for the device once.

    Args:
        losses: `AverageMeter` that takes them.
        pending: (loss on the device as a share of the update's, micro-batches of the update, samples) of each.
        grad_norm: norm of the gradients on the device, or None.
        may_overflow: a loss scaler skips the update where the norm is not finite, as it does now and then.

    Returns:
        (grad_norm, finite): the norm as a float or None; whether all losses are finite, and the norm, if it must be.
    """
    values = [loss for loss, _, _ in pending] + ([] if grad_norm is None else [grad_norm])
    dtype = max((value.dtype for value in values), key=lambda dtype: dtype.itemsize)
    values = torch.stack([value.to(dtype) for value in values]).tolist()
    for value, (_, group_size, batch_size) in zip(values, pending):
        losses.update(value * group_size, batch_size)
    finite = all(map(math.isfinite, values[: len(pending)] if may_overflow else values))
    return (None if grad_norm is None else values[-1]), finite
