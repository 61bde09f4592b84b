"""UADA: augmentation parameters that follow the sign of the loss's finite differences, sample by sample.

Source: Xu and Zhao, "Universal Adaptive Data Augmentation" (arXiv 2207.06658), section 3.3 and algorithm 1.

For each batch:

1. draw the parameters of all groups (`augment.parameters`) and score this base;
2. score one probe for each group, in which that group's parameters have moved by `delta`;
3. move each group by `epsilon` along the sign of the difference;
4. score the candidates, in each of which one group has moved;
5. train each sample on its worst candidate, the base being one of them.
"""

import functools
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from timm.data.loader import adapt_to_chs
from torch import nn

from regaug.augment.parameters import BASE, Augmentation, Parameters
from regaug.errors import OptionError
from regaug.methods import Metrics, Pictures
from regaug.methods.candidates import Candidates
from regaug.methods.scoring import SHOWN, Selection, Selector, select, without_nan
from regaug.methods.scouts import comparison, create_scorers, is_compared, scouting
from regaug.seeds import derived_seed

Score = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class UADA(Selector):
    """Chooses the augmentation of each sample.

    Args:
        augmentation: draws, moves and applies the parameters.
        scorer: gives the loss of each sample.
        seed: of the run; the draws depend on it and on the batch's key alone.
        delta: size of the probes, in levels and pixels.
        epsilon: size of the step; with 0 nothing adapts and nothing is scored.
        step: `ascend`; the paper's controls (table 6) are `random`, where parameters move at random, and `descend`,
            where they move down the loss and each sample trains on its easiest candidate.
        exact: gives the loss where `scorer` approximates it, None where it does not; now and then the choices by both
            are compared.
    """

    def __init__(
        self,
        augmentation: Augmentation,
        *,
        scorer: Score,
        seed: int,
        delta: int = 1,
        epsilon: int = 1,
        step: str = 'ascend',
        exact: Score | None = None,
    ):
        self.augmentation = augmentation
        self.scorer = scorer
        self.seed = seed
        self.delta = delta
        self.epsilon = epsilon
        self.step = step
        self.exact = exact
        self._shown = None

    @torch.no_grad()
    def __call__(
        self, input: torch.Tensor, target: torch.Tensor, key: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        """Choose what to train on.

        Args:
            input: images [B, C, H, W] in [0, 1], float32, as the first group expects them.
            target: class indices [B].
            key: what the draws depend on besides the seed: (num_updates, rank, micro-batch).

        Returns:
            (normalised input [B, C, H, W], target, metrics).
        """
        rng = np.random.default_rng(derived_seed('uada', self.seed, *key))
        # Step 1: draw the parameters of all groups. How the groups may move is drawn as well, whatever comes of it.
        base = self.augmentation.draw(rng, input)
        if not self.epsilon:
            images, _ = self.augmentation.apply(input, {BASE: base})
            return images[BASE], target, {'uada_passes': 0.0}
        at_random = self.step == 'random'
        steps = self.augmentation.draw_steps(rng, base, self.delta, toss_flips=at_random)
        move = self.move_at_random if at_random else self.move_by_probes
        candidates = move(input, target, base, steps, self.scorer)
        # Step 5: each sample trains on its worst candidate.
        index = self.choose(candidates)
        images, *others = candidates.images.values()
        for number, moved in enumerate(others, start=1):
            images = select(index == number, moved, images)
        if self.keep_pictures:
            pairs = torch.stack([candidates.images[BASE][: SHOWN // 2], images[: SHOWN // 2]], dim=1)
            self._shown = pairs, candidates, index
        metrics = candidates.metrics(index, steps.get('policy'))
        if self.exact is not None and is_compared(key):
            torch.clear_autocast_cache()  # of weights in the dtype of the passes so far
            exact = move(input, target, base, steps, self.exact)
            metrics |= self.compare(candidates, index, exact, self.exact(images, target))
        return images, target, metrics

    def move_by_probes(
        self, input: torch.Tensor, target: torch.Tensor, base: Parameters, steps: dict[str, torch.Tensor], score: Score
    ) -> Candidates:
        """Move the groups along the sign of the loss's finite differences: steps 1 to 4."""
        augmentation = self.augmentation
        # Step 1, scored, and step 2: one probe for each group.
        probes = {group: augmentation.move(base, group, step) for group, step in steps.items()}
        images, before_cutout = augmentation.apply(input, {BASE: base, **probes})
        losses = {name: score(batch, target) for name, batch in images.items()}
        passes = len(images)

        # Step 3: all coordinates of a group follow the one difference that its probe made, each by the sign of its own
        # step (equation 5), as in the released code also one that a bound held back while others moved. Where a bound
        # held back the whole probe, and where a loss is no number, nothing moves.
        losses = self.own_losses({BASE: base, **probes}, losses)
        moved = {}
        for group, step in steps.items():
            uphill = (losses[group] - losses[BASE]).sign().nan_to_num() * (-1 if self.step == 'descend' else 1)
            uphill = uphill.to(step.dtype).view(-1, *[1] * (step.ndim - 1))
            moved[group] = augmentation.move(base, group, self.epsilon * uphill * step.sign())

        # Step 4: score them. A flip has two values, so its candidate is the probe or the base, both scored already.
        unscored = {group: params for group, params in moved.items() if group != 'flip'}
        moved_images, _ = augmentation.apply(input, unscored, before_cutout)
        losses |= {group: score(batch, target) for group, batch in moved_images.items()}
        passes += len(moved_images)
        if 'flip' in moved:
            moved_images['flip'] = select(moved['flip'].flips != base.flips, images['flip'], images[BASE])
        return self.collect({BASE: base, **moved}, {BASE: images[BASE], **moved_images}, losses, passes)

    def move_at_random(
        self, input: torch.Tensor, target: torch.Tensor, base: Parameters, steps: dict[str, torch.Tensor], score: Score
    ) -> Candidates:
        """Move the groups up or down by the toss of a coin, without a probe."""
        moved = {
            group: self.augmentation.move(base, group, self.epsilon * step.sign()) for group, step in steps.items()
        }
        params = {BASE: base, **moved}
        images, _ = self.augmentation.apply(input, params)
        losses = {name: score(batch, target) for name, batch in images.items()}
        return self.collect(params, images, losses, len(images))

    def collect(
        self,
        params: dict[str, Parameters],
        images: dict[str, torch.Tensor],
        losses: dict[str, torch.Tensor],
        passes: int,
    ) -> Candidates:
        """`Candidates` in the order of the parameters."""
        images = {name: images[name] for name in params}
        return Candidates(params, images, self.own_losses(params, losses), passes)

    def own_losses(self, params: dict[str, Parameters], losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The losses, but that of the base where a sample's parameters have not moved.

        Batch statistics depend on the rest of the batch: the same image has another loss in another pass.
        """
        base, same = params[BASE], self.augmentation.same
        return {BASE: losses[BASE]} | {
            group: torch.where(same(moved, base, group), losses[BASE], losses[group])
            for group, moved in params.items()
            if group != BASE
        }

    def choose(self, candidates: Candidates) -> torch.Tensor:
        """Number of the candidate that each sample trains on, int64 [B]; of equal ones the first, NaN last."""
        losses = candidates.table
        return without_nan(-losses if self.step == 'descend' else losses).argmax(dim=0)

    def compare(
        self, candidates: Candidates, index: torch.Tensor, exact: Candidates, rescored: torch.Tensor
    ) -> Metrics:
        """What to log about a choice beside that by exact scores, whose probes may have moved elsewhere.

        Args:
            index: number of the candidate that each sample trains on, [B].
            exact: candidates by exact scores; the baseline is the loss of the base.
            rescored: exact losses of the choice, [B], which count where the exact candidates have no such image.
        """
        best, losses = self.choose(exact), exact.table
        known = torch.zeros_like(index, dtype=torch.bool)
        for number, (group, params) in enumerate(candidates.params.items()):
            known |= (index == number) & (group == BASE or self.augmentation.same(params, exact.params[group], group))
        chosen = torch.where(known, losses.gather(0, index[None])[0], rescored)
        return comparison('uada', known & (index == best), chosen, losses.gather(0, best[None])[0], losses[0])

    def pictures(self) -> Pictures:
        """The first samples as they were drawn and, each after that, as they are trained on, with their losses."""
        if self._shown is None:
            return []
        pairs, candidates, index = self._shown
        values, names, captions = candidates.table.T.tolist(), list(candidates.losses), []
        for sample, number in enumerate(index[: len(pairs)].tolist()):
            before, after = values[sample][0], values[sample][number]
            captions += [f'loss {before:.2f}', f'{names[number]}: loss {after:.2f}' if number else 'as it was drawn']
        return [('uada', pairs.flatten(0, 1), captions)]


def create(args: Namespace, model: nn.Module, data_config: dict[str, Any]) -> Selection | None:
    """UADA for these options, None without.

    Raises:
        OptionError: when it has no operators for the images.
    """
    if not args.uada:
        return None
    channels = data_config['input_size'][0]
    if 'policy' in args.uada_groups and channels not in (1, 3):
        raise OptionError(f'--uada-groups policy: its operators take 1 or 3 channels, these images have {channels}.')
    scout = scouting(args, model, data_config['input_size'], 'UADA') if args.uada_epsilon else None
    build = functools.partial(create_uada, args=args, data_config=data_config, scout=scout)
    option = f'--uada with --model {args.model}'
    return Selection('uada', build, data_config, option=option, scores=args.uada_epsilon > 0)


def create_uada(phase: Any, task: nn.Module, args: Namespace, data_config: dict[str, Any], scout: Any = None) -> UADA:
    """UADA as it is in a phase.

    Args:
        phase: `training.phases.Phase`.
        task: whose network scores the candidates.
        args: the options as they were given.
        data_config: timm's data configuration.
        scout: see `scouts.scouting`.
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
        **create_scorers(task, scout),
        seed=args.seed,
        delta=args.uada_delta,
        epsilon=args.uada_epsilon,
        step=args.uada_step,
    )


def adapt_phase(phase: Any, epoch: int, args: Namespace):
    """Images come in [0, 1], and the loader leaves to UADA what its groups do; off in refinement."""
    if not phase.options.uada:
        return phase
    if 'flip' in args.uada_groups:
        phase = phase.with_options(hflip=0.0)
    padding = 0 if 'crop' in args.uada_groups else phase.padding
    return replace(phase.on('uada'), padding=padding, normalises=False)
