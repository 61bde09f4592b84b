"""Plan which channels of a network a sub-network keeps.

The network is traced once on meta tensors (`trace`), every axis of every tensor is labelled with the channels it holds
(`labels`, `rules`), and the labels are checked by running the narrowed network (`verify`). Anything that is not
understood stays at full width. The channels that a sub-network keeps are the first ones of every class, as in slimmable
networks (Yu et al., arXiv 1812.08928) and GradAug (Yang et al., arXiv 2006.07989).
"""

import collections
import math
from collections.abc import Sequence

import torch
from torch import nn

from regaug.slimmable.labels import Channels, Counts, resolve, why_frozen
from regaug.slimmable.layout import Layout
from regaug.slimmable.rounding import kept_units
from regaug.slimmable.structure import meta_copy, named_tensors, structure_copy, to_meta, untrack_batch_statistics
from regaug.slimmable.trace import run_trace, untouched_generators
from regaug.slimmable.verify import verify

TRACE_BATCH = 2  # batch-norm in train mode needs more than one value per channel
NAMES_IN_REPORT = 3
NOT_LEARNT = 'it holds no output channels of a convolution or projection'


class SlimmablePlan:
    """Which parameters of a model get narrower with the width, and by which indices.

    The model is not touched, needs no weights (it may be on the meta device), and is not kept. No random generator
    moves. Plan before a conversion to synchronised batch-norm; a converted model has the same names and fits the plan.

    Args:
        model: any network that maps [B, C, H, W] to one or several tensors.
        example_size: (C, H, W) of an input. Models with global pooling also run at other sizes afterwards.
        full: names of modules whose outputs keep all channels at every width. A name stands for the modules inside it
            too: `('fpn',)` keeps every map of a feature pyramid as wide as the heads after it expect.

    Attributes:
        layers: names of the modules that hold slimmed weights.
        full: name of every other module with weights -> why it stays at full width.
        layout: the labels, for `Twin`.
        repairs: what verification repaired, one line each.

    Raises:
        ValueError: the model cannot be traced, no layer can be slimmed, or it has or runs no module named in `full`.
    """

    def __init__(self, model: nn.Module, example_size: Sequence[int], full: Sequence[str] = ()):
        self._model_name = type(model).__name__
        for name in full:
            try:
                model.get_submodule(name)
            except AttributeError as error:
                raise ValueError(f'full={name!r}: {self._model_name} has no module of that name') from error
        pristine = _meta_copy(model)
        dtype = next((parameter.dtype for parameter in model.parameters()), torch.get_default_dtype())
        x = torch.empty((TRACE_BATCH, *example_size), dtype=dtype, device='meta')
        with untouched_generators():
            try:
                trace = run_trace(structure_copy(pristine, to_meta), x, full)
                self.repairs = verify(trace, pristine, x)
            except Exception as error:
                raise ValueError(
                    f'{self._model_name} cannot be slimmed: tracing it on an input of size {tuple(example_size)} fails '
                    f'({type(error).__name__}: {error})'
                ) from error
        self.layout: Layout = trace.labels.layout
        self._costs = trace.labels.costs
        _set_unit_sizes(self.layout)
        self._kinds = self.layout.kinds()
        self._kept: dict[tuple[int, ...], tuple[float, float]] = {}
        self.layers, self.full = _classify(pristine, self.layout)
        if not self.layers:
            raise ValueError(f'{self._model_name} has no layer that can be slimmed: {self.reasons()}')

    def counts(self, width: float, width_divisor: int = 8) -> Counts:
        """Return the units that every class keeps at a width in (0, 1], rounded as `kept_units` says.

        Raises:
            ValueError: the width or the divisor is out of range.
        """
        if not 0 < width <= 1:
            raise ValueError(f'width must be in (0, 1], not {width}')
        if width_divisor < 1:
            raise ValueError(f'width divisor must be at least 1, not {width_divisor}')
        return Counts(lambda channels: kept_units(channels.units, channels.unit_size, width, width_divisor))

    def rounded(self, width: float, width_divisor: int = 8) -> tuple[int, ...]:
        """Return a key that widths have in common if they round to the same channels everywhere."""
        return tuple(map(self.counts(width, width_divisor).units, self._kinds))

    def kept(self, width: float, width_divisor: int = 8) -> tuple[float, float]:
        """Return the fractions of parameters and of multiply-adds (convolutions, matrix products) that remain."""
        key = self.rounded(width, width_divisor)
        if key not in self._kept:
            counts, layout = self.counts(width, width_divisor), self.layout
            parameters = [list(zip(layout.shapes[name], layout.axes[name], strict=True)) for name in layout.parameters]
            self._kept[key] = _share(parameters, counts), _share(self._costs, counts)
        return self._kept[key]

    def report(self, min_width: float, width_divisor: int) -> str:
        """Say in a few lines how much is slimmed, what remains at the smallest width, what stays full and why."""
        parameters, flops = self.kept(min_width, width_divisor)
        total = len(self.layers) + len(self.full)
        lines = [
            f'{self._model_name}: {len(self.layers)} of {total} layers are slimmed; width {min_width:g} (divisor '
            f'{width_divisor}) keeps {parameters:.1%} of the parameters and {flops:.1%} of the FLOPs'
        ]
        if self.full:
            lines.append(f'at full width: {self.reasons()}')
        return '\n'.join(lines)

    def reasons(self) -> str:
        """Say why modules stay at full width."""
        by_reason = collections.defaultdict(list)
        for name, reason in self.full.items():
            by_reason[reason].append(name)
        parts = []
        for reason, names in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            shown = ', '.join(names[:NAMES_IN_REPORT]) + (', ...' if len(names) > NAMES_IN_REPORT else '')
            parts.append(f'{len(names)} ({shown}): {reason}')
        return '; '.join(parts) or 'it has no layer with weights'


