"""What operators that compute do to channel labels: one function per operator.

A rule unifies the input axes that must keep the same channels, and returns the axes of every output. Operators without
a rule have all their labelled inputs frozen, which is always right and only costs slimming. Operators that only move
elements are in rules_shape.py.
"""

import re

import torch

from regaug.slimmable.call import FULL_PARTNER, MAX_CONSTANT_GROUPS, Call, rule, shape_with_axes
from regaug.slimmable.labels import Axis, Channels, anchor, freeze, is_fixed, segments, unify


@rule('hardswish', 'hardswish_', 'hardsigmoid', 'hardsigmoid_', 'leaky_relu', 'leaky_relu_', '_prelu_kernel')
@rule('masked_fill', 'masked_fill_', 'copy_')
def pointwise(call: Call) -> list[list[Axis]]:
    """Unify what broadcasting aligns; also serves every operator that PyTorch tags as pointwise."""
    shape = call.outputs[0].shape
    axes: dict[int, Axis] = {}
    for tensor in call.inputs:
        for dim, axis in enumerate(call.axes(tensor), len(shape) - tensor.dim()):
            if dim < 0 or shape[dim] == 1 or tensor.shape[dim - len(shape)] != shape[dim]:
                continue
            if dim in axes:
                unify(axes[dim], axis, FULL_PARTNER)
            else:
                axes[dim] = axis
    return [[axes.get(dim) for dim in range(len(shape))] for _ in call.outputs]


@rule('clone', 'contiguous', '_to_copy', 'native_dropout', 'bernoulli', 'bernoulli_', 'uniform_', 'normal_')
@rule('fill_', 'zero_', 'rand_like', 'randn_like', 'zeros_like', 'ones_like', 'empty_like', 'full_like')
def same_shape(call: Call) -> list[list[Axis]]:
    return [call.axes(call.inputs[0]) for _ in call.outputs]


@rule('new_empty', 'new_zeros', 'new_ones', 'new_full')
def new_tensor(call: Call) -> list[list[Axis]]:
    """Give a new tensor the labels of its model where the sizes agree; verification finds where that is wrong."""
    source, shape = call.inputs[0], call.outputs[0].shape
    if source.dim() != len(shape):
        return [[None] * len(shape)]
    axes = call.axes(source)
    return [[axis if source.shape[dim] == shape[dim] else None for dim, axis in enumerate(axes)]]


@rule('convolution')
def convolution(call: Call) -> list[list[Axis]]:
    x, weight, bias, groups = call['input'], call['weight'], call['bias'], call['groups']
    x_axes, weight_axes = call.axes(x), call.axes(weight)
    in_size, out_size = x.shape[1], call.outputs[0].shape[1]
    for axis in weight_axes[2:]:
        freeze(axis, 'it is a kernel dimension')

    if call['transposed'] and groups == 1:
        in_axis, out_axis = weight_axes[0], weight_axes[1]
        unify(x_axes[1], in_axis, FULL_PARTNER)
    elif call['transposed']:
        for axis in (x_axes[1], *weight_axes):
            freeze(axis, 'grouped transposed convolution')
        in_axis = out_axis = None
    elif groups == 1:
        in_axis, out_axis = weight_axes[1], weight_axes[0]
        unify(x_axes[1], in_axis, FULL_PARTNER)
    elif groups <= MAX_CONSTANT_GROUPS and weight.shape[1] > 1:
        in_axis, out_axis = x_axes[1], weight_axes[0]
        unify(segments(in_axis, groups, FULL_PARTNER)[0], weight_axes[1], FULL_PARTNER)
        segments(out_axis, groups, FULL_PARTNER)
    else:
        # Whole groups are dropped; depthwise convolutions are the case of one channel a group.
        whole = Channels(groups)
        in_axis, out_axis = [(whole, in_size)], weight_axes[0]
        freeze(weight_axes[1], 'it is the width of a group')
        unify(out_axis, [(whole, out_size)], FULL_PARTNER)
        unify(x_axes[1], in_axis, FULL_PARTNER)
        call.patch('groups', groups, [[(whole, groups)]])
    call.patch('in_channels', in_size, [in_axis])
    call.patch('out_channels', out_size, [out_axis])
    if call.is_weight(weight):
        anchor(out_axis)
    if bias is not None:
        unify(out_axis, call.axes(bias)[0], FULL_PARTNER)

    spatial = [_convolved(call, dim, axis) for dim, axis in enumerate(x_axes[2:])]
    kernel = [(size, None) for size in weight.shape[2:]]
    contracted = (x.shape[1], x_axes[1]) if call['transposed'] else (weight.shape[1], weight_axes[1])
    call.count(*shape_with_axes(call.outputs[0], [x_axes[0], out_axis, *spatial]), contracted, *kernel)
    return [[x_axes[0], out_axis, *spatial]]


def _convolved(call: Call, dim: int, axis: Axis) -> Axis:
    """Return the label of a spatial dimension: a convolution along channels (ECA), which changes no size, keeps it."""
    if is_fixed(axis):
        return None
    stride, padding, dilation = (call[name][dim] for name in ('stride', 'padding', 'dilation'))
    if stride == 1 and 2 * padding == dilation * (call['weight'].shape[2 + dim] - 1) and not call['transposed']:
        return axis
    freeze(axis, 'a strided convolution runs along it')
    return None


