"""Augmentations of whole batches with parameters of their own for each sample and copy: pure functions and their draws.

Sources: CutMix (Yun et al., arXiv 1905.04899), Mixup (Zhang et al., arXiv 1710.09412), Cutout (DeVries and Taylor,
arXiv 1708.04552). Mixtures are those of `timm.data.Mixup` with `mode='elem'`, with any partners.

Parameters are drawn on the CPU by a generator that the caller seeds, for all copies at once: their first dimension is
the copy m, their second one the sample B.
"""

from collections.abc import Callable

import numpy as np
import torch
from timm.data.mixup import one_hot


def soft_target(target: torch.Tensor, num_classes: int, smoothing: float) -> torch.Tensor:
    """Soft targets [B, K] of class indices [B], smoothed as timm's Mixup smooths; soft ones stay as they are."""
    if target.ndim > 1:
        return target
    off = smoothing / num_classes
    return one_hot(target, num_classes, on_value=1 - smoothing + off, off_value=off)


def blend(values: torch.Tensor, partners: torch.Tensor, lam: torch.Tensor | float) -> torch.Tensor:
    """Blend each sample with its partner.

    Args:
        values: [B, ...].
        partners: index of each sample's partner, int64 [B].
        lam: share of the sample's own values, a number or [B, 1, ...].
    """
    return values * lam + values[partners] * (1 - lam)


