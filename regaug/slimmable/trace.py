"""Trace a model once on meta tensors and label every axis of every tensor with the channels it holds."""

import contextlib
import dataclasses
import os
import random
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import regaug.slimmable.rules_shape  # noqa: F401  fills RULES, as rules does
from regaug.slimmable import rules
from regaug.slimmable.call import RULES, Call, LabelledShape, Labels, shape_with_axes
from regaug.slimmable.labels import Axis, freeze

UNRECORDED = {'aten::detach', 'aten::alias', 'aten::lift_fresh'}  # how often these appear depends on autograd's state
LIBRARY_FOLDERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)

Site = tuple[str, int]


@dataclasses.dataclass
class Record:
    """One operator call of the traced forward pass.

    Attributes:
        operator: its full name with overload.
        site: file and line of the innermost frame outside PyTorch.
        module: name of the innermost module.
        inputs, outputs: size and axis of every dimension of every tensor.
    """

    operator: str
    site: Site | None
    module: str | None
    inputs: list[LabelledShape]
    outputs: list[LabelledShape]

    def __str__(self) -> str:
        where = f' at {os.path.basename(self.site[0])}:{self.site[1]}' if self.site else ''
        return f'{self.operator}{where}'


def caller(frame: types.FrameType | None) -> tuple[Site | None, nn.Module | None]:
    """Find the innermost code outside PyTorch and the innermost module whose method runs, seen from a frame."""
    site = module = None
    while frame is not None and (site is None or module is None):
        code = frame.f_code
        if module is None and 'self' in code.co_varnames:
            owner = frame.f_locals.get('self')
            module = owner if isinstance(owner, nn.Module) else None
        if site is None and not code.co_filename.startswith(LIBRARY_FOLDERS):
            site = code.co_filename, frame.f_lineno
        frame = frame.f_back
    return site, module


@contextlib.contextmanager
def untouched_generators() -> Iterator[None]:
    """Leave Python's, NumPy's and PyTorch's CPU generator as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def run_shapes(func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Call an operator on meta tensors.

    Batch-norm's outputs are made by their shapes: PyTorch composes it of forty operators there, which takes as long as
    the rest of a convolutional network together.
    """
    if func is not torch.ops.aten.native_batch_norm.default:
        return func(*args, **kwargs)
    input, *parts, _, _, _ = args
    if any(part is not None and part.shape != input.shape[1:2] for part in parts):
        return func(*args, **kwargs)  # which says what is wrong
    return torch.empty_like(input), *(input.new_empty(input.shape[1]) for _ in range(2))


class Trace(TorchDispatchMode):
    """Records every operator that runs under it and propagates the labels.

    Attributes:
        records: the calls in order.
        labels: the labels of all tensors.
    """

    def __init__(self, labels: Labels):
        super().__init__()
        self.labels = labels
        self.records: list[Record] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        kwargs, labels = kwargs or {}, self.labels
        result = run_shapes(func, args, kwargs)
        if func._schema.name in UNRECORDED:
            labels.set(result, labels.axes(args[0]), labels.is_weight(args[0]))
            return result
        site, module = caller(sys._getframe(1))
        call = Call(labels, func, args, kwargs, result, module)
        inputs = [shape_with_axes(tensor, labels.axes(tensor)) for tensor in call.inputs]
        is_weight = bool(call.inputs) and all(map(labels.is_weight, call.inputs))
        if call.outputs:
            for tensor, axes in zip(call.outputs, propagate(func, call), strict=True):
                labels.set(tensor, axes, is_weight)
        outputs = [shape_with_axes(tensor, labels.axes(tensor)) for tensor in call.outputs]
        self.records.append(Record(str(func), site, labels.module_names.get(id(module)), inputs, outputs))
        return result


def propagate(func: torch._ops.OpOverload, call: Call) -> list[list[Axis]]:
    """Return the axes of every output of a call, by the operator's rule if it has one."""
    rule = RULES.get(call.name)
    if rule is None and is_pointwise(func):
        rule = rules.pointwise
    if rule is not None:
        return rule(call)
    for tensor in call.inputs:
        for axis in call.axes(tensor):
            freeze(axis, f'the operator {call.name} has no rule')
    return [[None] * tensor.dim() for tensor in call.outputs]


def is_pointwise(func: torch._ops.OpOverload) -> bool:
    """Whether PyTorch tags an operator as pointwise; for one that works in place, the tag of its twin counts too."""
    name = func._schema.name.partition('::')[2].removesuffix('_')
    twin = getattr(getattr(getattr(torch.ops, func.namespace), name, None), func._overloadname, func)
    return torch.Tag.pointwise in (*func.tags, *twin.tags)


class FixedHeadSize(TorchFunctionMode):
    """Keeps attention's head size at every width.

    Fused attention scales by the size of the heads it is given, so narrower heads would be scaled differently from the
    same channels inside the full network. Whole heads can be dropped.
    """

    def __init__(self, labels: Labels):
        super().__init__()
        self.labels = labels

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        if func is F.scaled_dot_product_attention:
            for tensor in (*args, *(kwargs or {}).values())[:2]:  # query and key; values may be of another size
                freeze(self.labels.axes(tensor)[-1], 'it is the head size of an attention')
        return func(*args, **(kwargs or {}))


def keep_outputs(model: nn.Module, name: str, labels: Labels) -> set[str]:
    """Keep all channels of what a module and the modules inside it give, whenever they run.

    Returns:
        The names of those that have run; it fills as they do.
    """
    ran = set()

    def keep(module: nn.Module, args: tuple, output: object):
        ran.add(labels.module_names[id(module)])
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                for axis in labels.axes(tensor):
                    freeze(axis, f'outputs of {name} stay at full width')

    for module in model.get_submodule(name).modules():
        module.register_forward_hook(keep)
    return ran


def run_trace(model: nn.Module, x: torch.Tensor, full: Sequence[str] = ()) -> Trace:
    """Trace a meta copy of a model, in its present mode, on a meta input [B, C, H, W].

    Args:
        full: names of modules whose outputs keep all channels, and those of the modules inside them.

    Raises:
        ValueError: none of the modules under a name of `full` runs.
    """
    labels = Labels(model)
    ran = {name: keep_outputs(model, name, labels) for name in full}
    with torch.no_grad(), FixedHeadSize(labels), Trace(labels) as trace:
        output = model(x)
    for name, modules in ran.items():
        if not modules:
            raise ValueError(f'full={name!r}: the model does not run it')
    for tensor in tree_leaves(output):
        if isinstance(tensor, torch.Tensor):
            for axis in labels.axes(tensor):
                freeze(axis, "it is the model's output")
    labels.forget_tensors()
    return trace
