"""Copies of a model's module structure that share, replace or slice its tensors."""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

HOOK_TABLES = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')

# Everything that holds one tensor: the `_parameters` or `_buffers` table of a module and the key in it.
Slots = list[tuple[dict[str, torch.Tensor | None], str]]


def named_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return parameters and buffers by name; a tensor that several modules share appears under its first name."""
    return dict(itertools.chain(module.named_parameters(), module.named_buffers()))


def structure_copy(module: nn.Module, convert: Callable[[str, torch.Tensor], torch.Tensor]) -> nn.Module:
    """Make new module objects around converted tensors.

    Tensors that modules share stay shared. Forward and backward hooks are not taken along: they belong to whoever put
    them on the model, and a copied bound method would copy its owner.

    Args:
        convert: maps the name and the tensor to the one that the copy holds instead.
    """
    memo = {id(tensor): convert(name, tensor) for name, tensor in named_tensors(module).items()}
    for part in module.modules():
        memo.update({id(getattr(part, table)): OrderedDict() for table in HOOK_TABLES})
    return copy.deepcopy(module, memo)


def to_meta(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without data: same shape and dtype, contiguous, on the meta device."""
    meta = torch.empty(tensor.shape, dtype=tensor.dtype, device='meta')
    return nn.Parameter(meta, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


def meta_copy(module: nn.Module) -> nn.Module:
    """Copy a module without data, to run shapes only; timm's fast norm, which needs a real device, is off in it."""
    copied = structure_copy(module, to_meta)
    for part in copied.modules():
        if getattr(part, '_fast_norm', False):
            part._fast_norm = False
    return copied


def tensor_slots(module: nn.Module) -> dict[str, Slots]:
    """Find where the tensors of a module are held, by tensor name."""
    slots: dict[int, Slots] = {}
    for part in module.modules():
        for table in (part._parameters, part._buffers):
            for key, tensor in table.items():
                if tensor is not None:
                    slots.setdefault(id(tensor), []).append((table, key))
    return {name: slots[id(tensor)] for name, tensor in named_tensors(module).items()}


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Return all batch-norms of a module, synchronised ones included."""
    return [part for part in module.modules() if isinstance(part, _BatchNorm)]


def untrack_batch_statistics(module: nn.Module):
    """Make batch-norm use the statistics of the batch in both modes, and hold no running ones."""
    for norm in batch_norms(module):
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
