"""Random weights of residual branches that differ between the forward and the backward pass.

Sources: X. Gastaldi, "Shake-Shake regularization", arXiv 1705.07485 (section 1.2); Y. Yamada et al., "ShakeDrop
Regularization for Deep Residual Learning", arXiv 1802.02375 (section 3).
"""

import torch
from torch import nn


def weigh(x: torch.Tensor, forward_weight: torch.Tensor, backward_weight: torch.Tensor) -> torch.Tensor:
    """A tensor times one weight, whose gradient is times another one.

    Args:
        x: [B, C, H, W].
        forward_weight, backward_weight: [B, 1, 1, 1] or [1, 1, 1, 1].
    """
    with torch.no_grad():
        difference = (forward_weight - backward_weight) * x
    return backward_weight * x + difference


class ShakeShake(nn.Module):
    """Adds two residual branches with weights alpha and 1 - alpha, drawn for each image; their mean in evaluation.

    The backward pass has weights of its own ("Shake-Shake-Image", the paper's best variant).
    """

    def draw(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """alpha and beta, uniform in [0, 1], both [B, 1, 1, 1]."""
        alpha, beta = torch.rand((2, x.shape[0], 1, 1, 1), device=x.device, dtype=x.dtype).unbind(0)
        return alpha, beta

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return 0.5 * (first + second)
        alpha, beta = self.draw(first)
        return second + weigh(first - second, alpha, beta)


class ShakeDrop(nn.Module):
    """Weighs a residual branch by 1 or, with some probability, by a random number.

    One decision for each batch; the random numbers, alpha in [-1, 1] forward and beta in [0, 1] backward, for each
    image, as in the code that table 2 of GradAug compares with. In evaluation the branch has its expected weight.

    Args:
        drop_prob: Probability of a random weight.
    """

    def __init__(self, drop_prob: float):
        super().__init__()
        self.drop_prob = drop_prob

    def draw(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Weights of the forward and of the backward pass, both [B, 1, 1, 1]."""
        like = {'device': x.device, 'dtype': x.dtype}
        dropped = torch.rand((1, 1, 1, 1), **like) < self.drop_prob
        alpha, beta = torch.rand((2, x.shape[0], 1, 1, 1), **like).unbind(0)
        return torch.where(dropped, 2 * alpha - 1, 1.0), torch.where(dropped, beta, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return (1 - self.drop_prob) * x
        return weigh(x, *self.draw(x))

    def extra_repr(self) -> str:
        return f'drop_prob={self.drop_prob:.3f}'
