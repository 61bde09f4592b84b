"""What UADA may train a batch on, and what there is to log about its choice."""

from dataclasses import dataclass

import torch

from regaug.augment.mix import onto
from regaug.augment.operators import NUM_LEVELS, OPERATORS
from regaug.augment.parameters import Parameters
from regaug.methods import Metrics


@dataclass(frozen=True)
class Candidates:
    """What a batch may train on, by name: the base first, then the groups; each has moved in the candidate of its name.

    Attributes:
        params: how the candidates are augmented.
        images: normalised, [B, C, H, W] each.
        losses: [B] each.
        passes: scoring passes that it took.
    """

    params: dict[str, Parameters]
    images: dict[str, torch.Tensor]
    losses: dict[str, torch.Tensor]
    passes: int

    @property
    def table(self) -> torch.Tensor:
        """Losses of all candidates, [m, B], that of the base first."""
        return torch.stack(list(self.losses.values()))

    def metrics(self, index: torch.Tensor, step: torch.Tensor | None) -> Metrics:
        """What to log about a choice.

        Args:
            index: number of the candidate that each sample trains on, [B].
            step: of the policy's probe, [B, 2], or None without policy.

        Returns:
            Passes, loss gained, fraction of the samples that train on a moved candidate, in all and by group; with a
            policy also the distribution of the operators among those that moved it and of the levels trained with.
        """
        losses, device = self.table, index.device
        base, *groups = self.params
        moved = (index == torch.arange(1, len(self.params), device=device)[:, None]).float().mean(dim=1)
        metrics = {
            'uada_passes': float(self.passes),
            'uada_gain': (losses.gather(0, index[None])[0] - losses[0]).mean(),
            'uada_moved': (index > 0).float().mean(),
            **{f'uada_moved_{group}': value for group, value in zip(groups, moved, strict=True)},
        }
        if step is None:
            return metrics
        drawn, policy = self.params[base], self.params['policy']
        chosen = (index == 1 + groups.index('policy'))[:, None]
        types = onto(device, drawn.types)
        operators = torch.zeros(len(OPERATORS), device=device)
        operators.scatter_add_(0, types.flatten(), (chosen & (step != 0)).flatten().float())
        operators = operators / operators.sum().clamp(min=1)
        levels = torch.where(chosen, policy.levels, drawn.levels)
        levels = (levels[..., None] == torch.arange(NUM_LEVELS, device=device)).float().mean(dim=(0, 1))
        metrics |= {f'uada_operator/{name}': value for name, value in zip(OPERATORS, operators, strict=True)}
        return metrics | {f'uada_level/{level}': value for level, value in enumerate(levels)}
