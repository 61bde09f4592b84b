"""Slices of parameters, and gradients that go back into the parameters' own `.grad`."""

from collections.abc import Sequence
from typing import Any

import torch

from regaug.slimmable.layout import Ranges


class Cut:
    """Takes ranges of a tensor of one geometry; without ranges the tensor itself.

    Args:
        tensor: any of that geometry.
        ranges: kept indices of each dimension that gets narrower.

    Attributes:
        whole: there is nothing to cut.
    """

    def __init__(self, tensor: torch.Tensor, ranges: Ranges):
        leading = {dim: parts[0][1] for dim, parts in ranges.items() if len(parts) == 1}
        self.whole = not ranges
        self._size = [leading.get(dim, size) for dim, size in enumerate(tensor.shape)]
        self._stride = tensor.stride()
        self._indices = [
            (dim, torch.cat([torch.arange(start, start + length) for start, length in parts]).to(tensor.device))
            for dim, parts in ranges.items()
            if len(parts) > 1
        ]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        if self.whole:
            return tensor
        # One strided view for all leading ranges: its gradient is filled and copied once and has the parameter's memory
        # format; that of two narrows is filled twice and does not.
        tensor = self._view(tensor)
        for dim, index in self._indices:
            tensor = tensor.index_select(dim, index)
        return tensor

    def target(self, tensor: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A view of a tensor of the geometry, and what of a slice's gradient to add to it, of the same shape."""
        view = self._view(tensor)
        shapes = [view.shape]
        for dim, index in self._indices:
            shapes.append(torch.Size([*shapes[-1][:dim], len(index), *shapes[-1][dim + 1 :]]))
        for (dim, index), shape in reversed(list(zip(self._indices, shapes))):
            gradient = gradient.new_zeros(shape).index_add_(dim, index, gradient)
        return view, gradient

    def _view(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_strided(self._size, self._stride)


class _Slices(torch.autograd.Function):
    """All slices of a width as one node of the graph.

    By itself autograd fills a gradient of the parameter's full size with zeros for each slice, copies the slice's
    gradient into it and adds all of it to `.grad`. Here the slice's gradient is added where it belongs: the same sums.
    """

    @staticmethod
    def forward(ctx: Any, cuts: Sequence[Cut], *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.set_materialize_grads(False)
        # Not saved as tensors of the graph: the optimiser may change them before this graph is let go of.
        ctx.cuts, ctx.tensors = cuts, tensors
        return tuple(cut(tensor.detach()) for cut, tensor in zip(cuts, tensors, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        returned, dense, strided = [None], ([], []), ([], [])
        for cut, tensor, gradient in zip(ctx.cuts, ctx.tensors, gradients, strict=True):
            returned.append(None)
            if gradient is None:
                continue
            in_place = _adds_in_place(tensor, gradient)
            total = tensor.grad if in_place else torch.zeros_like(tensor, dtype=gradient.dtype)
            view, gradient = cut.target(total, gradient)
            if not in_place:
                returned[-1] = total
            # PyTorch adds a list in one launch only if all of it is dense.
            views, added = dense if view.is_contiguous() and gradient.is_contiguous() else strided
            views.append(view)
            added.append(gradient)
        for views, added in (dense, strided):
            if views:
                torch._foreach_add_(views, added)
        return tuple(returned)


def _adds_in_place(tensor: torch.Tensor, gradient: torch.Tensor) -> bool:
    """Whether nobody would see that a gradient does not pass through the parameter's own accumulation."""
    return (
        tensor.grad is not None
        and tensor.grad.dtype == gradient.dtype
        and tensor.grad.stride() == tensor.stride()
        and not torch.is_grad_enabled()  # a gradient that is to be differentiated itself
        and not tensor._backward_hooks
        and not tensor._post_accumulate_grad_hooks
    )


def slices_of(tensors: Sequence[torch.Tensor], cuts: Sequence[Cut]) -> list[torch.Tensor]:
    """Slices whose gradients are added into the tensors' `.grad` in place, where that is the same.

    It is not under `torch.autograd.grad` and inside DDP, which waits for gradients to arrive: take `cut(tensor)` there.
    A tensor without `.grad`, with hooks or with a gradient of another type gets its gradient by way of autograd.

    Args:
        tensors: leaves of the graph.
        cuts: one for each.
    """
    parts = [None] * len(tensors)
    joined = [i for i, tensor in enumerate(tensors) if tensor.requires_grad and tensor.is_leaf and not cuts[i].whole]
    if joined:
        slices = _Slices.apply([cuts[i] for i in joined], *(tensors[i] for i in joined))
        for i, part in zip(joined, slices, strict=True):
            parts[i] = part
    return [cuts[i](tensors[i]) if part is None else part for i, part in enumerate(parts)]
