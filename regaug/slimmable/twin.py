"""Run a model at a smaller width, with gradients landing in the model's own parameters."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from regaug.slimmable.plan import SlimmablePlan
from regaug.slimmable.slices import Cut, slices_of
from regaug.slimmable.structure import (
    Slots,
    batch_norms,
    named_tensors,
    structure_copy,
    tensor_slots,
    untrack_batch_statistics,
)

MAX_RECIPES = 256  # enough for all that widths from 0.8 up round to at divisor 8 in ResNet, EfficientNet and ConvNeXt


class Twin:
    """A copy of a model's modules around the model's own parameters, which runs at any width.

    At a width below one the modules of the copy hold slices of the parameters, so that the cost falls with the width
    and autograd adds every gradient to the model's own `.grad`. The model itself is never touched. Batch-norm uses the
    statistics of the batch in both modes and keeps none; other buffers are private copies, taken now.

    Build it when the model has reached its device, memory format and kind of batch-norm, and before DDP. It is not a
    module, so a model or task that holds it has no more parameters or state-dict keys than before. Hooks of the model
    do not run in the twin.

    The width stays set after the forward pass, until the next `set` or `clear`: a backward pass that recomputes
    activations (gradient checkpointing) runs the modules again at the width that is set then. Any other backward pass
    may come at any time. `clear` after the backward pass drops the slices and what they hold of the graph. Set the
    width anew after a change of the parameters, such as an optimiser's step: a slice may be a copy.

    Args:
        model: the model that `plan` was made for, or the same network after a conversion that keeps parameter names.
        width_divisor: kept channels are rounded to multiples of this.
        in_place: add gradients of slices into the parameters' `.grad` in place, the same sums with fewer steps. For
            `backward` in one process: DDP and `torch.autograd.grad` would see no gradient.

    Attributes:
        module: the copy; what to compile, and to set gradient checkpointing or dropout on. Its parameters are slices
            while a width is set: take parameters from the model, never from here.
        width: the width that is set, 1.0 when cleared.

    Raises:
        ValueError: the model's parameters are not those of the plan.
    """

    def __init__(self, model: nn.Module, plan: SlimmablePlan, width_divisor: int = 8, in_place: bool = False):
        plan.layout.check_tensors(model)
        self.plan = plan
        self.width_divisor = width_divisor
        self.in_place = in_place
        self.width = 1.0
        self.module = structure_copy(
            model, lambda name, tensor: tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
        )
        untrack_batch_statistics(self.module)
        modules, slots = dict(self.module.named_modules()), tensor_slots(self.module)
        self._attributes = {key: vars(modules[key[0]]) for key in plan.layout.patches}
        self._tensors: dict[str, tuple[torch.Tensor, Slots]] = {
            name: (tensor, slots[name])
            for name, tensor in named_tensors(self.module).items()
            if plan.layout.depends_on_width(name)
        }
        self._recipes: dict[tuple[int, ...], tuple] = {}

    def __call__(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    @torch.enable_grad()
    def set(self, width: float):
        """Run at `width`, a fraction of the channels in (0, 1], until the next `set` or `clear`."""
        attributes, cuts = self._recipe(width)
        for (module, attribute), value in attributes.items():
            self._attributes[module, attribute][attribute] = value
        tensors = [tensor for tensor, _ in self._tensors.values()]
        parts = slices_of(tensors, cuts) if self.in_place else [cut(tensor) for cut, tensor in zip(cuts, tensors)]
        for (_, slots), part in zip(self._tensors.values(), parts):
            for table, key in slots:
                table[key] = part
        self.width = width

    def clear(self):
        """Drop the slices; the twin then runs at full width."""
        self.set(1.0)

    def train(self, mode: bool = True) -> 'Twin':
        """Set the mode of the copy; batch-norm uses the statistics of the batch in either."""
        self.module.train(mode)
        return self

    def _recipe(self, width: float) -> tuple[dict, list[Cut]]:
        """Return attributes and cuts of a width; drawn widths seldom repeat, but what they round to does."""
        key = self.plan.rounded(width, self.width_divisor)
        if key not in self._recipes:
            if len(self._recipes) == MAX_RECIPES:
                del self._recipes[next(iter(self._recipes))]
            self._recipes[key] = self._new_recipe(width)
        return self._recipes[key]

    def _new_recipe(self, width: float) -> tuple[dict, list[Cut]]:
        counts = self.plan.counts(width, self.width_divisor)
        layout = self.plan.layout
        cuts = [Cut(tensor, layout.ranges(name, counts)) for name, (tensor, _) in self._tensors.items()]
        return layout.attributes(counts), cuts


def extract(model: nn.Module, plan: SlimmablePlan, width: float, width_divisor: int = 8) -> nn.Module:
    """Make a network of its own with the channels that `model` keeps at `width`, in eval mode.

    Batch-norm starts from fresh running statistics: those of the full network do not fit a sub-network. Estimate them
    with `calibrate`. Everything else that the model learnt is copied.

    Raises:
        ValueError: the model's parameters are not those of the plan, or a module other than batch-norm keeps running
            statistics (EvoNorm-B), which `calibrate` cannot estimate.
    """
    plan.layout.check_tensors(model)
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) and hasattr(module, 'momentum') and hasattr(module, 'running_var'):
            kind = f'{name} ({type(module).__name__})'
            raise ValueError(f'{type(model).__name__}: statistics of {kind} cannot be estimated for a sub-network')
    small = plan.layout.narrowed_copy(model, plan.counts(width, width_divisor))
    for norm in batch_norms(small):
        if norm.running_mean is not None:
            norm.running_mean = norm.running_mean.new_zeros(norm.num_features)
            norm.running_var = norm.running_var.new_ones(norm.num_features)
            norm.reset_running_stats()
    small.train()  # some attention layers cache tensors of the full width until they are set to train mode
    return small.eval()


@torch.no_grad()
def calibrate(module: nn.Module, batches: Iterable[torch.Tensor]) -> int:
    """Estimate batch-norm's running statistics anew, as the mean over batches; nothing else of the module changes.

    Args:
        module: a real network, such as `extract` gives. Its mode is the same afterwards.
        batches: inputs [B, C, H, W] on the module's device, best of equal size. Autocast, if any, is the caller's.

    Returns:
        The number of images seen.

    Raises:
        ValueError: there is no batch.
    """
    norms = [norm for norm in batch_norms(module) if norm.track_running_stats]
    modes = [(part, part.training) for part in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean
        norm.train()
    images = 0
    try:
        for batch in batches:
            module(batch)
            images += len(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, mode in modes:
            part.training = mode
    if not images:
        raise ValueError('batch-norm statistics cannot be estimated from no images')
    return images
