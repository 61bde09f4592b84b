"""UADA: augmentation parameters that follow the sign of the loss's finite differences, sample by sample.

Source: Xu and Zhao, "Universal Adaptive Data Augmentation" (arXiv 2207.06658), section 3.3 and algorithm 1.

For each batch:

1. draw the parameters of all groups (`augmentation.Augmentation`) and score this base;
2. score one probe for each group, with that group's parameters moved by `delta`;
3. move each group by `epsilon` along the sign of the difference;
4. score the candidates, in each of which one group has moved;
5. train each sample on its worst candidate, the base being one of them.
"""

import functools
from dataclasses import dataclass, replace

import numpy as np
import torch
from timm.data.loader import adapt_to_chs

from regaug.augment.operators import NUM_LEVELS, OPERATORS
from regaug.augment.parameters import Augmentation, Parameters
from regaug.errors import OptionError
from regaug.methods.scoring import Scorer, Selection, select
from regaug.seeds import derived_seed


@dataclass(frozen=True)
class Candidates:
    """The base, and for each group the candidate in which that group has moved; lists of equal length.

    Attributes:
        groups: names of the groups that moved, one less than there are candidates.
        params: `augmentation.Parameters` of each candidate.
        images: normalised, [B, C, H, W] each.
        losses: [B] each; where a candidate did not move it is the base, with the base's loss.
        passes: scoring passes that it took.
    """

    groups: list[str]
    params: list[Parameters]
    images: list[torch.Tensor]
    losses: list[torch.Tensor]
    passes: int


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
    """

    def __init__(self, augmentation, *, scorer, seed, delta=1, epsilon=1, step='ascend'):
        self.augmentation = augmentation
        self.scorer = scorer
        self.seed = seed
        self.delta = delta
        self.epsilon = epsilon
        self.step = step

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
        find = self.move_at_random if self.step == 'random' else self.move_by_probes
        candidates = find(input, target, base, steps)
        index = self.choose(candidates)
        images = candidates.images[0]
        for number, others in enumerate(candidates.images[1:], start=1):
            images = select(index == number, others, images)
        figures = self.figures(candidates, index, steps.get('policy'))
        return images, target, figures

    def choose(self, candidates):
        """Which candidate each sample trains on, int64 [B]; of equal ones the first."""
        losses = torch.stack(candidates.losses)
        return losses.argmin(dim=0) if self.step == 'descend' else losses.argmax(dim=0)

    def move_at_random(self, input, target, base, steps):
        """`Candidates` whose parameters moved up or down by the toss of a coin."""
        augmentation = self.augmentation
        moved = {
            group: augmentation.move(base, group, step if group == 'flip' else self.epsilon * step.sign(), input)
            for group, step in steps.items()
        }
        base_images, *images = augmentation.apply(input, [base, *moved.values()], {})
        base_loss = self.scorer(base_images, target)
        images = dict(zip(moved, images, strict=True))
        losses = self.score(images, target)
        return self.collect(base, base_images, base_loss, moved, images, losses, 1 + len(losses))

    def move_by_probes(self, input, target, base, steps):
        """`Candidates` whose parameters moved along the sign of the loss's finite differences."""
        augmentation, memo = self.augmentation, {}
        everywhere = torch.ones(len(input), dtype=torch.bool, device=input.device)
        probes = {
            group: augmentation.move(base, group, everywhere if group == 'flip' else step, input)
            for group, step in steps.items()
        }
        base_images, *images = augmentation.apply(input, [base, *probes.values()], memo)
        base_loss = self.scorer(base_images, target)
        images = dict(zip(probes, images, strict=True))
        probe_losses = self.score(images, target)
        flipped_images = images.get('flip')

        moved = {
            group: self.follow(base, group, step, probe_losses[group] - base_loss, input)
            for group, step in steps.items()
        }
        rest = {group: params for group, params in moved.items() if group != 'flip'}
        images = dict(zip(rest, augmentation.apply(input, list(rest.values()), memo), strict=True))
        del memo
        losses = self.score(images, target)
        passes = 1 + len(probe_losses) + len(losses)
        if 'flip' in moved:  # either the probe or the base: nothing new to score
            flipped = moved['flip'].flips != base.flips
            images['flip'] = select(flipped, flipped_images, base_images)
            losses['flip'] = probe_losses['flip']
        return self.collect(base, base_images, base_loss, moved, images, losses, passes)

    def follow(self, base, group, step, difference, input):
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

    def score(self, images, target):
        """Losses of several candidates.

        Args:
            images: {group: [B, C, H, W]}.
            target: [B].

        Returns:
            {group: losses [B]}.
        """
        return {group: self.scorer(batch, target) for group, batch in images.items()}

    def collect(self, base, base_images, base_loss, moved, images, losses, passes):
        """`Candidates` in the order of the groups."""
        losses = [
            torch.where(self.augmentation.same(params, base, group), base_loss, losses[group])
            for group, params in moved.items()
        ]
        images = [base_images, *(images[group] for group in moved)]
        return Candidates(list(moved), [base, *moved.values()], images, [base_loss, *losses], passes)

    def figures(self, candidates, index, step):
        """What to log about the choice.

        Args:
            index: which candidate each sample trains on, [B].
            step: of the policy's probe, [B, 2], or None without policy.

        Returns:
            Passes, loss gained, share of samples that train on a moved candidate, in all and by group; with a policy
            also shares of the operators among those that moved it and of the levels trained with.
        """
        losses, groups, device = torch.stack(candidates.losses), candidates.groups, index.device
        shares = (index == torch.arange(1, len(groups) + 1, device=device)[:, None]).float().mean(dim=1)
        figures = {
            'uada_passes': float(candidates.passes),
            'uada_gain': (losses.gather(0, index[None])[0] - losses[0]).mean(),
            'uada_moved': (index > 0).float().mean(),
            **{f'uada_moved_{group}': share for group, share in zip(groups, shares, strict=True)},
        }
        if step is None:
            return figures
        place = 1 + groups.index('policy')
        base, policy = candidates.params[0], candidates.params[place]
        chosen = (index == place)[:, None]
        levels = torch.where(chosen, policy.levels, base.levels)
        types = base.types.to(device, non_blocking=True)
        operators = torch.zeros(len(OPERATORS), device=device)
        operators.scatter_add_(0, types.flatten(), (chosen & (step != 0)).flatten().float())
        operators = operators / operators.sum().clamp(min=1)
        level_shares = (levels[..., None] == torch.arange(NUM_LEVELS, device=device)).float().mean(dim=(0, 1))
        figures |= {f'uada_operator/{name}': share for name, share in zip(OPERATORS, operators, strict=True)}
        return figures | {f'uada_level/{level}': share for level, share in enumerate(level_shares)}


