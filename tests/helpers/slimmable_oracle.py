"""Sub-networks against the full-size network whose dropped channels are zeroed."""

import torch
from torch import nn

from benchmarks.zoo_oracle import (
    gradient_errors,
    kept_mask,
    make_generic,
    relative_error,
    statistics_of_kept_channels,
    zeroed_copy,
)
from regaug.slimmable import Twin

__all__ = ['assert_equals_zeroed_network', 'kept_mask', 'make_generic', 'relative_error', 'zeroed_copy']


def assert_equals_zeroed_network(
    twin: Twin, model: nn.Module, x: torch.Tensor, width: float, only_outputs: bool = True
):
    """Assert that output and gradients of the sub-network are those of the network with its dropped channels zeroed."""
    counts = twin.plan.counts(width, twin.width_divisor)
    zeroed = zeroed_copy(model, twin.plan, counts, only_outputs)
    with statistics_of_kept_channels():
        expected = zeroed(x)
        expected.square().sum().backward()
        model.zero_grad()
        twin.set(width)
        output = twin(x)
        output.square().sum().backward()
    twin.clear()
    assert relative_error(output, expected) < 1e-9
    error, others_are_zero = gradient_errors(model, zeroed, twin.plan, counts)
    assert error < 1e-9
    assert others_are_zero
