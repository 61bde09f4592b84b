"""What the rules see of a trace: the labels of every tensor, and one operator call at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from regaug.slimmable.labels import Axis, axis_size, is_fixed, new_axis
from regaug.slimmable.layout import Layout, Patch
from regaug.slimmable.structure import named_tensors

MAX_CONSTANT_GROUPS = 4  # up to this many groups, heads or chunks their number is constant and each one gets narrower
FULL_PARTNER = 'it meets channels that stay at full width'

LabelledShape = list[tuple[int, Axis]]


def shape_with_axes(tensor: torch.Tensor, axes: list[Axis]) -> LabelledShape:
    """Pair the size of every dimension with its axis."""
    return list(zip(tensor.shape, axes, strict=True))


class Labels:
    """The axes of every tensor of a trace, and what the rules learn about the model on the way.

    At first every dimension of every parameter and buffer has a class of its own.

    Attributes:
        layout: the labels of parameters and buffers, and the attributes that state a labelled size.
        costs: multiply-adds of every convolution and matrix product, as factors (size, axis).
        module_names: the names of the model's modules, by their `id`.
    """

    def __init__(self, model: nn.Module):
        self.layout = Layout()
        self.costs: list[LabelledShape] = []
        self.module_names = {id(module): name for name, module in model.named_modules()}
        self._known: dict[int, tuple[torch.Tensor, list[Axis], bool]] = {}
        self.layout.parameters = [name for name, _ in model.named_parameters()]
        for name, tensor in named_tensors(model).items():
            self.layout.shapes[name] = tensor.shape
            self.layout.axes[name] = [new_axis(size) for size in tensor.shape]
            self.set(tensor, self.layout.axes[name], isinstance(tensor, nn.Parameter))

    def set(self, tensor: torch.Tensor, axes: list[Axis], is_weight: bool):
        """Label a tensor; `is_weight` says that it is computed from parameters alone."""
        assert [size for size, axis in zip(tensor.shape, axes, strict=True) if axis is not None] == [
            axis_size(axis) for axis in axes if axis is not None
        ], (tensor.shape, axes)
        self._known[id(tensor)] = tensor, list(axes), is_weight

    def axes(self, tensor: torch.Tensor) -> list[Axis]:
        """Return a copy of the tensor's labels, one axis per dimension; fixed ones for an unknown tensor."""
        return list(self._known[id(tensor)][1]) if id(tensor) in self._known else [None] * tensor.dim()

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Say whether the tensor is computed from parameters alone."""
        return id(tensor) in self._known and self._known[id(tensor)][2]

    def forget_tensors(self):
        """Let go of the tensors; what is known of the model stays."""
        self._known.clear()


class Call:
    """An operator call with its arguments by schema name, its outputs, and the labels of every tensor.

    Attributes:
        name: the operator without namespace and overload, such as `convolution`.
        outputs: the tensors returned.
        module: the innermost module in whose method the call happened, or `None`.
    """

    def __init__(
        self,
        labels: Labels,
        func: torch._ops.OpOverload,
        args: tuple,
        kwargs: dict,
        result: Any,
        module: nn.Module | None,
    ):
        self.name = func._schema.name.split('::')[1]
        self.module = module
        self.inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.axes, self.is_weight = labels.axes, labels.is_weight
        self._labels = labels
        self._arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
        self._arguments.update(zip(self._arguments, args, strict=False), **kwargs)

    def __getitem__(self, argument: str) -> Any:
        return self._arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        """Return an argument, or the default if the operator has none of that name."""
        return self._arguments.get(argument, default)

    def dim(self, argument: str = 'dim') -> int:
        """Return a dimension argument, counted from the front in terms of the first input."""
        return self[argument] % self.inputs[0].dim()

    def patch(self, attribute: str, full: Any, axes: list[Axis]):
        """Note that an attribute of the calling module states these sizes, if it does."""
        if self.module is not None and vars(self.module).get(attribute) == full:
            full = vars(self.module)[attribute]
            self._labels.layout.patches[self._labels.module_names[id(self.module)], attribute] = Patch(full, axes)

    def count(self, *factors: tuple[int, Axis]):
        """Add the product of these sizes to the multiply-adds of the model."""
        self._labels.costs.append([(size, None if is_fixed(axis) else axis) for size, axis in factors])


Rule = Callable[[Call], list[list[Axis]]]
RULES: dict[str, Rule] = {}  # by the name of the operator; filled by rules.py and rules_shape.py


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a function as the rule of these operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
