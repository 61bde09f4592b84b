"""Run a model at a smaller width, with gradients landing in the model's own parameters."""

import contextlib
from collections.abc import Iterable

import torch
from torch import nn

from regaug.slimmable.layout import Ranges
from regaug.slimmable.plan import SlimmablePlan
from regaug.slimmable.structure import (
    Slots,
    batch_norms,
    named_tensors,
    structure_copy,
    tensor_slots,
    untrack_batch_statistics,
)

MAX_CACHED_WIDTHS = 64


class Twin:
    """A copy of a model's modules around the model's own parameters, which runs at any width.

    At a width below one the modules of the copy hold slices of the parameters, so that the cost falls with the width and
    autograd adds every gradient to the model's own `.grad`. The model itself is never touched. Batch-norm uses the
    statistics of the batch in both modes and keeps none; other buffers are private copies, taken now.

    Build it when the model has reached its device, memory format and kind of batch-norm, and before DDP. It is not a
    module, so a model or task that holds it has no more parameters or state-dict keys than before.

    The width stays set after the forward pass: `set` and `at` install slices of the parameters as they are then, for
    any number of passes. A backward pass that recomputes activations (gradient checkpointing) runs the modules again and
    must come before the next `set`, `at` or `clear`; any other backward pass may come later. `clear` after the backward
    pass drops the slices. After an optimiser step, set the width anew.

    Args:
        model: the model that `plan` was made for, or the same network after a conversion that keeps parameter names.
        width_divisor: kept channels are rounded to multiples of this.

    Attributes:
        module: the copy; what to compile, and to set gradient checkpointing or dropout on. Its parameters are slices
            while a width is set: take parameters from the model, never from here.
        width: the width that is set, 1.0 when cleared.

    Raises:
        ValueError: the model's parameters are not those of the plan.
    """

    def __init__(self, model: nn.Module, plan: SlimmablePlan, width_divisor: int = 8):
        plan.layout.check_tensors(model)
        self.plan = plan
        self.width_divisor = width_divisor
        self.width = 1.0
        self._model = model
        self.module = structure_copy(
            model, lambda name, tensor: tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
        )
        untrack_batch_statistics(self.module)
        modules, slots = dict(self.module.named_modules()), tensor_slots(self.module)
        tensors, smallest = named_tensors(self.module), plan.layout.smallest()
        self._attributes = {key: vars(modules[key[0]]) for key in plan.layout.patches}
        self._tensors = {name: (tensor, slots[name]) for name, tensor in tensors.items() if smallest[name]}