def mix_target(target: torch.Tensor, partners: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Blend soft targets [B, K] with those of the partners; lam [B]."""
    return blend(target, partners, lam.unsqueeze(1))


def mixup(input: torch.Tensor, partners: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Blend each image with its partner's.

    Args:
        input: [B, C, H, W].
        partners: int64 [B].
        lam: weight of the own image, [B]; with 1 the image stays as it is, bit for bit.
    """
    lam = lam.to(input.dtype).view(-1, 1, 1, 1)
    return torch.where(lam == 1, input, blend(input, partners, lam))


def cutmix(input: torch.Tensor, partners: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Paste a part of each image's partner.

    Args:
        input: [B, C, H, W].
        partners: int64 [B].
        mask: true for the pixels that are the partner's, bool [B, 1, H, W], see `inside`.
    """
    return torch.where(mask, input[partners], input)


def erase(input: torch.Tensor, boxes: torch.Tensor, value: float = 0.0) -> torch.Tensor:
    """Fill a box of each image with a value; arguments as for `inside`."""
    return torch.where(inside(boxes, input), value, input)


def inside(boxes: torch.Tensor, input: torch.Tensor) -> torch.Tensor:
    """True for the pixels in each image's box, bool [B, 1, H, W].

    Args:
        boxes: top, bottom, left, right in pixels, the second and fourth exclusive, int64 [B, 4].
        input: [B, C, H, W].
    """
    height, width = input.shape[-2:]
    rows = torch.arange(height, device=input.device)
    columns = torch.arange(width, device=input.device)
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    in_rows = (rows >= top) & (rows < bottom)
    in_columns = (columns >= left) & (columns < right)
    return (in_rows[:, :, None] & in_columns[:, None, :]).unsqueeze(1)


def add_noise(input: torch.Tensor, sigma: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Add Gaussian noise.

    Args:
        input: [B, C, H, W].
        sigma: deviation in each channel, [C], on the same device.
        generator: on the device of the input.
    """
    noise = torch.randn(input.shape, generator=generator, device=input.device, dtype=input.dtype)
    return input + noise * sigma.to(input.dtype).view(1, -1, 1, 1)


def draw_partners(rng: np.random.Generator, num_copies: int, batch_size: int) -> np.ndarray:
    """A random permutation of the batch for each copy, int64 [m, B]."""
    return rng.permuted(np.tile(np.arange(batch_size), (num_copies, 1)), axis=1)


def draw_boxes(rng: np.random.Generator, lam: np.ndarray, height: int, width: int) -> np.ndarray:
    """Boxes that leave about `lam` of each image's area, as CutMix draws them: clipped at the borders.

    Args:
        lam: wanted share of the own image, any shape.
        height, width: of the images in pixels.

    Returns:
        int64 [..., 4]: top, bottom, left, right.
    """
    side = np.sqrt(1 - lam)
    rows, columns = rng.integers(height, size=side.shape), rng.integers(width, size=side.shape)
    return clip_boxes(rows, columns, (height * side).astype(int), (width * side).astype(int), height, width)


def clip_boxes(
    rows: np.ndarray, columns: np.ndarray, box_height: np.ndarray, box_width: np.ndarray, height: int, width: int
) -> np.ndarray:
    """Boxes [..., 4] of a size around centres (timm's rounding), clipped at the borders of the image."""
    top, bottom = rows - box_height // 2, rows + (box_height + 1) // 2
    left, right = columns - box_width // 2, columns + (box_width + 1) // 2
    edges = top.clip(0, height), bottom.clip(0, height), left.clip(0, width), right.clip(0, width)
    return np.stack(edges, axis=-1)


def draw_boxes_between(
    rng: np.random.Generator, shape: tuple[int, ...], smallest: float, largest: float, height: int, width: int
) -> np.ndarray:
    """Boxes inside the image whose sides are drawn between two fractions of its sides (`--cutmix-minmax`)."""
    tops, sides = [], []
    for length in (height, width):
        low, high = int(length * smallest), int(length * largest)
        side = rng.integers(low, max(high, low + 1), size=shape)
        sides.append(side)
        tops.append(rng.integers(0, length - side + 1))
    (top, left), (box_height, box_width) = tops, sides
    return np.stack([top, top + box_height, left, left + box_width], axis=-1)


def box_lam(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """The lambda that belongs to boxes: the share of each image's area outside its box, float64 [...]."""
    top, bottom, left, right = np.moveaxis(boxes, -1, 0)
    return 1 - (bottom - top) * (right - left) / (height * width)


def onto(device: torch.device, values: np.ndarray | torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Values as a tensor on a device, without waiting for it."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == 'cuda' else tensor.to(device)


# Makes one copy of a batch: from input and target its own input, target, and lambda [B] or None where nothing is mixed.
MakeCopy = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


def mixed_copies(
    mix: Callable[..., torch.Tensor],
    partners: torch.Tensor,
    parameters: torch.Tensor,
    lam: torch.Tensor,
    *,
    num_classes: int,
    smoothing: float,
) -> list[MakeCopy]:
    """What makes each of m copies.

    Args:
        mix: `cutmix` or `mixup`.
        partners, parameters, lam: of the copies, [m, B, ...] each; the parameters are what `mix` takes last.
    """

    def make(copy: int) -> MakeCopy:
        def mixed(input, target):
            target = mix_target(soft_target(target, num_classes, smoothing), partners[copy], lam[copy])
            return mix(input, partners[copy], parameters[copy]), target, lam[copy]

        return mixed

    return [make(copy) for copy in range(len(lam))]


class CutMix:
    """CutMix of every copy with partners, boxes and lambda of its own.

    Args:
        alpha: lambda comes from Beta(alpha, alpha).
        minmax: draw the sides of the boxes between these fractions of the image's instead, or None.
        prob: share of the samples that are mixed.
        num_classes, smoothing: of the soft targets.
    """

    def __init__(
        self,
        *,
        alpha: float,
        prob: float,
        num_classes: int,
        smoothing: float,
        minmax: tuple[float, float] | None = None,
    ):
        self.alpha, self.minmax, self.prob = alpha, minmax, prob
        self.num_classes, self.smoothing = num_classes, smoothing

    def draw(self, rng: np.random.Generator, num_copies: int, input: torch.Tensor) -> list[MakeCopy]:
        """Draw the parameters of m copies of a batch: what makes each of them."""
        size, (height, width) = (num_copies, len(input)), input.shape[-2:]
        if self.minmax is None:
            boxes = draw_boxes(rng, rng.beta(self.alpha, self.alpha, size=size), height, width)
        else:
            boxes = draw_boxes_between(rng, size, *self.minmax, height, width)
        boxes[rng.random(size) >= self.prob] = 0
        lam = onto(input.device, box_lam(boxes, height, width), torch.float32)
        partners = onto(input.device, draw_partners(rng, *size))
        masks = inside(onto(input.device, boxes).flatten(0, 1), input).unflatten(0, size)
        return mixed_copies(cutmix, partners, masks, lam, num_classes=self.num_classes, smoothing=self.smoothing)


class Mixup:
    """Mixup of every copy with partners and lambda of its own; arguments as for `CutMix`."""

    def __init__(self, *, alpha: float, prob: float, num_classes: int, smoothing: float):
        self.alpha, self.prob = alpha, prob
        self.num_classes, self.smoothing = num_classes, smoothing

    def draw(self, rng: np.random.Generator, num_copies: int, input: torch.Tensor) -> list[MakeCopy]:
        """See `CutMix.draw`."""
        size = (num_copies, len(input))
        lam = rng.beta(self.alpha, self.alpha, size=size)
        lam[rng.random(size) >= self.prob] = 1
        lam = onto(input.device, lam, torch.float32)
        partners = onto(input.device, draw_partners(rng, *size))
        return mixed_copies(mixup, partners, lam, lam, num_classes=self.num_classes, smoothing=self.smoothing)


class Cutout:
    """Cutout: a square around a random point of each image is set to zero, the mean colour after normalisation.

    Args:
        size: side of the square in pixels; what lies outside the image is cut.
        prob: share of the samples that lose a square.
    """

    def __init__(self, *, size: int, prob: float = 1.0):
        self.size, self.prob = size, prob

    def draw(self, rng: np.random.Generator, num_copies: int, input: torch.Tensor) -> list[MakeCopy]:
        """See `CutMix.draw`; the targets stay as they are."""
        boxes = draw_squares(rng, (num_copies, len(input)), self.size, *input.shape[-2:])
        boxes[rng.random(boxes.shape[:-1]) >= self.prob] = 0
        boxes = onto(input.device, boxes)
        return [
            lambda input, target, copy=copy: (erase(input, boxes[copy]), target, None) for copy in range(num_copies)
        ]


def draw_squares(
    rng: np.random.Generator, shape: int | tuple[int, ...], size: int, height: int, width: int
) -> np.ndarray:
    """Squares around uniform centres, whose edges may lie outside the image, int64 [..., 4]."""
    top, left = (rng.integers(length, size=shape) - size // 2 for length in (height, width))
    return np.stack([top, top + size, left, left + size], axis=-1)


class GaussianNoise:
    """Additive noise.

    Args:
        sigma: deviation in each channel of the normalised image, [C], on the device of the images.
    """

    def __init__(self, *, sigma: torch.Tensor):
        self.sigma = sigma

    def draw(self, rng: np.random.Generator, num_copies: int, input: torch.Tensor) -> list[MakeCopy]:
        """See `CutMix.draw`; the targets stay as they are."""
        seeds = rng.integers(2**63, size=num_copies).tolist()

        def make(seed: int) -> MakeCopy:
            def noisy(input, target):
                generator = torch.Generator(input.device).manual_seed(seed)
                return add_noise(input, self.sigma, generator), target, None

            return noisy

        return [make(seed) for seed in seeds]
