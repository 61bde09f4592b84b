"""Scouts: candidates are scored at a smaller size or in a shorter number format than those of training.

An approximation of MaxUp and UADA: the choice may be another one than by exact scores, so from time to time the two are
compared. What is trained on is never resized.
"""

import logging
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from regaug.errors import OptionError
from regaug.methods import Metrics
from regaug.methods.scoring import Scorer
from regaug.methods.subnetworks import check_sizes, sizes_for

_logger = logging.getLogger('train')
COMPARED_EVERY = 500  # updates


class Scout(Scorer):
    """Scores candidates more cheaply than they are trained on.

    Args:
        task: as for `Scorer`.
        size: height to which larger images are resized for the passes: pixels, or a share of their own, rounded as by
            `sizes_for`; None: as they are.
        dtype: of an autocast around the passes, in the place of the task's; None: the task's.
    """

    def __init__(self, task: nn.Module, *, size: float | None = None, dtype: torch.dtype | None = None):
        super().__init__(task)
        self.size = size
        self.dtype = dtype

    def autocast(self, input: torch.Tensor) -> AbstractContextManager:
        return super().autocast(input) if self.dtype is None else torch.autocast(input.device.type, dtype=self.dtype)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of a batch, resized."""
        height, width = input.shape[-2:]
        pixels = height if self.size is None else sizes_for(height, [self.size])[0]
        if pixels < height:
            input = F.interpolate(input, size=(pixels, round(pixels * width / height)), mode='bilinear')
        return super().forward(input)


def scouting(args: Namespace, model: nn.Module, input_size: Sequence[int], method: str):
    """Arguments of the `Scout` that the options ask for, empty where its scores would be the exact ones.

    Args:
        input_size: (C, H, W) as timm resolves it.
        method: its name for the log, which names the approximation.

    Raises:
        OptionError: when the size is above that of the training images, or the model cannot take it.
    """
    scout, how = {}, ''
    if args.score_size is not None:
        heights = args.train_img_sizes or [input_size[1]]
        if args.score_size > max(heights):
            raise OptionError(f'--score-size {args.score_size}: above the training size, {max(heights)} pixels.')
        pixels = {height: sizes_for(height, [args.score_size])[0] for height in heights}
        smaller = sorted({size for height, size in pixels.items() if size < height})
        option = '--score-size' if args.score_size in smaller else f'--score-size {args.score_size}, which is'
        alone = min(args.train_batch_sizes or [args.batch_size]) == 1
        fixed = args.freeze_bn or (args.distributed and args.sync_bn)
        source = '--train-batch-sizes' if args.train_batch_sizes else '--batch-size'
        single = f'{source} 1' if alone and not fixed else ''
        check_sizes(model, input_size, smaller, option=option, single=single)
        if smaller:
            scout['size'] = args.score_size
            how += f' at {" or ".join(map(str, smaller))} pixels'
    if args.score_dtype not in (None, args.amp_dtype if args.amp else args.model_dtype):
        scout['dtype'] = getattr(torch, args.score_dtype)
        how += f' in {args.score_dtype}'
    if scout and args.rank == 0:
        _logger.info(
            f'{method}: candidates are scored{how}, an approximation; every {COMPARED_EVERY} updates the choice is '
            'compared with the exact one.'
        )
    return scout


def create_scorers(task: nn.Module, scout: dict[str, Any] | None) -> dict[str, Scorer]:
    """What scores, by the names under which selectors take it; `scout` as `scouting` gives it, or None."""
    return {'scorer': Scout(task, **scout), 'exact': Scorer(task)} if scout else {'scorer': Scorer(task)}


def is_compared(key: tuple[int, int, int]) -> bool:
    """Whether an update compares its choice with the exact one, by the number of the update alone.

    Args:
        key: (num_updates, rank, micro-batch).
    """
    return key[0] % COMPARED_EVERY == 0


def comparison(
    name: str, same: torch.Tensor, chosen: torch.Tensor, best: torch.Tensor, baseline: torch.Tensor
) -> Metrics:
    """What to log about a choice beside the exact one.

    Args:
        name: of the method.
        same: where both choose the same, bool [B].
        chosen, best: exact scores of the choice and of the exact choice, [B].
        baseline: exact scores without a choice, [B].

    Returns:
        Share of the samples with the same choice; share of the gain over the baseline that the choice keeps.
    """
    gained, possible = (chosen - baseline).mean(), (best - baseline).mean()
    kept = torch.where(gained == possible, 1.0, gained / possible)  # also where there is nothing to gain
    return {f'{name}_agreement': same.float().mean(), f'{name}_gain_kept': kept}
