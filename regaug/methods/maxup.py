"""MaxUp: train on the worst of m augmented copies of each sample.

Source: Gong et al., "MaxUp: A Simple Way to Improve Generalization of Neural Network Training" (arXiv 2002.09024),
section 2 and algorithm 1.
"""

import functools

import numpy as np
import torch

from regaug.methods.scoring import lowest_losses, worst_of
from regaug.seeds import derived_seed


class MaxUp:
    """Draws m augmented copies of every sample and keeps each sample's worst.

    Args:
        stages: augmentations of `mix`, applied one after the other to every copy.
        num_copies: m; with 1 there is nothing to score, and training is the plain augmentation's.
        scorer: `scoring.Scorer`.
        seed: of the run; the draws depend on it and on the batch's key alone.
        views: the loader delivers m versions of each sample, [m * B, ...], version by version.
        excess: rank by the loss above the entropy of the soft target, which does not favour shares near 0.5.
    """

    def __init__(self, stages, *, num_copies, scorer, seed, views=False, excess=False):
        self.stages = stages
        self.num_copies = num_copies
        self.scorer = scorer
        self.seed = seed
        self.views = views
        self.excess = excess

    @torch.no_grad()
    def __call__(self, input, target, key):
        """Choose what to train on.

        Args:
            input: images [B, C, H, W], or [m * B, C, H, W] with views.
            target: class indices [B] or [m * B].
            key: what the draws depend on besides the seed: (num_updates, rank, micro-batch).

        Returns:
            (input [B, C, H, W], target [B] or [B, K], figures for the log).
        """
        candidates = self.candidates(input, target, np.random.default_rng(derived_seed('maxup', self.seed, *key)))
        figures = {'maxup_passes': 0.0}
        if self.num_copies == 1:
            input, target, shares = next(candidates)
        else:
            floor = functools.partial(lowest_losses, self.scorer.task.criterion) if self.excess else None
            choice = worst_of(candidates, self.scorer, floor)
            input, target, shares = choice.chosen
            figures = self.figures(choice)
        return input, target, {**figures, 'maxup_lambda': shares.mean()}

    def candidates(self, input, target, rng):
        """The m candidate batches, one at a time: (input [B, ...], target, share of the sample's own label [B])."""
        copies = self.num_copies
        inputs = input.tensor_split(copies) if self.views else [input] * copies
        target = target[: len(inputs[0])]
        draws = [stage.draw(rng, copies, inputs[0]) for stage in self.stages]
        for copy, input in enumerate(inputs):
            shares, mixed = torch.ones(len(input), device=input.device), target
            for stage in draws:
                input, mixed, kept = stage[copy](input, mixed)
                if kept is not None:
                    shares = shares * kept
            yield input, mixed, shares

    def figures(self, choice):
        """What to log about a `scoring.Choice`."""
        copies = self.num_copies
        counts = (choice.index == torch.arange(copies, device=choice.index.device)[:, None]).float().mean(dim=1)
        return {
            'maxup_passes': float(copies),
            'maxup_chosen_loss': choice.chosen_losses.mean(),
            'maxup_mean_loss': choice.losses.mean(),
            **{f'maxup_share{copy}': share for copy, share in enumerate(counts.unbind(), start=1)},
        }
