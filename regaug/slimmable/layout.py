"""What of a model depends on its width: the dimensions of its tensors, and attributes that state sizes."""

import dataclasses
from typing import Any

import torch
from torch import nn

from regaug.slimmable.labels import Axis, Channels, Counts, resolve
from regaug.slimmable.structure import structure_copy

Ranges = dict[int, list[tuple[int, int]]]  # dimension -> kept indices as (start, length)


@dataclasses.dataclass
class Patch:
    """An attribute of a module that states numbers of channels.

    Attributes:
        full: its value at full width, an int or a sequence of ints.
        axes: the axis that each of the ints is the size of; `None` where the int stays.
    """

    full: Any
    axes: list[Axis]

    def value(self, counts: Counts) -> Any:
        """Return what the attribute states at these counts."""
        if isinstance(self.full, int):
            return counts.size(self.axes[0], self.full)
        return type(self.full)([counts.size(axis, size) for axis, size in zip(self.axes, self.full, strict=True)])


@dataclasses.dataclass
class Layout:
    """The width-dependent parts of one model.

    Attributes:
        shapes: full shape of every parameter and buffer, by name.
        axes: their labels, one axis per dimension.
        parameters: the names that are parameters.
        patches: the attributes, by (module name, attribute).
    """

    shapes: dict[str, torch.Size] = dataclasses.field(default_factory=dict)
    axes: dict[str, list[Axis]] = dataclasses.field(default_factory=dict)
    parameters: list[str] = dataclasses.field(default_factory=list)
    patches: dict[tuple[str, str], Patch] = dataclasses.field(default_factory=dict)

    def ranges(self, name: str, counts: Counts) -> Ranges:
        """Return the kept indices of a tensor, for dimensions where they are not all; empty for unknown tensors."""
        ranges = {}
        for dim, axis in enumerate(self.axes.get(name, ())):
            size = self.shapes[name][dim]
            if counts.size(axis, size) != size:
                ranges[dim] = counts.ranges(axis, size)
        return ranges

    def depends_on_width(self, name: str) -> bool:
        """Say whether a tensor gets narrower with the width."""
        pieces = [piece for axis in self.axes.get(name, ()) for piece in resolve(axis)]
        return any(channels is not None and channels.slimmable for channels, _ in pieces)

    def kinds(self) -> list[Channels]:
        """Return one slimmable class for each number and size of units: classes that agree in both round alike."""
        axes = [axis for labelled in self.axes.values() for axis in labelled]
        axes += [axis for patch in self.patches.values() for axis in patch.axes]
        classes = [channels for axis in axes for channels, _ in resolve(axis) if channels and channels.slimmable]
        return list({(channels.units, channels.unit_size): channels for channels in classes}.values())

    def attributes(self, counts: Counts) -> dict[tuple[str, str], Any]:
        """Return the values of the patched attributes, by (module name, attribute)."""
        return {key: patch.value(counts) for key, patch in self.patches.items()}

    def narrowed_copy(self, model: nn.Module, counts: Counts) -> nn.Module:
        """Copy the model with parameters and buffers of its own, of the kept sizes."""

        def narrowed(name: str, tensor: torch.Tensor) -> torch.Tensor:
            part = take(tensor.detach(), self.ranges(name, counts)).clone()
            return nn.Parameter(part, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else part

        small = structure_copy(model, narrowed)
        modules = dict(small.named_modules())
        for (module, attribute), value in self.attributes(counts).items():
            vars(modules[module])[attribute] = value
        return small

    def check_tensors(self, model: nn.Module):
        """Raise `ValueError` unless the model has the parameters that the layout was made for."""
        for name, parameter in model.named_parameters():
            if self.shapes.get(name) != parameter.shape:
                planned = tuple(self.shapes[name]) if name in self.shapes else 'no parameter of that name'
                raise ValueError(
                    f'{type(model).__name__}: the plan was made for another network: parameter {name} is '
                    f'{tuple(parameter.shape)}, planned was {planned}'
                )


def take(tensor: torch.Tensor, ranges: Ranges) -> torch.Tensor:
    """Take the elements of a tensor at the given ranges: a view where one leading range is kept, else a copy."""
    for dim, parts in ranges.items():
        if len(parts) == 1:
            tensor = tensor.narrow(dim, *parts[0])
        else:
            tensor = torch.cat([tensor.narrow(dim, start, length) for start, length in parts], dim)
    return tensor
