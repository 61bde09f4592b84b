"""References for sub-networks: what a network with dropped channels computes, obtained without slicing it."""

import contextlib
import copy
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

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


def kept_mask(plan, name: str, shape: torch.Size, counts) -> torch.Tensor:
    """True at the elements of a parameter that the sub-network holds."""
    mask = torch.ones(shape, dtype=torch.bool)
    for dim, ranges in plan.layout.ranges(name, counts).items():
        kept = torch.zeros(shape[dim], dtype=torch.bool)
        for start, length in ranges:
            kept[start : start + length] = True
        mask &= kept.reshape([-1 if other == dim else 1 for other in range(len(shape))])
    return mask


def zeroed_copy(model: nn.Module, plan, counts, only_outputs: bool) -> nn.Module:
    """A full-size copy with dropped channels set to zero.

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


@contextlib.contextmanager
def statistics_of_kept_channels():
    """Normalisation over channels uses only those with a non-zero gain, as in the sub-network."""
    layer_norm, group_norm, batch_norm = F.layer_norm, F.group_norm, F.batch_norm
    rms_norm = F.rms_norm

    def scatter(part, like, kept, dim):
        return torch.zeros_like(like).index_copy(dim, kept, part)

    def kept_entries(weight):
        return None if weight is None or weight.dim() != 1 or bool(weight.all()) else weight.nonzero().flatten()

    def layer(x, shape, weight=None, bias=None, eps=1e-5):
        if (kept := kept_entries(weight)) is None:
            return layer_norm(x, shape, weight, bias, eps)
        part = layer_norm(x[..., kept], (len(kept),), weight[kept], None if bias is None else bias[kept], eps)
        return scatter(part, x, kept, -1)

    def rms(x, shape, weight=None, eps=None):
        if (kept := kept_entries(weight)) is None:
            return rms_norm(x, shape, weight, eps)
        return scatter(rms_norm(x[..., kept], (len(kept),), weight[kept], eps), x, kept, -1)

    def group(x, groups, weight=None, bias=None, eps=1e-5):
        if groups > 1 or (kept := kept_entries(weight)) is None:
            return group_norm(x, groups, weight, bias, eps)
        return scatter(group_norm(x[:, kept], 1, weight[kept], bias[kept], eps), x, kept, 1)

    def batch(x, mean, var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5):
        if x.dim() == 3 and x.shape[0] == 1 and mean is None:  # weight standardisation, [1, out, in * height * width]
            kept = (x[0] != 0).any(0).nonzero().flatten()
            part = batch_norm(x[:, :, kept], None, None, weight, bias, True, momentum, eps)
            return scatter(part, x, kept, 2)
        return batch_norm(x, mean, var, weight, bias, training, momentum, eps)

    with contextlib.ExitStack() as stack:
        for name, function in (('layer_norm', layer), ('rms_norm', rms), ('group_norm', group), ('batch_norm', batch)):
            stack.enter_context(mock.patch.object(F, name, function))
        yield


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest reference value."""
    value, reference = value.detach(), reference.detach()
    return float((value - reference).abs().max() / reference.abs().max().clamp_min(1e-300))


def gradient_errors(model: nn.Module, zeroed: nn.Module, plan, counts) -> tuple[float, bool]:
    """Compares `model`'s gradients, from the sub-network, with those of the zeroed copy.

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
        clean &= not parameter.grad[~kept].any()
        worst = max(worst, float((parameter.grad - reference)[kept].abs().max()) / largest)
    return worst, clean


def assert_equals_zeroed_network(twin, model: nn.Module, x: torch.Tensor, width: float, only_outputs: bool = True):
    """The sub-network's output and gradients are those of the full-size network with its dropped channels zeroed."""
    counts = twin.plan.counts(width, twin.width_divisor)
    zeroed = zeroed_copy(model, twin.plan, counts, only_outputs)
    with statistics_of_kept_channels():
        expected = zeroed(x)
        expected.square().sum().backward()
        model.zero_grad()
        with twin.at(width):
            output = twin(x)
        output.square().sum().backward()
    twin.clear()
    assert relative_error(output, expected) < 1e-9
    error, others_are_zero = gradient_errors(model, zeroed, twin.plan, counts)
    assert error < 1e-9
    assert others_are_zero
