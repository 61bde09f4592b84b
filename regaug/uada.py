"""UADA: augmentation parameters that follow the sign of the loss's finite differences, sample by sample.

Source: Xu and Zhao, "Universal Adaptive Data Augmentation" (arXiv 2207.06658), section 3.3 and algorithm 1.

For each batch:

1. draw the parameters of all groups (`augmentation.Augmentation`) and score this base;
2. score one probe for each group, with that group's parameters moved by `delta`;
3. move each group by `epsilon` along the sign of the difference;
4. score the candidates, in each of which one group has moved;
5. train each sample on its worst candidate, the base being one of them.
"""

import math

import numpy as np
import torch

from regaug.operators import NUM_LEVELS, OPERATORS
from regaug.runtime import derived_seed
from regaug.scoring import select, worst_of


class UADA:
    """Chooses the augmentation of each sample.

    Args:
        augmentation: `augmentation.Augmentation`.
        scorer: `scoring.Scorer`.
        seed: of the run; the draws depend on it and on the batch's key alone.
        delta: size of the probes, in levels and pixels.
        epsilon: size of the step; with 0 nothing adapts and nothing is scored.
        step: `ascend`; the paper's controls (table 6) are `random`, where parameters move at random, and `descend`,
            where they move down the loss and each sample trains on its easiest candidate.
        reuse: score no sample twice with the same parameters. Candidates of several kinds then share a batch, which
            batch-norm notices.
    """

    def __init__(self, augmentation, *, scorer, seed, delta=1, epsilon=1, step='ascend', reuse=False):
        self.augmentation = augmentation
        self.scorer = scorer
        self.seed = seed
        self.delta = delta
        self.epsilon = epsilon
        self.step = step
        self.reuse = reuse

    @torch.no_grad()
    def __call__(self, input, target, key):
        """Choose what to train on.

        Args:
            input: images [B, C, H, W] in [0, 1], float32, as the first group expects them.
            target: class indices [B].
            key: what the draws depend on besides the seed: (num_updates, rank, micro-batch).

        Returns:
            (normalised input [B, C, H, W], target, figures for the log).
        """
        augmentation = self.augmentation
        rng = np.random.default_rng(derived_seed('uada', self.seed, *key))
        base = augmentation.draw(rng, input)
        if not self.epsilon:
            [images] = augmentation.apply(input, [base], {})
            return images, target, {'uada_passes': 0.0}
        steps = augmentation.draw_steps(rng, base, input, self.delta)
        if self.step == 'random':
            images, losses, moved, passes = self.move_at_random(input, target, base, steps)
        else:
            images, losses, moved, passes = self.move_by_probes(input, target, base, steps)
        levels = [params.levels for params in (base, *moved.values())]
        sign = -1 if self.step == 'descend' else 1
        choice = worst_of(zip(images, losses, levels, strict=True), lambda _, losses: sign * losses)
        images, chosen, levels = choice.chosen
        figures = {'uada_passes': passes, 'uada_gain': (chosen - losses[0]).mean()}
        figures |= self.figures(choice.index, list(moved), base.types, steps.get('policy'), levels)
        return images, target, figures

    def move_at_random(self, input, target, base, steps):
        """Candidates whose parameters moved up or down by the toss of a coin; returns what `move_by_probes` does."""
        augmentation = self.augmentation
        moved = {
            group: augmentation.move(base, group, step if group == 'flip' else self.epsilon * step.sign(), input)
            for group, step in steps.items()
        }
        images = augmentation.apply(input, [base, *moved.values()], {})
        base_loss = self.scorer(images[0], target)
        known = [augmentation.same(params, base, group) for group, params in moved.items()]
        known = [torch.where(same, base_loss, torch.nan) for same in known]
        losses, passes = self.score(images[1:], target, known)
        return images, [base_loss, *losses], moved, 1 + passes

    def move_by_probes(self, input, target, base, steps):
        """Candidates whose parameters moved along the sign of the differences.

        Returns:
            (images, losses, moved, passes): normalised images and losses of the base and each moved group in turn;
            {group: moved parameters}; batches that were scored.
        """
        augmentation = self.augmentation
        everywhere = torch.ones(len(input), dtype=torch.bool, device=input.device)
        probes = {
            group: augmentation.move(base, group, everywhere if group == 'flip' else step, input)
            for group, step in steps.items()
        }
        memo = {}
        base_images, *probe_images = augmentation.apply(input, [base, *probes.values()], memo)
        base_loss = self.scorer(base_images, target)
        known = [
            torch.where(augmentation.same(probe, base, group), base_loss, torch.nan) for group, probe in probes.items()
        ]
        probe_losses, passes = self.score(probe_images, target, known)
        flipped_images = dict(zip(probes, probe_images, strict=True)).get('flip')
        del probe_images
        probe_losses = dict(zip(probes, probe_losses, strict=True))

        moved, known = {}, []
        for group, probe in probes.items():
            moved[group] = self.move(base, group, steps[group], probe_losses[group] - base_loss, input)
            at_base = torch.where(augmentation.same(moved[group], base, group), base_loss, torch.nan)
            known.append(torch.where(augmentation.same(moved[group], probe, group), probe_losses[group], at_base))
        candidates = {group: params for group, params in moved.items() if group != 'flip'}
        images = dict(zip(candidates, augmentation.apply(input, list(candidates.values()), memo), strict=True))
        wanted = [loss for group, loss in zip(moved, known, strict=True) if group != 'flip']
        scored, more = self.score(list(images.values()), target, wanted)
        losses = dict(zip(candidates, scored, strict=True))
        if 'flip' in moved:  # either the probe or the base: nothing new to score
            flipped = ~augmentation.same(moved['flip'], base, 'flip')
            images['flip'] = select(flipped, flipped_images, base_images)
            losses['flip'] = select(flipped, probe_losses['flip'], base_loss)
        images = [base_images, *(images[group] for group in moved)]
        return images, [base_loss, *(losses[group] for group in moved)], moved, 1 + passes + more

    def move(self, base, group, step, difference, input):
        """Move a group by epsilon along the sign of its loss's finite difference (equation 5).

        Args:
            step: of the group's probe.
            difference: loss of the probe minus loss of the base, [B].
        """
        uphill = difference.sign().nan_to_num() * (-1 if self.step == 'descend' else 1)
        if group == 'flip':
            return self.augmentation.move(base, group, uphill > 0, input)
        step = self.epsilon * uphill.to(step.dtype)[:, None] * step.sign()
        return self.augmentation.move(base, group, step, input)

    def score(self, images, target, known):
        """Losses of several candidates.

        Args:
            images: list of n batches [B, C, H, W].
            target: [B].
            known: for each candidate the losses [B] that are known already, nan where they are not. With `reuse`
                only the others are scored, in batches of about equal size.

        Returns:
            (list of n losses [B], batches that were scored).
        """
        if not self.reuse:
            return [self.scorer(batch, target) for batch in images], len(images)
        if not images:
            return [], 0
        size, known = len(target), torch.cat(known)
        rows = known.isnan().nonzero()[:, 0]
        count = len(rows)
        if not count:
            return list(known.chunk(len(images))), 0
        fill = torch.arange(max(size // 2 - count, 0), device=rows.device)  # batch-norm wants no tiny batches
        images_of_all, rows_and_fill = torch.cat(images), torch.cat([rows, fill])
        pieces = rows_and_fill.tensor_split(math.ceil(count / size))
        losses = torch.cat([self.scorer(images_of_all[piece], target[piece % size]) for piece in pieces])
        known = known.index_copy(0, rows, losses[:count].to(known.dtype))
        return list(known.chunk(len(images))), len(rows_and_fill) / size

    def figures(self, index, groups, types, step, levels):
        """Shares for the log: of samples that train on a moved candidate, by group; of the operators that moved; of the
        levels trained with."""
        device = index.device
        figures = {'uada_moved': (index > 0).float().mean()}
        shares = (index == torch.arange(1, len(groups) + 1, device=device)[:, None]).float().mean(dim=1)
        figures |= {f'uada_moved_{group}': share for group, share in zip(groups, shares, strict=True)}
        if step is None:
            return figures
        chosen = (index == 1 + groups.index('policy'))[:, None] & (step != 0)
        types = types.to(device, non_blocking=True)
        operators = torch.zeros(len(OPERATORS), device=device).scatter_add_(
            0, types.flatten(), chosen.flatten().float()
        )
        operators = operators / operators.sum().clamp(min=1)
        level_shares = (levels[..., None] == torch.arange(NUM_LEVELS, device=device)).float().mean(dim=(0, 1))
        figures |= {f'uada_operator/{name}': share for name, share in zip(OPERATORS, operators, strict=True)}
        return figures | {f'uada_level/{level}': share for level, share in enumerate(level_shares)}
