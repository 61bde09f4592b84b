"""Augmentation whose parameters are data: drawn for each sample, moved one group at a time, then applied to the batch.

Source: the augmentation of UADA (Xu and Zhao, "Universal Adaptive Data Augmentation", arXiv 2207.06658): crop, flip, a
policy of two operators, Cutout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from regaug.augment.mix import draw_squares, erase, onto
from regaug.augment.operators import LEVELLESS, NUM_LEVELS, OPERATORS, apply_operators, flip, shift_crop

GROUPS = ('crop', 'flip', 'policy', 'cutout')
NUM_OPERATORS = 2  # of a policy
FIELDS = {'crop': 'offsets', 'flip': 'flips', 'policy': 'levels', 'cutout': 'boxes'}  # what moves with a group
BASE = 'base'  # name of the candidate in which no group has moved
_HAS_LEVEL = np.array([name not in LEVELLESS for name in OPERATORS])


@dataclass(frozen=True)
class Parameters:
    """How B samples are augmented, in the order crop, flip, policy, Cutout.

    Attributes:
        offsets: row and column of the crop in the padded image, in pixels, int64 [B, 2].
        flips: 1 where flipped from left to right, else 0, int64 [B].
        types: the policy's operators, indices in `OPERATORS`, int64 [B, 2] on the CPU; they never move.
        levels: of the operators, 0 to 9, int64 [B, 2].
        signs: of the operators, +1 or -1, int64 [B, 2]; they never move.
        boxes: top, bottom, left, right edge of the Cutout, in pixels, int64 [B, 4]; what lies outside the image is cut.
    """

    offsets: torch.Tensor
    flips: torch.Tensor
    types: torch.Tensor
    levels: torch.Tensor
    signs: torch.Tensor
    boxes: torch.Tensor


class Augmentation:
    """Draws, moves and applies `Parameters`.

    Args:
        groups: which of `GROUPS` augment; the others change nothing.
        mean, std: of the normalisation, one number for each channel.
        device: of the images, None for the CPU.
        dtype: of the normalised images.
        padding, pad_mode: of the crop, see `operators.shift_crop`.
        flip_prob: probability of a flip.
        cutout_size: side of the square in pixels.
        ranges: of the operators, `paper` or `timm`.
        intensity: share of the samples that get a policy and a Cutout.
    """

    def __init__(
        self,
        groups: Sequence[str],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        padding: int = 4,
        pad_mode: str = 'constant',
        flip_prob: float = 0.5,
        cutout_size: int = 16,
        ranges: str = 'paper',
        intensity: float = 1.0,
    ):
        self.groups = [group for group in GROUPS if group in groups]
        self.mean, self.std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
        self.dtype = dtype
        self.padding, self.pad_mode = padding, pad_mode
        self.flip_prob = flip_prob
        self.cutout_size = cutout_size
        self.ranges = ranges
        self.intensity = intensity

    def draw(self, rng: np.random.Generator, input: torch.Tensor) -> Parameters:
        """Draw the `Parameters` of a batch.

        Args:
            input: images [B, C, H, W].
        """
        size, (height, width) = len(input), input.shape[-2:]
        offsets = np.full((size, 2), self.padding)
        flips = np.zeros(size, dtype=np.int64)
        types = np.full((size, NUM_OPERATORS), OPERATORS.index('identity'))
        levels = np.zeros((size, NUM_OPERATORS), dtype=np.int64)
        signs = np.ones((size, NUM_OPERATORS), dtype=np.int64)
        boxes = np.zeros((size, 4), dtype=np.int64)
        weak = rng.random(size) >= self.intensity
        if 'crop' in self.groups:
            offsets = rng.integers(2 * self.padding + 1, size=offsets.shape)
        if 'flip' in self.groups:
            flips = (rng.random(size) < self.flip_prob).astype(np.int64)
        if 'policy' in self.groups:
            types = np.where(weak[:, None], types, rng.integers(len(OPERATORS), size=types.shape))
            levels = rng.integers(NUM_LEVELS, size=levels.shape)
            signs = rng.choice([-1, 1], size=signs.shape)
        if 'cutout' in self.groups:
            boxes = draw_squares(rng, size, self.cutout_size, height, width)
            # As in the released code: a square may begin outside the image, above it or on its left, but ends within.
            boxes[:, [1, 3]] = np.minimum(boxes[:, [1, 3]], [height, width])
            boxes[weak] = 0
        moving = (onto(input.device, values) for values in (offsets, flips, levels, signs, boxes))
        offsets, flips, levels, signs, boxes = moving
        return Parameters(offsets, flips, torch.from_numpy(types), levels, signs, boxes)

    def draw_steps(
        self, rng: np.random.Generator, base: Parameters, delta: int, *, toss_flips: bool = False
    ) -> dict[str, torch.Tensor]:
        """Draw by how much each group moves in its probe.

        Coordinates move together, each up or down at random. Of a policy one operator moves; one without levels stays,
        and so does a Cutout that is empty. A flip goes to its other value.

        Args:
            toss_flips: let a coin decide which samples flip; the same is drawn either way.

        Returns:
            {group: step, int64 of the shape of the group's parameters}.
        """
        steps = {}
        for group in self.groups:
            values = getattr(base, FIELDS[group])
            if group == 'flip':
                heads = onto(values.device, rng.random(len(values)) < 0.5)
                steps[group] = (1 - 2 * values) * (heads if toss_flips else 1)
                continue
            step = rng.choice([-delta, delta], size=values.shape)
            if group == 'policy':
                which = rng.integers(NUM_OPERATORS, size=len(values))
                step[(np.arange(NUM_OPERATORS) != which[:, None]) | ~_HAS_LEVEL[base.types.numpy()]] = 0
            step = onto(values.device, step)
            if group == 'cutout':
                step = step * (values[:, 1] > values[:, 0])[:, None]
            steps[group] = step
        return steps

    def move(self, base: Parameters, group: str, step: torch.Tensor) -> Parameters:
        """`Parameters` with one group moved by a step, within its bounds; a Cutout has none."""
        moved = getattr(base, FIELDS[group]) + step
        high = {'crop': 2 * self.padding, 'flip': 1, 'policy': NUM_LEVELS - 1}.get(group)
        if high is not None:
            moved = moved.clamp(0, high)
        return replace(base, **{FIELDS[group]: moved})

    def same(self, params: Parameters, others: Parameters, group: str) -> torch.Tensor:
        """Where two `Parameters` that differ in one group at most are the same, bool [B]."""
        values, reference = getattr(params, FIELDS[group]), getattr(others, FIELDS[group])
        return (values == reference).view(len(values), -1).all(dim=1)

    def apply(
        self, input: torch.Tensor, candidates: dict[str, Parameters], before_cutout: torch.Tensor | None = None
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Augment and normalise a batch in several ways.

        Args:
            input: images [B, C, H, W] float32 in [0, 1].
            candidates: the `BASE` and what differs from it in the one group that it is named after, by name.
            before_cutout: the base's images as an earlier call gave them, when the base is not among the candidates.

        Returns:
            (images, before_cutout): normalised images [B, C, H, W] of each candidate, and those of the base before its
            Cutout, which comes last: a candidate that differs in the Cutout alone shares them.
        """
        if not candidates:
            return {}, before_cutout
        operated = {name: params for name, params in candidates.items() if name != 'cutout'}
        parts = [self.operate(input, list(operated.values()))] if operated else []
        if BASE in operated:
            before_cutout = parts[0].split(len(input))[list(operated).index(BASE)]
        if 'cutout' in candidates:
            operated['cutout'] = candidates['cutout']
            parts.append(before_cutout)
        images = self.finish(stacked(parts), list(operated.values()))
        images = dict(zip(operated, images.split(len(input)), strict=True))
        return {name: images[name] for name in candidates}, before_cutout

    def operate(self, input: torch.Tensor, candidates: list[Parameters]) -> torch.Tensor:
        """Crop, flip and policy of n candidates, all together: images [n * B, C, H, W] in [0, 1]."""
        if 'crop' in self.groups:
            images = shift_crop(input, joined(candidates, 'offsets'), self.padding, self.pad_mode)
        else:
            images = stacked([input] * len(candidates))
        if 'flip' in self.groups:
            images = flip(images, joined(candidates, 'flips').bool())
        if 'policy' in self.groups:
            fields = [joined(candidates, name) for name in ('types', 'levels', 'signs')]
            for slot in range(NUM_OPERATORS):
                images = apply_operators(images, *(field[:, slot] for field in fields), ranges=self.ranges)
        return images

    def finish(self, images: torch.Tensor, candidates: list[Parameters]) -> torch.Tensor:
        """Cutout, black, then normalisation and cast of n candidates; images [n * B, C, H, W] in [0, 1]."""
        if 'cutout' in self.groups:
            images = erase(images, joined(candidates, 'boxes'))
        return (images - self.mean).div_(self.std).to(self.dtype)


def joined(candidates: Sequence[Parameters], field: str) -> torch.Tensor:
    """A field of all candidates, one after the other, [n * B, ...]."""
    return stacked([getattr(params, field) for params in candidates])


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """One tensor of all rows; a single part is not copied."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]
