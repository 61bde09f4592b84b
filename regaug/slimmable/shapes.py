"""Tries which images a model can take, by shapes alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from regaug.slimmable.structure import meta_copy
from regaug.slimmable.trace import run_shapes, untouched_generators


class Shapes(TorchDispatchMode):
    """Runs operators on meta tensors, see `run_shapes`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None):
        return run_shapes(func, args, kwargs or {})


def shape_error(model: nn.Module, shape: Sequence[int], *, batch_size: int = 2, training: bool = False) -> str | None:
    """Run the shapes of a model; neither the model nor a random generator is touched.

    Args:
        model: any model of images.
        shape: (C, H, W).
        batch_size: images in a batch.
        training: run the model in training mode.

    Returns:
        One line that says why the model cannot take such images, or None. What only shows that the model cannot be
        tried without data is no reason.
    """
    dtype = next(model.parameters()).dtype
    images = torch.empty((batch_size, *shape), dtype=dtype, device='meta')
    try:
        with torch.no_grad(), untouched_generators(), Shapes():
            meta_copy(model).train(training)(images)
    except (AssertionError, RuntimeError, ValueError, IndexError) as error:
        reason = ' '.join(str(error).split())
        return None if isinstance(error, NotImplementedError) or 'meta' in reason else reason[:200]
    return None


def single_values(model: nn.Module, shape: Sequence[int]) -> bool:
    """Whether batch-norm would see one value per channel when a single image is trained on, which it refuses."""
    reason = shape_error(model, shape, batch_size=1, training=True)
    return reason is not None and 'more than 1 value per channel' in reason