def create(args, model, data_config):
    """UADA for these options, None without.

    Raises:
        OptionError: when it has no operators for the images.
    """
    if not args.uada:
        return None
    channels = data_config['input_size'][0]
    if 'policy' in args.uada_groups and channels not in (1, 3):
        raise OptionError(f'--uada-groups policy: its operators take 1 or 3 channels, these images have {channels}.')
    build = functools.partial(create_uada, args=args, data_config=data_config)
    option = f'--uada with --model {args.model}'
    return Selection('uada', build, data_config, option=option, scores=args.uada_epsilon > 0)


def create_uada(phase, task, args, data_config):
    """UADA as it is in a phase.

    Args:
        phase: `training.phases.Phase`.
        task: whose network scores the candidates.
        args: the options as they were given.
        data_config: timm's data configuration.
    """
    channels = data_config['input_size'][0]
    augmentation = Augmentation(
        args.uada_groups,
        mean=adapt_to_chs(data_config['mean'], channels),
        std=adapt_to_chs(data_config['std'], channels),
        device=task.device,
        dtype=getattr(torch, args.model_dtype or 'float32'),
        padding=args.pad_crop,
        pad_mode=args.pad_mode,
        flip_prob=args.hflip,
        cutout_size=args.cutout_size,
        ranges=args.uada_ranges,
        intensity=phase.intensity,
    )
    return UADA(
        augmentation,
        scorer=Scorer(task),
        seed=args.seed,
        delta=args.uada_delta,
        epsilon=args.uada_epsilon,
        step=args.uada_step,
    )


def adapt_phase(phase, epoch, args):
    """Images come in [0, 1], and the loader leaves to UADA what its groups do; off in refinement."""
    if not phase.options.uada:
        return phase
    if 'flip' in args.uada_groups:
        phase = phase.with_options(hflip=0.0)
    padding = 0 if 'crop' in args.uada_groups else phase.padding
    return replace(phase.on('uada'), padding=padding, normalises=False)
