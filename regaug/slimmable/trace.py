"""Trace a model once on meta tensors and label every axis of every tensor with the channels it holds."""

import contextlib
import dataclasses
import os
import random
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regaug.slimmable import rules, rules_shape
from regaug.slimmable.call import Call
from regaug.slimmable.labels import Axis, axis_size, freeze, new_axis
from regaug.slimmable.layout import Layout
from regaug.slimmable.structure import named_tensors

RULES = rules.RULES | rules_shape.RULES
UNRECORDED = {'aten::detach', 'aten::alias', 'aten::lift_fresh'}  # how often these appear depends on autograd's state
LIBRARY_FOLDERS = (os.path.dirname(torch.__file__) + os.sep, os.path.dirname(__file__) + os.sep)

Site = tuple[str, int]
LabelledShape = list[tuple[int, Axis]]


def shape_with_axes(tensor: torch.Tensor, axes: list[Axis]) -> LabelledShape:
    return list(zip(tensor.shape, axes, strict=True))


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
    """The innermost code outside PyTorch and the innermost module whose method runs, seen from a frame."""
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
def untouched_generators():
    """Leave Python's, NumPy's and PyTorch's CPU generator as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Trace(TorchDispatchMode):
    """Records every operator that runs under it and propagates the labels.

    Attributes:
        records: the calls in order.
        layout: the labels of parameters and buffers, and the attributes that state a labelled size.
        costs: multiply-adds of every convolution and matrix product, as factors (size, axis).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.names = {id(module): name for name, module in model.named_modules()}
        self.records: list[Record] = []
        self.layout = Layout()
        self.costs: list[LabelledShape] = []
        self._labels: dict[int, tuple[torch.Tensor, list[Axis], bool]] = {}

    def label(self, tensor: torch.Tensor, axes: list[Axis], is_weight: bool):
        assert [size for size, axis in zip(tensor.shape, axes, strict=True) if axis is not None] == [
            axis_size(axis) for axis in axes if axis is not None
        ], (tensor.shape, axes)
        self._labels[id(tensor)] = tensor, list(axes), is_weight

    def label_tensors_of(self, model: nn.Module):
        """Give every dimension of every parameter and buffer a class of its own."""
        self.layout.parameters = [name for name, _ in model.named_parameters()]
        for name, tensor in named_tensors(model).items():
            self.layout.shapes[name] = tensor.shape
            self.layout.axes[name] = [new_axis(size) for size in tensor.shape]
            self.label(tensor, self.layout.axes[name], isinstance(tensor, nn.Parameter))

    def axes(self, tensor: torch.Tensor) -> list[Axis]:
        return self._labels[id(tensor)][1] if id(tensor) in self._labels else [None] * tensor.dim()

    def is_weight(self, tensor: torch.Tensor) -> bool:
        return id(tensor) in self._labels and self._labels[id(tensor)][2]

    def forget_tensors(self):
        self._labels.clear()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._schema.name in UNRECORDED:
            self.label(result, self.axes(args[0]), self.is_weight(args[0]))
            return result
        site, module = caller(sys._getframe(1))
        call = Call(self, func, args, kwargs, result, module)
        inputs = [shape_with_axes(tensor, call.axes(tensor)) for tensor in call.inputs]
        is_weight = bool(call.inputs) and all(map(self.is_weight, call.inputs))
        if call.outputs:
            for tensor, axes in zip(call.outputs, self._propagate(func, call), strict=True):
                self.label(tensor, axes, is_weight)
        outputs = [shape_with_axes(tensor, call.axes(tensor)) for tensor in call.outputs]
        self.records.append(Record(str(func), site, self.names.get(id(module)), inputs, outputs))
        return result

    def _propagate(self, func, call: Call) -> list[list[Axis]]:
        rule = RULES.get(call.name)
        if rule is None and torch.Tag.pointwise in func.tags:
            rule = rules.pointwise
        if rule is not None:
            return rule(call)
        for tensor in call.inputs:
            for axis in call.axes(tensor):
                freeze(axis, f'the operator {call.name} has no rule')
        return [[None] * tensor.dim() for tensor in call.outputs]


class FixedHeadSize(TorchFunctionMode):
    """Keeps attention's head size at every width.

    Fused attention scales by the size of the heads it is given, so narrower heads would be scaled differently from the
    same channels inside the full network. Whole heads can be dropped.
    """

    def __init__(self, trace: Trace):
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            for tensor in (*args, *(kwargs or {}).values())[:2]:  # query and key; values may be of another size
                freeze(self.trace.axes(tensor)[-1], 'it is the head size of an attention')
        return func(*args, **(kwargs or {}))


def run_trace(model: nn.Module, x: torch.Tensor) -> Trace:
    """Trace a meta copy of a model, in its present mode, on a meta input [B, C, H, W]."""
    trace = Trace(model)
    trace.label_tensors_of(model)
    with torch.no_grad(), FixedHeadSize(trace), trace:
        output = model(x)
    for tensor in tree_leaves(output):
        if isinstance(tensor, torch.Tensor):
            for axis in trace.axes(tensor):
                freeze(axis, "it is the model's output")
    trace.forget_tensors()
    return trace