@rule('mm', 'bmm')
def matmul(call: Call) -> list[list[Axis]]:
    left, right = call.inputs
    return [_multiply(call, left, right)]


@rule('addmm', 'baddbmm')
def add_matmul(call: Call) -> list[list[Axis]]:
    bias, left, right = call.inputs
    axes = _multiply(call, left, right)
    for dim, axis in enumerate(call.axes(bias), len(axes) - bias.dim()):
        if bias.shape[dim - len(axes)] != 1:
            unify(axes[dim], axis, FULL_PARTNER)
    return [axes]


def _multiply(call: Call, left: torch.Tensor, right: torch.Tensor) -> list[Axis]:
    left_axes, right_axes = call.axes(left), call.axes(right)
    unify(left_axes[-1], right_axes[-2], FULL_PARTNER)
    axes = [*left_axes[:-1], right_axes[-1]]
    if left.dim() == 3:
        unify(left_axes[0], right_axes[0], FULL_PARTNER)
    elif call.is_weight(right):  # as in x W^T; on the left stand learnt tokens, whose number is no width
        anchor(right_axes[-1])
    call.patch('in_features', left.shape[-1], [left_axes[-1]])
    call.patch('out_features', right.shape[-1], [right_axes[-1]])
    call.count(*shape_with_axes(call.outputs[0], axes), (left.shape[-1], left_axes[-1]))
    return axes


@rule('native_batch_norm', '_native_batch_norm_legit', '_native_batch_norm_legit_no_training')
@rule('_batch_norm_with_update', 'cudnn_batch_norm')
def batch_norm(call: Call) -> list[list[Axis]]:
    axes = call.axes(call['input'])
    size, channels = call['input'].shape[1], axes[1]
    for name in ('weight', 'bias', 'running_mean', 'running_var'):
        if call.get(name) is not None:
            unify(channels, call.axes(call[name])[0], FULL_PARTNER)
    call.patch('num_features', size, [channels])
    statistics = [[channels] if tensor.shape == (size,) else [None] * tensor.dim() for tensor in call.outputs[1:]]
    return [axes, *statistics]


@rule('native_layer_norm', '_fused_rms_norm')
def layer_norm(call: Call) -> list[list[Axis]]:
    axes, shape = call.axes(call['input']), call['normalized_shape']
    normalised = axes[-len(shape) :]
    for name in ('weight', 'bias'):
        if call.get(name) is not None:
            for axis, other in zip(normalised, call.axes(call[name]), strict=True):
                unify(axis, other, FULL_PARTNER)
    if len(shape) > 1:
        for axis in normalised:
            freeze(axis, 'layer norm over several dimensions')
    for kind in (tuple, list):
        call.patch('normalized_shape', kind(shape), normalised)
    return [axes, *([None] * tensor.dim() for tensor in call.outputs[1:])]


@rule('native_group_norm')
def group_norm(call: Call) -> list[list[Axis]]:
    axes, size, groups = call.axes(call['input']), call['C'], call['group']
    group_axis = None
    if groups > MAX_CONSTANT_GROUPS:
        whole = Channels(groups)
        group_axis = [(whole, groups)]
        unify(axes[1], [(whole, size)], FULL_PARTNER)
        call.patch('num_groups', groups, [group_axis])
    elif groups > 1:
        freeze(axes[1], 'group norm of few groups')
    for name in ('weight', 'bias'):
        if call[name] is not None:
            unify(axes[1], call.axes(call[name])[0], FULL_PARTNER)
    call.patch('num_channels', size, [axes[1]])
    return [axes, *([None, group_axis] for _ in call.outputs[1:])]


@rule('mean', 'sum', 'amax', 'amin', 'max', 'min', 'var', 'std', 'var_mean', 'std_mean', 'linalg_vector_norm')
def reduction(call: Call) -> list[list[Axis]]:
    x, dims = call.inputs[0], call.get('dim')
    if isinstance(dims, int):
        dims = [dims]
    reduced = {dim % x.dim() for dim in dims} if dims else set(range(x.dim()))
    axes = call.axes(x)
    if call.outputs[0].dim() == x.dim():
        return [[None if dim in reduced else axis for dim, axis in enumerate(axes)] for _ in call.outputs]
    return [[axis for dim, axis in enumerate(axes) if dim not in reduced] for _ in call.outputs]


@rule('_softmax', '_log_softmax', '_safe_softmax', 'cumsum')
def along_one_dim(call: Call) -> list[list[Axis]]:
    axes = call.axes(call.inputs[0])
    freeze(axes[call.dim()], f'{call.name} runs along it')
    return [axes]


@rule('max_pool2d_with_indices', 'avg_pool2d', 'avg_pool3d', '_adaptive_avg_pool2d', '_adaptive_avg_pool3d')
@rule('adaptive_max_pool2d', 'upsample_nearest2d', 'upsample_bilinear2d', 'upsample_bicubic2d', 'reflection_pad2d')
@rule('_upsample_bilinear2d_aa', '_upsample_bicubic2d_aa', 'replication_pad2d', 'upsample_linear1d')
def pooling(call: Call) -> list[list[Axis]]:
    axes = call.axes(call.inputs[0])
    spatial = int(re.search(r'(\d)d', call.name)[1])
    for axis in axes[-spatial:]:
        freeze(axis, 'a spatial operator runs along it')
    return [[*axes[:-spatial], *[None] * spatial] for _ in call.outputs]
