"""Sub-networks by stochastic depth, GradAug's variant of the authors' rebuttal (arXiv 2006.07989).

The released code (`--gradaug-depth-mode batch`) decides once for the batch which branches a sub-network drops, and
leaves the others as they are; timm's drop path (`sample`, the default) decides for each sample, and divides what it
keeps by the probability of being kept. Two differences from the released code remain in either mode: there sub-networks
update the running statistics of batch-norm, here they leave no trace; and there branches are multiplied by their
probability of being kept at evaluation, here the full network is evaluated as it was trained, at full depth and without
a factor.
"""

import torch
from timm.layers import DropPath
from torch import nn

from regaug.slimmable.structure import structure_copy, untrack_batch_statistics


def take_drop_path(model: nn.Module) -> dict[str, float]:
    """Switch off a model's drop path, so that the full network always has its full depth.

    Returns:
        {module name: probability with which it dropped its branch}, of those that did.
    """
    rates = {name: part.drop_prob for name, part in model.named_modules() if isinstance(part, DropPath)}
    rates = {name: rate for name, rate in rates.items() if rate}
    for name in rates:
        model.get_submodule(name).drop_prob = 0.0
    return rates


class BatchDropPath(nn.Module):
    """Drops its input for the whole batch or keeps it as it is, in training.

    Args:
        drop_prob: probability of multiplying by zero, which leaves a gradient for every parameter.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return input * input.new_empty(()).bernoulli_(1 - self.drop_prob) if self.training else input


class DepthTwin:
    """A copy of a model's modules around the model's own parameters, in which branches are dropped at random.

    Batch-norm in the copy uses the statistics of the batch and keeps none. A dropped branch is multiplied by zero,
    never skipped, so every parameter gets a gradient. It stands where `slimmable.Twin` stands for the width variant.

    Args:
        model: the full network, on its device.
        rates: {module name: drop probability}, as `take_drop_path` gives them.
        mode: `sample` or `batch`: for whom it is decided what is dropped.
    """

    def __init__(self, model: nn.Module, rates: dict[str, float], mode: str = 'sample'):
        self.module = structure_copy(
            model, lambda name, tensor: tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
        )
        untrack_batch_statistics(self.module)
        for name, rate in rates.items():
            if mode == 'batch':
                self.module.set_submodule(name, BatchDropPath(rate))
            else:
                self.module.get_submodule(name).drop_prob = rate

    def __call__(self, input: torch.Tensor) -> torch.Tensor:
        return self.module(input)

    def set(self, width: float):
        """Nothing to set: the forward pass itself draws which branches it drops."""

    def clear(self):
        """Nothing to drop."""

    def train(self, mode: bool = True) -> 'DepthTwin':
        self.module.train(mode)
        return self
