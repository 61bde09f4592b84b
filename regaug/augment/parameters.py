"""Augmentation whose parameters are data: drawn for each sample, moved one group at a time, then applied to the batch.

Source: the augmentation of UADA (Xu and Zhao, "Universal Adaptive Data Augmentation", arXiv 2207.06658): crop, flip, a
policy of two operators, Cutout.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch

from regaug.augment.mix import draw_squares, erase, onto
from regaug.augment.operators import LEVELLESS, NUM_LEVELS, OPERATORS, apply_operators, flip, shift_crop

GROUPS = ('crop', 'flip', 'policy', 'cutout')
NUM_OPERATORS = 2  # of a policy
_FIELD = {'crop': 'offsets', 'flip': 'flips', 'policy': 'levels', 'cutout': 'boxes'}  # what moves with a group
_HAS_LEVEL = torch.tensor([name not in LEVELLESS for name in OPERATORS])


@dataclass(frozen=True)
class Parameters:
    """How B samples are augmented, in the order crop, flip, policy, Cutout.

    Attributes:
        offsets: row and column of the crop in the padded image, in pixels, int64 [B, 2].
        flips: flipped from left to right, bool [B].
        types: the policy's operators, indices in `OPERATORS`, int64 [B, 2] on the CPU; they never move.
        levels: of the operators, 0 to 9, int64 [B, 2].
        signs: of the operators, +1 or -1, int64 [B, 2]; they never move.
        boxes: top, bottom, left, right edge of the Cutout, in pixels, int64 [B, 4].
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
        groups,
        *,
        mean,
        std,
        device=None,
        dtype=torch.float32,
        padding=4,
        pad_mode='constant',
        flip_prob=0.5,
        cutout_size=16,
        ranges='paper',
        intensity=1.0,
    ):
        self.groups = [group for group in GROUPS if group in groups]
        self.mean, self.std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (mean, std))
        self.dtype = dtype
        self.padding, self.pad_mode = padding, pad_mode
        self.flip_prob = flip_prob
        self.cutout_size = cutout_size
        self.ranges = ranges
        self.intensity = intensity

    def draw(self, rng, input):
        """Draw the `Parameters` of a batch.

        Args:
            rng: `numpy.random.Generator`.
            input: images [B, C, H, W].
        """
        size, (height, width) = len(input), input.shape[-2:]
        offsets = np.full((size, 2), self.padding)
        flips = np.zeros(size, dtype=bool)
        types = np.full((size, NUM_OPERATORS), OPERATORS.index('identity'))
        levels = np.zeros((size, NUM_OPERATORS), dtype=np.int64)
        signs = np.ones((size, NUM_OPERATORS), dtype=np.int64)
        boxes = np.zeros((size, 4), dtype=np.int64)
        weak = rng.random(size) >= self.intensity
        if 'crop' in self.groups:
            offsets = rng.integers(2 * self.padding + 1, size=offsets.shape)
        if 'flip' in self.groups:
            flips = rng.random(size) < self.flip_prob
        if 'policy' in self.groups:
            types = np.where(weak[:, None], types, rng.integers(len(OPERATORS), size=types.shape))
            levels = rng.integers(NUM_LEVELS, size=levels.shape)
            signs = rng.choice([-1, 1], size=signs.shape)
        if 'cutout' in self.groups:
            boxes = draw_squares(rng, size, self.cutout_size, height, width)
            boxes[weak] = 0
        moving = (onto(input.device, values) for values in (offsets, flips, levels, signs, boxes))
        offsets, flips, levels, signs, boxes = moving
        return Parameters(offsets, flips, torch.from_numpy(types), levels, signs, boxes)

    def draw_steps(self, rng, base, input, delta):
        """Draw by how much each group moves in its probe.

        Coordinates move together, each up or down at random, inwards at a bound. Of a policy one operator moves; one
        without levels stays.

        Returns:
            {group: step, of the shape of the group's parameters}; for `flip` a coin, bool [B].
        """
        steps = {}
        for group in self.groups:
            values = getattr(base, _FIELD[group])
            if group == 'flip':
                steps[group] = onto(values.device, rng.random(len(values)) < 0.5)
                continue
            step = onto(values.device, rng.choice([-delta, delta], size=values.shape))
            low, high = self.bounds(group, input)
            step = torch.where(values + step > high, -delta, step)
            step = torch.where(values + step < low, delta, step)
            if group == 'policy':
                which = torch.from_numpy(rng.integers(NUM_OPERATORS, size=len(values)))
                moves = (torch.arange(NUM_OPERATORS) == which[:, None]) & _HAS_LEVEL[base.types]
                step = torch.where(moves.to(values.device, non_blocking=True), step, 0)
            steps[group] = step
        return steps

    def bounds(self, group, input):
        """Smallest and largest values of a group's parameters, int64 tensors; a device is not waited for."""
        height, width = input.shape[-2:]
        high = {'policy': NUM_LEVELS - 1, 'crop': 2 * self.padding, 'cutout': height}[group]
        high = torch.full((4 if group == 'cutout' else 1,), high, device=input.device)
        if group == 'cutout':
            high[2:] = width
        return torch.zeros_like(high), high

    def move(self, base, group, step, input):
        """`Parameters` with one group moved by a step, within its bounds; flipped where the step of `flip` is true."""
        values = getattr(base, _FIELD[group])
        moved = values ^ step if group == 'flip' else (values + step).clamp(*self.bounds(group, input))
        return replace(base, **{_FIELD[group]: moved})

    def apply(self, input, candidates, memo):
        """Augment and normalise a batch in several ways; a list of normalised images [B, C, H, W].

        Args:
            input: images [B, C, H, W] float32 in [0, 1].
            candidates: list of `Parameters`.
            memo: dict that the caller keeps for one input: what differs in the Cutout alone is computed once.
        """
        keys = [(id(params.offsets), id(params.flips), id(params.levels)) for params in candidates]
        new = {key: params for key, params in zip(keys, candidates, strict=True) if key not in memo}
        operated = self.operate(input, list(new.values()))
        memo.update((key, (images, new[key])) for key, images in zip(new, operated, strict=True))
        return [self.finish(memo[key][0], params) for key, params in zip(keys, candidates, strict=True)]

    def finish(self, images, params):
        """Cutout, black, then normalisation and cast; images [B, C, H, W] in [0, 1]."""
        if 'cutout' in self.groups:
            images = erase(images, params.boxes)
        return (images - self.mean).div_(self.std).to(self.dtype)

    def operate(self, input, candidates):
        """Crop, flip and policy of several candidates, each an element of a list of images [B, C, H, W] in [0, 1].

        Operators run once over all candidates together.
        """
        images = []
        for params in candidates:
            image = shift_crop(input, params.offsets, self.padding, self.pad_mode) if 'crop' in self.groups else input
            images.append(flip(image, params.flips) if 'flip' in self.groups else image)
        if 'policy' not in self.groups or not images:
            return images
        images = torch.cat(images)
        for slot in range(NUM_OPERATORS):
            types, levels, signs = (
                torch.cat([getattr(params, name)[:, slot] for params in candidates])
                for name in ('types', 'levels', 'signs')
            )
            images = apply_operators(images, types, levels, signs, ranges=self.ranges)
        return list(images.chunk(len(candidates)))

    def same(self, params, others, group):
        """Where two `Parameters` that differ in one group at most are the same, bool [B]."""
        values, reference = getattr(params, _FIELD[group]), getattr(others, _FIELD[group])
        return (values == reference).view(len(values), -1).all(dim=1)
