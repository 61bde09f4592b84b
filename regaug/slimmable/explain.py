"""Explain a plan: what a width keeps of every layer, and why the rest stays."""

from collections.abc import Sequence

from torch import nn

from regaug.slimmable.labels import Counts
from regaug.slimmable.layout import Layout
from regaug.slimmable.plan import SlimmablePlan, layer_weights

HEADER = ('layer', 'type', 'out', 'in', 'at full width because')
STATED = (('out_channels', 'out_features'), ('in_channels', 'in_features'))


def explain(model: nn.Module, plan: SlimmablePlan, width: float, width_divisor: int = 8) -> str:
    """Describe a plan at a width: a table of layers, a summary, and what verification repaired.

    Args:
        model: the one that was planned.

    Returns:
        Lines of text. A layer is a module with a weight that has channels; `out` and `in` are the kept ones of all.
    """
    counts = plan.counts(width, width_divisor)
    modules = dict(model.named_modules())
    rows = [HEADER]
    for layer, weights in layer_weights(model).items():
        out, into = (_channels(plan.layout, layer, weights[0], dim, counts) for dim in (0, 1))
        rows.append((layer, type(modules[layer]).__name__, out, into, plan.full.get(layer, '')))
    summary = plan.report(width, width_divisor).splitlines()[0]
    repairs = plan.repairs or ['nothing']
    return '\n'.join([*_table(rows), '', summary, 'repaired by verification:', *(f'  {line}' for line in repairs)])


def _channels(layout: Layout, layer: str, weight: str, dim: int, counts: Counts) -> str:
    """Say how many output (0) or input (1) channels a layer keeps of how many."""
    # Dimensions of the weight do not tell the channels of a grouped or transposed convolution; its attributes do.
    for attribute in STATED[dim]:
        if (layer, attribute) in layout.patches:
            patch = layout.patches[layer, attribute]
            return f'{patch.value(counts)}/{patch.full}'
    size = layout.shapes[weight][dim]
    return f'{counts.size(layout.axes[weight][dim], size)}/{size}'


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align the columns of a table."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join(map(str.ljust, row, widths)).rstrip() for row in rows]
