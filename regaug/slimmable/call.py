"""One recorded operator call, as the rules see it."""

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from regaug.slimmable.labels import Axis, is_fixed
from regaug.slimmable.layout import Patch

if TYPE_CHECKING:
    from regaug.slimmable.trace import Trace


class Call:
    """An operator call with its arguments by schema name, its outputs, and the labels of every tensor.

    Attributes:
        name: the operator without namespace and overload, such as `convolution`.
        outputs: the tensors returned.
        module: the innermost module in whose method the call happened, or `None`.
    """

    def __init__(self, trace: 'Trace', func, args: tuple, kwargs: dict, result: Any, module: nn.Module | None):
        self.name = func._schema.name.split('::')[1]
        self.module = module
        self.inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        self.outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self._trace = trace
        self._arguments = {argument.name: argument.default_value for argument in func._schema.arguments}
        self._arguments.update(zip(self._arguments, args, strict=False), **kwargs)

    def __getitem__(self, argument: str) -> Any:
        return self._arguments[argument]

    def get(self, argument: str, default: Any = None) -> Any:
        return self._arguments.get(argument, default)

    def dim(self, argument: str = 'dim') -> int:
        """A dimension argument, counted from the front in terms of the first input."""
        return self[argument] % self.inputs[0].dim()

    def axes(self, tensor: torch.Tensor) -> list[Axis]:
        """A copy of the tensor's labels, one axis per dimension."""
        return list(self._trace.axes(tensor))

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is computed from parameters alone."""
        return self._trace.is_weight(tensor)

    def patch(self, attribute: str, full: Any, axes: list[Axis]):
        """Note that an attribute of the calling module states these sizes, if it does."""
        if self.module is not None and vars(self.module).get(attribute) == full:
            full = vars(self.module)[attribute]
            self._trace.layout.patches[self._trace.names[id(self.module)], attribute] = Patch(full, axes)

    def count(self, *factors: tuple[int, Axis]):
        """Add the product of these sizes to the multiply-adds of the model."""
        self._trace.costs.append([(size, None if is_fixed(axis) else axis) for size, axis in factors])
