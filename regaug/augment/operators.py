"""Augmentation operators on batches of images, each sample with its own operator, level and sign.

Source: the operators of AutoAugment and RandAugment that Xu and Zhao use in "Universal Adaptive Data Augmentation"
(arXiv 2207.06658); their meaning is that of Pillow on 8-bit images, so results lie on the grid k / 255.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from regaug.augment.kernels import blend, look_up, move, shear
from regaug.augment.mix import onto

NUM_LEVELS = 10


@dataclass(frozen=True)
class Range:
    """How an operator's magnitude follows its level: `start` at level 0, `start + reach` at the end of the range.

    Attributes:
        rounding: makes it a whole number, where it has to be one.
    """

    start: float
    reach: float
    rounding: Callable[[torch.Tensor], torch.Tensor] | None = None


@dataclass(frozen=True)
class Operator:
    """A row of the table.

    Attributes:
        name: what it is called in the log.
        kernel: function (pixels, *magnitudes) that serves this operator, and maybe others, in one go; None to leave
            images as they are.
        argument: which of the kernel's magnitudes is that of this operator, from 0.
        paper, timm: its ranges by their names, None without levels.
        signed: the sign turns its reach round.
    """

    name: str
    kernel: Callable[..., torch.Tensor] | None
    argument: int = 0
    paper: Range | None = None
    timm: Range | None = None
    signed: bool = False


# The type of an operator, which is what is drawn, is its position: a new one is a row at the end, with a kernel of its
# own or one more argument of a kernel that is there.
TABLE = (
    Operator('shear_x', shear, 0, paper=Range(0, 0.3), timm=Range(0, 0.3), signed=True),
    Operator('shear_y', shear, 1, paper=Range(0, 0.3), timm=Range(0, 0.3), signed=True),
    # AutoAugment: 150 pixels of 331
    Operator('translate_x', move, 0, paper=Range(0, 150 / 331), timm=Range(0, 0.45), signed=True),
    Operator('translate_y', move, 1, paper=Range(0, 150 / 331), timm=Range(0, 0.45), signed=True),
    Operator('rotate', move, 2, paper=Range(0, 30), timm=Range(0, 30), signed=True),
    Operator('color', blend, 0, paper=Range(1, 0.9), timm=Range(1, 0.9), signed=True),
    Operator('contrast', blend, 1, paper=Range(1, 0.9), timm=Range(1, 0.9), signed=True),
    Operator('sharpness', blend, 2, paper=Range(1, 0.9), timm=Range(1, 0.9), signed=True),
    Operator('brightness', blend, 3, paper=Range(1, 0.9), timm=Range(1, 0.9), signed=True),
    Operator('posterize', look_up, 0, paper=Range(8, -4, torch.round), timm=Range(4, -4, torch.ceil)),
    Operator('solarize', look_up, 1, paper=Range(256, -256), timm=Range(256, -256, torch.ceil)),
    Operator('autocontrast', look_up, 2),
    Operator('equalize', look_up, 3),
    Operator('identity', None),
)
OPERATORS = tuple(row.name for row in TABLE)
LEVELLESS = tuple(row.name for row in TABLE if row.paper is None)


def group(table: Sequence[Operator]) -> tuple[dict[Callable[..., torch.Tensor] | None, list[Operator]], torch.Tensor]:
    """Which operators run together, wherever they stand in the table.

    Returns:
        (families, ranks): rows by kernel in the order of its arguments, those without a kernel last, under None; and
        each type's position in that order, by which samples are sorted.
    """
    families = {row.kernel: [] for row in table if row.kernel} | {None: []}
    for row in sorted(table, key=lambda row: row.argument):
        families[row.kernel].append(row)
    ranked = [row for rows in families.values() for row in rows]
    return families, torch.tensor([ranked.index(row) for row in table])


_FAMILIES, _RANKS = group(TABLE)


@functools.cache
def _scales(
    table: Sequence[Operator], ranges: str, device: torch.device
) -> tuple[torch.Tensor, list[Callable[[torch.Tensor], torch.Tensor]]]:
    """What all magnitudes are computed from in one go.

    Returns:
        (scales, roundings): start, slope of the magnitude, and for each rounding whether it applies, float64 [2 + r,
        2, operators], for the signs -1 and +1; functions.
    """
    assert ranges in ('paper', 'timm'), ranges
    chosen = [getattr(row, ranges) or Range(0, 0) for row in table]
    # Rounded as numpy.linspace and timm round: a slope's last digit may decide about a pixel on the image's edge.
    slopes = [scale.reach / (NUM_LEVELS - 1) if ranges == 'paper' else scale.reach for scale in chosen]
    roundings = list(dict.fromkeys(scale.rounding for scale in chosen if scale.rounding))
    starts = [scale.start for scale in chosen]
    applies = [[scale.rounding is rounding for scale in chosen] for rounding in roundings]
    down = [-slope if row.signed else slope for row, slope in zip(table, slopes, strict=True)]
    scales = [[starts, down, *applies], [starts, slopes, *applies]]
    return onto(device, torch.tensor(scales, dtype=torch.float64).transpose(0, 1).contiguous()), roundings


def magnitudes(types: torch.Tensor, levels: torch.Tensor, signs: torch.Tensor, ranges: str) -> torch.Tensor:
    """Levels in the operators' own units.

    Args:
        types: indices in `OPERATORS` [n], int64.
        levels: strengths [n], 0 to 9, whole numbers or between.
        signs: +1 or -1 [n]; `posterize` and `solarize` have none.
        ranges: `paper` (the end of a range is at level 9), or `timm` (RandAugment's "increasing" operators, whose
            ranges end at level 10).

    Returns:
        float64 [n]: shear as a slope, translation as a fraction of the side, rotation in degrees counter-clockwise,
        factor of an enhancement (1 is no change), bits kept by `posterize`, smallest grey level (0 to 256) that
        `solarize` inverts; zeros for `LEVELLESS`.
    """
    scales, roundings = _scales(TABLE, ranges, levels.device)
    starts, slopes, *applies = scales[:, (signs > 0).long(), types]
    levels = levels.double()
    values = starts + (levels if ranges == 'paper' else levels / 10) * slopes
    for rounding, chosen in zip(roundings, applies, strict=True):
        values = torch.where(chosen > 0, rounding(values), values)
    return values


@torch.no_grad()
def apply_operators(
    images: torch.Tensor, types: torch.Tensor, levels: torch.Tensor, signs: torch.Tensor, *, ranges: str = 'paper'
) -> torch.Tensor:
    """Apply one operator to each image; nothing is evaluated for images that it is not meant for.

    A CUDA device is not waited for.

    Args:
        images: [B, C, H, W] float32 in [0, 1], 8-bit values up to rounding; C is 3 (RGB) or 1 (grey).
        types: indices in `OPERATORS` [B], int64 on the CPU, where the samples are grouped.
        levels: [B], see `magnitudes`.
        signs: +1 or -1 [B].
        ranges: `paper` or `timm`.

    Returns:
        New images [B, C, H, W] in the memory format of the input.
    """
    assert types.device.type == 'cpu', 'grouping on the device would have to wait for it'
    device = images.device
    ranks = _RANKS[types]
    order = ranks.argsort(stable=True)
    order, back, types = onto(device, torch.stack([order, order.argsort(), types[order]]))
    levels, signs = (values.to(device, non_blocking=True).index_select(0, order) for values in (levels, signs))
    amounts = magnitudes(types, levels, signs, ranges)
    grouped = images.index_select(0, order).contiguous()

    counts = iter(torch.bincount(ranks, minlength=len(TABLE)).tolist())
    sizes = {kernel: [next(counts) for _ in rows] for kernel, rows in _FAMILIES.items()}
    pixels = grouped[: len(types) - sum(sizes.pop(None))].mul_(255).round_()
    stop = 0
    for kernel, members in sizes.items():
        start, stop = stop, stop + sum(members)
        if start == stop:
            continue
        pixels[start:stop] = kernel(pixels[start:stop], *amounts[start:stop].split(members))
    pixels.div_(torch.full((), 255.0, device=device))  # a plain number CUDA would turn into its rounded reciprocal
    return _in_format_of(images, grouped.index_select(0, back))


def shift_crop(images: torch.Tensor, offsets: torch.Tensor, padding: int, mode: str) -> torch.Tensor:
    """Pad images and cut out windows of their old size, each with an offset of its own.

    Args:
        images: [B, C, H, W].
        offsets: row and column of the window's top left corner in the padded image, 0 to 2 * `padding`, for n windows
            of each image [n * B, 2], the first ones of all images first.
        padding: pixels added on every side.
        mode: `constant` (zeros) or `reflect`.

    Returns:
        New images [n * B, C, H, W] in the memory format of the input.
    """
    height, width = images.shape[-2:]
    offsets = offsets.to(images.device, torch.int64, non_blocking=True)
    windows = F.pad(images, (padding,) * 4, mode=mode).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(offsets), device=images.device) % len(images)
    return _in_format_of(images, windows[samples, :, offsets[:, 0], offsets[:, 1]])


def flip(images: torch.Tensor, flags: torch.Tensor) -> torch.Tensor:
    """Flip some images from left to right.

    Args:
        images: [B, C, H, W].
        flags: which ones, bool [B].

    Returns:
        New images [B, C, H, W] in the memory format of the input.
    """
    width = images.shape[-1]
    flags = flags.to(images.device, non_blocking=True)
    columns = torch.arange(width, device=images.device)
    columns = torch.where(flags[:, None], width - 1 - columns, columns)
    return _in_format_of(images, images.gather(3, columns[:, None, None].expand(images.shape)))


def _in_format_of(images: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
    """The result as a tensor of its own with the memory format of `images`."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return result.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
