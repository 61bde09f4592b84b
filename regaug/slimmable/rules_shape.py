"""What operators that move or select elements do to channel labels: one function per operator, as in rules.py."""

import math
from collections.abc import Sequence

import torch

from regaug.slimmable.call import FULL_PARTNER, MAX_CONSTANT_GROUPS, Call, rule
from regaug.slimmable.labels import MAX_PIECES, Axis, axis_size, between, freeze, is_fixed, resolve, segments, unify


def merge_dims(dims: list[tuple[int, Axis]]) -> Axis:
    """Return the axis of dimensions flattened into one, given (size, axis) from the outermost to the innermost."""
    merged, inner = None, 1
    for size, axis in reversed(dims):
        if size == 1:
            continue
        if inner == 1:
            merged = None if is_fixed(axis) else axis
        elif not is_fixed(axis):
            freeze(merged, 'it is flattened under another slimmed dimension')
            merged = [(channels, piece * inner) for channels, piece in resolve(axis)]
        elif len(pieces := resolve(merged)) * size <= MAX_PIECES and not is_fixed(merged):
            merged = pieces * size
        else:
            freeze(merged, 'it is flattened into too many repeats')
            merged = None
        inner *= size
    return merged


def split_dim(axis: Axis, sizes: list[int]) -> list[Axis]:
    """Return the axes of one dimension viewed as several.

    The outer dimension carries the label if whole outer steps can be dropped: when all units are multiples of the inner
    size, or when there are more than four outer steps (attention heads). The inner dimension gets narrower if the axis
    repeats the same channels (heads flattened under the batch), or has few outer steps, which then are a constant
    structure (the three of query, key and value, radix, shuffled groups).
    """
    fixed = [None] * len(sizes)
    if is_fixed(axis):
        return fixed
    outer, inner = sizes[0], math.prod(sizes[1:])
    if outer == 1:
        return [None, *split_dim(axis, sizes[1:])]
    if inner == 1:
        return [axis, *fixed[1:]]
    pieces = resolve(axis)
    units = [size if channels is None else size // channels.units for channels, size in pieces]
    if all(unit % inner == 0 for unit in units):
        return [[(channels, size // inner) for channels, size in pieces], *fixed[1:]]
    pattern = pieces[: len(pieces) // outer]
    if pieces == pattern * outer:
        return [None, *split_dim(pattern, sizes[1:])]
    if outer <= MAX_CONSTANT_GROUPS:
        return [None, *split_dim(segments(axis, outer, FULL_PARTNER)[0], sizes[1:])]
    if len(pieces) > 1:
        freeze(axis, 'a concatenation is split into heads or groups')
        return fixed
    channels = pieces[0][0]
    channels.coarsen(math.gcd(channels.units, outer))
    return fixed if channels.frozen else [[(channels, outer)], *fixed[1:]]


def matching_groups(old: list[int], new: list[int]) -> list[tuple[list[int], list[int]]]:
    """Divide the dimensions of two shapes of as many elements into shortest groups of equal products."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        start_i, start_j = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while (a := math.prod(old[start_i:i])) != (b := math.prod(new[start_j:j])):
            i, j = (i + 1, j) if a < b else (i, j + 1)
        groups.append((list(range(start_i, i)), list(range(start_j, j))))
    return groups


@rule('view', '_unsafe_view', '_reshape_alias')
def view(call: Call) -> list[list[Axis]]:
    x, out = call.inputs[0], call.outputs[0]
    axes = call.axes(x)
    if x.numel() == 0:
        for axis in axes:
            freeze(axis, 'it belongs to an empty tensor')
        return [[None] * out.dim()]
    result: list[Axis] = []
    for old, new in matching_groups(list(x.shape), list(out.shape)):
        if len(old) == len(new) == 1:
            result.append(axes[old[0]])
        elif new:
            result += split_dim(merge_dims([(x.shape[dim], axes[dim]) for dim in old]), [out.shape[dim] for dim in new])
    return [result]


@rule('permute')
def permute(call: Call) -> list[list[Axis]]:
    axes = call.axes(call['self'])
    return [[axes[dim] for dim in call['dims']]]


@rule('transpose')
def transpose(call: Call) -> list[list[Axis]]:
    axes, first, second = call.axes(call['self']), call.dim('dim0'), call.dim('dim1')
    axes[first], axes[second] = axes[second], axes[first]
    return [axes]


@rule('t')
def matrix_transpose(call: Call) -> list[list[Axis]]:
    return [call.axes(call['self'])[::-1]]


@rule('unsqueeze')
def unsqueeze(call: Call) -> list[list[Axis]]:
    axes = call.axes(call['self'])
    axes.insert(call['dim'] % (len(axes) + 1), None)
    return [axes]


@rule('squeeze')
def squeeze(call: Call) -> list[list[Axis]]:
    x, dims = call['self'], call.get('dim')
    dims = [dims] if isinstance(dims, int) else range(x.dim()) if dims is None else dims
    gone = {dim % x.dim() for dim in dims if x.shape[dim] == 1}
    return [[axis for dim, axis in enumerate(call.axes(x)) if dim not in gone]]


@rule('expand')
def expand(call: Call) -> list[list[Axis]]:
    x, out = call['self'], call.outputs[0]
    new = out.dim() - x.dim()
    axes = [axis if x.shape[dim] == out.shape[dim + new] else None for dim, axis in enumerate(call.axes(x))]
    return [[None] * new + axes]


@rule('repeat')
def repeat(call: Call) -> list[list[Axis]]:
    x, repeats = call['self'], call['repeats']
    new = len(repeats) - x.dim()
    dims = zip(x.shape, call.axes(x), repeats[new:], strict=True)
    return [[None] * new + [merge_dims([(count, None), (size, axis)]) for size, axis, count in dims]]


@rule('cat')
def concatenate(call: Call) -> list[list[Axis]]:
    tensors = [tensor for tensor in call['tensors'] if tensor.dim() == call.outputs[0].dim()]
    dim = call['dim'] % tensors[0].dim()
    axes = _unify_other_dims(call, tensors, dim)
    parts = [resolve(call.axes(tensor)[dim]) or [(None, tensor.shape[dim])] for tensor in tensors]
    axes[dim] = [piece for part in parts for piece in part]
    return [axes]


@rule('stack')
def stack(call: Call) -> list[list[Axis]]:
    axes = _unify_other_dims(call, call['tensors'], None)
    axes.insert(call['dim'] % call.outputs[0].dim(), None)
    return [axes]


def _unify_other_dims(call: Call, tensors: Sequence[torch.Tensor], dim: int | None) -> list[Axis]:
    axes = call.axes(tensors[0])
    for tensor in tensors[1:]:
        for other, axis in enumerate(call.axes(tensor)):
            if other != dim:
                unify(axes[other], axis, FULL_PARTNER)
    return axes


@rule('slice')
def take_slice(call: Call) -> list[list[Axis]]:
    axes, dim = call.axes(call['self']), call.dim()
    size = call['self'].shape[dim]
    start, stop, step = slice(call['start'], call['end'], call['step']).indices(size)
    if step != 1:
        freeze(axes[dim], 'it is sliced with a stride')
        axes[dim] = None
    elif (start, stop) != (0, size):
        axes[dim] = between(axes[dim], start, stop)
    return [axes]


@rule('split', 'split_with_sizes')
def split(call: Call) -> list[list[Axis]]:
    """Let parts of one size keep equally many channels; parts of different sizes are independent."""
    axes, dim = call.axes(call['self']), call.dim()
    sizes = [out.shape[dim] for out in call.outputs]
    if len(set(sizes)) == 1:
        parts = segments(axes[dim], len(sizes), FULL_PARTNER)
    else:
        stops = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        parts = [between(axes[dim], stop - size, stop) for stop, size in zip(stops, sizes, strict=True)]
    return [[*axes[:dim], part, *axes[dim + 1 :]] for part in parts]


@rule('unbind', 'select')
def drop_dim(call: Call) -> list[list[Axis]]:
    axes, dim = call.axes(call['self']), call.dim()
    freeze(axes[dim], 'its elements are taken one by one')
    del axes[dim]
    return [list(axes) for _ in call.outputs]


@rule('constant_pad_nd')
def pad(call: Call) -> list[list[Axis]]:
    """Make padding channels fixed pieces, kept at every width."""
    axes, amounts = call.axes(call['self']), call['pad']
    for last, (before, after) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), 1):
        if min(before, after) < 0:
            freeze(axes[-last], 'it is cropped')
        if before or after:
            if is_fixed(axes[-last]):
                axes[-last] = None
            else:
                padded = [(None, before), *resolve(axes[-last]), (None, after)]
                axes[-last] = [(channels, size) for channels, size in padded if size]
    return [axes]


@rule('index')
def index(call: Call) -> list[list[Axis]]:
    x, indices = call['self'], call['indices']
    axes, reason = call.axes(x), 'it is indexed by a tensor'
    indexed = [dim for dim, tensor in enumerate(indices) if tensor is not None]
    for tensor in call.inputs[1:]:
        for axis in call.axes(tensor):
            freeze(axis, reason)
    first, last = indexed[0], indexed[-1]
    adjoining = indexed == list(range(first, last + 1))
    for dim, axis in enumerate(axes):
        if dim in indexed or not adjoining:
            freeze(axis, reason)
    if not adjoining:
        return [[None] * call.outputs[0].dim()]
    new = call.outputs[0].dim() - (x.dim() - len(indexed))
    return [[*axes[:first], *[None] * new, *axes[last + 1 :]]]


@rule('as_strided_')
def restride(call: Call) -> list[list[Axis]]:
    """Follow strides alone, which pooling sets so for its channels-last output; a change of shape is not followed."""
    x = call.inputs[0]
    axes = call.axes(x)
    if [size for size, axis in zip(x.shape, axes, strict=True) if axis is not None] == [
        axis_size(axis) for axis in axes if axis is not None
    ]:
        return [axes]
    for axis in axes:
        freeze(axis, 'its memory is reinterpreted')
    return [[None] * x.dim()]


@rule('roll', 'flip')
def reorder(call: Call) -> list[list[Axis]]:
    axes = call.axes(call['self'])
    for dim in call['dims'] or range(len(axes)):
        freeze(axes[dim], f'{call.name} reorders it')
    return [axes]
