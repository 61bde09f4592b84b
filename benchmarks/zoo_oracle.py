"""References for sub-networks: what a network with dropped channels computes, obtained without slicing it."""

import contextlib
import copy
import types
from unittest import mock

import timm
import torch
import torch.nn.functional as F
from torch import nn

from regaug.slimmable import SlimmablePlan
from regaug.slimmable.labels import Counts

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Linear)


def make_generic(model: nn.Module) -> nn.Module:
    """Remove what is random or trivially zero: dropout off; biases, gains and zero-initialised weights perturbed."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name in ('drop_prob', 'drop_rate', 'drop_path_rate'):
            if isinstance(vars(module).get(name), float):
                setattr(module, name, 0.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() <= 1 or not parameter.any():
                parameter.add_(0.1 * torch.randn_like(parameter) + (0.5 if parameter.abs().max() < 1e-3 else 0.0))
    return model


def kept_mask(plan: SlimmablePlan, name: str, shape: torch.Size, counts: Counts) -> torch.Tensor:
    """Return True at the elements of a parameter that the sub-network holds."""
    mask = torch.ones(shape, dtype=torch.bool)
    for dim, ranges in plan.layout.ranges(name, counts).items():
        kept = torch.zeros(shape[dim], dtype=torch.bool)
        for start, length in ranges:
            kept[start : start + length] = True
        mask &= kept.reshape([-1 if other == dim else 1 for other in range(len(shape))])
    return mask


def zeroed_copy(model: nn.Module, plan: SlimmablePlan, counts: Counts, only_outputs: bool) -> nn.Module:
    """Copy a network at full size with its dropped channels set to zero.

    Args:
        only_outputs: zero only output channels (and biases and gains), so that the input indices of the next layer have
            to be right by themselves. Otherwise all that the sub-network does not hold is zero, as networks need whose
            activations or weight standardisation turn zero channels into others.
    """
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for path, module in zeroed.named_modules():
            for name, parameter in module.named_parameters(path, recurse=False):
                kept = kept_mask(plan, name, parameter.shape, counts)
                if only_outputs and parameter.dim() > 1 and isinstance(module, CONVOLUTIONS):
                    kept = kept.flatten(1).any(1).reshape([-1] + [1] * (parameter.dim() - 1))
                parameter.mul_(kept)
    return zeroed


def kept_entries(weight: torch.Tensor | None) -> torch.Tensor | None:
    """Find the non-zero gains; `None` if there is no gain, or none is zero."""
    return None if weight is None or weight.dim() != 1 or bool(weight.all()) else weight.nonzero().flatten()


def over_kept_channels(function, dim: int):
    """Make a norm(x, shape, weight, ...) over one dimension that sees only the entries with a non-zero gain."""

    def norm(x, shape, weight=None, *others, **options):
        if (kept := kept_entries(weight)) is None:
            return function(x, shape, weight, *others, **options)
        others = [other[kept] if isinstance(other, torch.Tensor) else other for other in others]
        part = function(x.index_select(dim, kept), [len(kept)], weight[kept], *others, **options)
        return torch.zeros_like(x).index_copy(dim, kept, part)

    return norm


def group_norm_over_kept_channels(function):
    def norm(x, groups, weight=None, bias=None, eps=1e-5):
        if groups > 1 or (kept := kept_entries(weight)) is None:
            return function(x, groups, weight, bias, eps)
        return torch.zeros_like(x).index_copy(1, kept, function(x[:, kept], 1, weight[kept], bias[kept], eps))

    return norm


def weight_standardisation_over_kept_channels(function):
    def norm(x, mean, *others, **options):
        if x.dim() != 3 or x.shape[0] != 1 or mean is not None:  # not [1, out, in * height * width] of a weight
            return function(x, mean, *others, **options)
        kept = (x[0] != 0).any(0).nonzero().flatten()
        return torch.zeros_like(x).index_copy(2, kept, function(x[:, :, kept], mean, *others, **options))

    return norm


def response_norm_over_kept_channels(forward):
    def norm(module, x):
        if (kept := kept_entries(module.weight)) is None:
            return forward(module, x)
        kept_module = types.SimpleNamespace(**vars(module), weight=module.weight[kept], bias=module.bias[kept])
        part = forward(kept_module, x.index_select(module.channel_dim, kept))
        return torch.zeros_like(x).index_copy(module.channel_dim, kept, part)

    return norm


@contextlib.contextmanager
def statistics_of_kept_channels():
    """Let normalisation over channels use only those with a non-zero gain, as in the sub-network."""
    norms = timm.layers.norm
    response_norm = timm.layers.grn.GlobalResponseNorm
    replacements = [
        (F, 'layer_norm', over_kept_channels(F.layer_norm, -1)),
        (F, 'rms_norm', over_kept_channels(F.rms_norm, -1)),
        (norms, 'rms_norm', over_kept_channels(norms.rms_norm, -1)),
        (norms, 'rms_norm2d', over_kept_channels(norms.rms_norm2d, 1)),
        (norms, 'simple_norm', over_kept_channels(norms.simple_norm, -1)),
        (F, 'group_norm', group_norm_over_kept_channels(F.group_norm)),
        (F, 'batch_norm', weight_standardisation_over_kept_channels(F.batch_norm)),
        (response_norm, 'forward', response_norm_over_kept_channels(response_norm.forward)),
    ]
    with contextlib.ExitStack() as stack:
        for owner, name, replacement in replacements:
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the largest absolute difference, relative to the largest reference value."""
    value, reference = value.detach(), reference.detach()
    return float((value - reference).abs().max() / reference.abs().max().clamp_min(1e-300))


def gradient_errors(model: nn.Module, zeroed: nn.Module, plan: SlimmablePlan, counts: Counts) -> tuple[float, bool]:
    """Compare `model`'s gradients, from the sub-network, with those of the zeroed copy.

    Returns:
        The largest relative error among kept elements, and whether the gradients of all dropped elements are zero.
    """
    worst, clean = 0.0, True
    references = dict(zeroed.named_parameters())
    largest = max(float(p.grad.abs().max()) for p in references.values() if p.grad is not None)
    for name, parameter in model.named_parameters():
        reference = references[name].grad
        if parameter.grad is None or reference is None:
            continue
        kept = kept_mask(plan, name, parameter.shape, counts)
        clean &= not (parameter.grad * ~kept).any()
        worst = max(worst, float(((parameter.grad - reference) * kept).abs().max()) / largest)
    return worst, clean
