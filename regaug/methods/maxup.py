"""MaxUp: train on the worst of m augmented copies of each sample.

Source: Gong et al., "MaxUp: A Simple Way to Improve Generalization of Neural Network Training" (arXiv 2002.09024),
section 2 and algorithm 1.
"""

import functools
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from timm.data.loader import adapt_to_chs
from torch import nn

from regaug.augment.mix import CutMix, Cutout, GaussianNoise, Mixup
from regaug.methods import Metrics, Pictures
from regaug.methods.scoring import SHOWN, Choice, Scorer, Selection, Selector, lowest_losses, worst_of
from regaug.methods.scouts import comparison, create_scorers, is_compared, scouting
from regaug.seeds import derived_seed


class MaxUp(Selector):
    """Draws m augmented copies of every sample and keeps each sample's worst.

    Args:
        augmentations: of `augment.mix`, applied one after the other to every copy.
        num_copies: m; with 1 there is nothing to score, and training is the plain augmentation's.
        scorer: gives the loss of each sample; with one copy it is not needed.
        seed: of the run; the draws depend on it and on the batch's key alone.
        views: the loader delivers m versions of each sample, [m * B, ...], version by version.
        excess: rank by the loss above the entropy of the soft target, which does not favour lambda near 0.5.
        exact: gives the loss where `scorer` approximates it, None where it does not; now and then the choices by both
            are compared.
    """

    def __init__(
        self,
        augmentations: Sequence[CutMix | Mixup | Cutout | GaussianNoise],
        *,
        num_copies: int,
        scorer: Scorer | None,
        seed: int,
        views: bool = False,
        excess: bool = False,
        exact: Scorer | None = None,
    ):
        self.augmentations = augmentations
        self.num_copies = num_copies
        self.scorer = scorer
        self.seed = seed
        self.views = views
        self.excess = excess
        self.exact = exact
        self._shown = None

    @torch.no_grad()
    def __call__(
        self, input: torch.Tensor, target: torch.Tensor, key: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        """Choose what to train on.

        Args:
            input: images [B, C, H, W], or [m * B, C, H, W] with views.
            target: class indices [B] or [m * B].
            key: what the draws depend on besides the seed: (num_updates, rank, micro-batch).

        Returns:
            (input [B, C, H, W], target [B] or [B, K], metrics).
        """
        candidates = self.drawn(input, target, key)
        if self.num_copies == 1:
            input, target, lam = next(candidates)
            return input, target, {'maxup_passes': 0.0, 'maxup_lambda': lam.mean()}
        floor = functools.partial(lowest_losses, self.scorer.task.criterion) if self.excess else None
        shown = []
        choice = worst_of(self.show(candidates, shown) if self.keep_pictures else candidates, self.scorer, floor)
        metrics = self.metrics(choice)
        if self.keep_pictures:
            self._shown = torch.stack(shown, dim=1), choice
        if self.exact is not None and is_compared(key):
            torch.clear_autocast_cache()  # of weights in the dtype of the passes so far
            metrics |= self.compare(choice, worst_of(self.drawn(input, target, key), self.exact, floor))
        input, target, lam = choice.chosen
        return input, target, {**metrics, 'maxup_lambda': lam.mean()}

    def drawn(self, input: torch.Tensor, target: torch.Tensor, key: tuple[int, int, int]):
        """`candidates` of a key, the same each time."""
        return self.candidates(input, target, np.random.default_rng(derived_seed('maxup', self.seed, *key)))

    def candidates(
        self, input: torch.Tensor, target: torch.Tensor, rng: np.random.Generator
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """The m candidate batches, one at a time: (input [B, ...], target, lambda [B])."""
        copies = self.num_copies
        inputs = input.tensor_split(copies) if self.views else [input] * copies
        target = target[: len(inputs[0])]
        draws = [augmentation.draw(rng, copies, inputs[0]) for augmentation in self.augmentations]
        for copy, input in enumerate(inputs):
            lam, mixed = torch.ones(len(input), device=input.device), target
            for make in draws:
                input, mixed, kept = make[copy](input, mixed)
                if kept is not None:
                    lam = lam * kept
            yield input, mixed, lam

    def show(self, candidates: Iterable[tuple[torch.Tensor, ...]], shown: list[torch.Tensor]):
        """The candidates; the images of the first samples are put aside as they pass."""
        for candidate in candidates:
            shown.append(candidate[0][: max(1, SHOWN // self.num_copies)].clone())
            yield candidate

    def pictures(self) -> Pictures:
        """The copies of the first samples, sample by sample, with their losses."""
        if self._shown is None:
            return []
        images, choice = self._shown
        losses, chosen = choice.losses.T.tolist(), choice.index.tolist()
        captions = [
            f'loss {loss:.2f}' + (', chosen' if copy == chosen[sample] else '')
            for sample in range(len(images))
            for copy, loss in enumerate(losses[sample])
        ]
        return [('maxup', images.flatten(0, 1), captions)]

    def compare(self, choice: Choice, exact: Choice) -> Metrics:
        """What to log about a choice beside that by exact scores; the baseline is the average over the copies."""
        chosen, best = (exact.scores.gather(0, index[None])[0] for index in (choice.index, exact.index))
        return comparison('maxup', choice.index == exact.index, chosen, best, exact.scores.mean(dim=0))

    def metrics(self, choice: Choice) -> Metrics:
        """What to log about a choice."""
        copies = self.num_copies
        counts = (choice.index == torch.arange(copies, device=choice.index.device)[:, None]).float().mean(dim=1)
        return {
            'maxup_passes': float(copies),
            'maxup_chosen_loss': choice.chosen_losses.mean(),
            'maxup_mean_loss': choice.losses.mean(),
            **{f'maxup_share{copy}': share for copy, share in enumerate(counts.unbind(), start=1)},
        }


def create(args: Namespace, model: nn.Module, data_config: dict[str, Any]) -> Selection | None:
    """MaxUp for these options, None with `--maxup 0`."""
    if not args.maxup:
        return None
    scout = scouting(args, model, data_config['input_size'], 'MaxUp') if args.maxup > 1 else None
    build = functools.partial(create_maxup, data_config=data_config, scout=scout)
    option = f'--maxup {args.maxup} with --model {args.model}'
    return Selection('maxup', build, data_config, option=option, scores=args.maxup > 1)


def create_maxup(phase: Any, task: nn.Module, data_config: dict[str, Any], scout: Any = None) -> MaxUp:
    """MaxUp as it is in a phase.

    Args:
        phase: `training.phases.Phase`.
        task: whose network scores the copies.
        data_config: timm's data configuration.
        scout: see `scouts.scouting`.
    """
    options = phase.options
    names = options.maxup_aug.split('+')
    std = adapt_to_chs(data_config['std'], data_config['input_size'][0])
    labels = dict(num_classes=options.num_classes, smoothing=options.smoothing)
    mixing = dict(labels, prob=options.mixup_prob if phase.mixing else 0.0)
    build = {
        'cutmix': lambda: CutMix(
            alpha=options.cutmix,
            minmax=options.cutmix_minmax,
            **{**mixing, 'prob': mixing['prob'] * phase.intensity},
        ),
        'mixup': lambda: Mixup(alpha=options.mixup, **mixing),
        'cutout': lambda: Cutout(size=options.cutout_size, prob=phase.intensity),
        'gauss': lambda: GaussianNoise(
            sigma=options.gauss_sigma * phase.intensity / torch.tensor(std, device=task.device)
        ),
    }
    return MaxUp(
        [build[name]() for name in names if name != 'views'],
        num_copies=options.maxup,
        **create_scorers(task, scout),
        seed=options.seed,
        views='views' in names,
        excess=options.maxup_score == 'excess',
    )


def adapt_phase(phase: Any, epoch: int, args: Namespace):
    """One copy in the warm-up, and where nothing is left that makes copies differ; off in refinement."""
    if not phase.options.maxup:
        return phase
    names = set(args.maxup_aug.split('+'))
    if args.maxup > 1 and epoch < args.maxup_warmup_epochs:
        # The average, not the worst, over the same augmentation (section 3.1).
        phase = phase.with_options(maxup=1)
        phase = replace(phase, name='warmup') if phase.name == 'main' else phase
    if not phase.mixing and names <= {'mixup', 'cutmix'} and phase.options.maxup > 1:
        phase = phase.with_options(maxup=1).without('--maxup')
    # Its mixtures come one after the other, not in each other's place: they fade each by itself.
    phase = phase.with_options(mixup_prob=args.mixup_prob, mixup_switch_prob=args.mixup_switch_prob)
    num_views = phase.options.maxup if 'views' in names else 1
    return replace(phase.on('maxup'), num_views=num_views, loader_mixes=False)