def _meta_copy(model: nn.Module) -> nn.Module:
    copied = meta_copy(model).train()
    untrack_batch_statistics(copied)
    if hasattr(copied, 'set_grad_checkpointing'):
        copied.set_grad_checkpointing(False)
    return copied


def _set_unit_sizes(layout: Layout):
    unit_sizes: dict[Channels, int] = {}
    for name in layout.parameters:
        for axis in layout.axes[name]:
            for channels, size in resolve(axis):
                if channels is not None:
                    unit = size // channels.units
                    unit_sizes[channels] = min(unit, unit_sizes.get(channels, unit))
    for channels, unit in unit_sizes.items():
        channels.unit_size = unit


def layer_weights(model: nn.Module) -> dict[str, list[str]]:
    """Find the layers of a model: modules with weights that have channels, and the names of those weights."""
    names = {id(tensor): name for name, tensor in named_tensors(model).items()}
    layers = {}
    for module_name, module in model.named_modules():
        own = [(key, parameter) for key, parameter in module.named_parameters(recurse=False) if key.endswith('weight')]
        weights = [names[id(parameter)] for _, parameter in own if parameter.dim() > 1 and max(parameter.shape[:2]) > 1]
        if weights:
            layers[module_name] = weights
    return layers


def _classify(model: nn.Module, layout: Layout) -> tuple[list[str], dict[str, str]]:
    """Tell the slimmed layers from the others, which come with the reason."""
    layers, full = [], {}
    for layer, weights in layer_weights(model).items():
        if any(layout.depends_on_width(name) for name in weights):
            layers.append(layer)
        else:
            reasons = [why_frozen(axis) for name in weights for axis in layout.axes[name][:2]]
            full[layer] = ' and '.join(dict.fromkeys(filter(None, reasons))) or NOT_LEARNT
    return layers, full


def _share(products: list[list], counts: Counts) -> float:
    kept = sum(math.prod(counts.size(axis, size) for size, axis in product) for product in products)
    full = sum(math.prod(size for size, _ in product) for product in products)
    return kept / full
