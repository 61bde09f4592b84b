"""Sub-networks by stochastic depth, GradAug's variant of the authors' rebuttal."""

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


class DepthTwin:
    """A copy of a model's modules around the model's own parameters, in which branches are dropped at random.

    Batch-norm in the copy uses the statistics of the batch and keeps none. A dropped branch is multiplied by zero,
    never skipped, so every parameter gets a gradient. It stands where `slimmable.Twin` stands for the width variant.

    Args:
        model: the full network, on its device.
        rates: {module name: drop probability}, as `take_drop_path` gives them.
    """

    def __init__(self, model: nn.Module, rates: dict[str, float]):
        self.module = structure_copy(
            model, lambda name, tensor: tensor if isinstance(tensor, nn.Parameter) else tensor.clone()
        )
        untrack_batch_statistics(self.module)
        for name, rate in rates.items():
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
