"""Augmentation operators on batches of images, each sample with its own operator, level and sign.

Source: the operators of AutoAugment and RandAugment that Xu and Zhao use in "Universal Adaptive Data Augmentation"
(arXiv 2207.06658); their meaning is that of Pillow on 8-bit images, so results lie on the grid k / 255.
"""

from itertools import accumulate

import torch
import torch.nn.functional as F

OPERATORS = (
    'shear_x',
    'shear_y',
    'translate_x',
    'translate_y',
    'rotate',
    'color',
    'contrast',
    'sharpness',
    'brightness',
    'posterize',
    'solarize',
    'autocontrast',
    'equalize',
    'identity',
)
NUM_LEVELS = 10
LEVELLESS = ('autocontrast', 'equalize', 'identity')

_FILL = 128.0
_FIXED_POINT_BITS = 16


def magnitudes(name, levels, signs, ranges):
    """Levels in the operator's own units.

    Args:
        name: one of `OPERATORS`.
        levels: strengths [n], 0 to 9, whole numbers or between.
        signs: +1 or -1 [n]; `posterize` and `solarize` have none.
        ranges: `paper` (the end of a range is at level 9), or `timm` (RandAugment's "increasing" operators, whose
            ranges end at level 10).

    Returns:
        float64 [n]: shear as a slope, translation as a fraction of the side, rotation in degrees counter-clockwise,
        factor of an enhancement (1 is no change), bits kept by `posterize`, smallest grey level (0 to 256) that
        `solarize` inverts; zeros for `LEVELLESS`.
    """
    levels = levels.double()

    def part_of(end):
        # Rounded as numpy.linspace and timm round: a slope's last digit may decide about a pixel on the image's edge.
        return levels * (end / (NUM_LEVELS - 1)) if ranges == 'paper' else levels / 10 * end

    assert ranges in ('paper', 'timm'), ranges
    match name:
        case 'shear_x' | 'shear_y':
            return signs * part_of(0.3)
        case 'translate_x' | 'translate_y':
            return signs * part_of(150 / 331 if ranges == 'paper' else 0.45)  # AutoAugment: 150 pixels of 331
        case 'rotate':
            return signs * part_of(30)
        case 'color' | 'contrast' | 'sharpness' | 'brightness':
            return 1 + signs * part_of(0.9)
        case 'posterize':
            return (8 - part_of(4)).round() if ranges == 'paper' else 4 - part_of(4).floor()
        case 'solarize':
            return 256 - part_of(256) if ranges == 'paper' else 256 - part_of(256).floor()
    assert name in LEVELLESS, name
    return torch.zeros_like(levels)


@torch.no_grad()
def apply_operators(images, types, levels, signs, *, ranges='paper'):
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
    order = types.argsort(stable=True)
    counts = torch.bincount(types, minlength=len(OPERATORS)).tolist()
    back = order.argsort().to(device, non_blocking=True)
    order = order.to(device, non_blocking=True)
    levels = levels.to(device, torch.float64, non_blocking=True).index_select(0, order)
    signs = signs.to(device, torch.float64, non_blocking=True).index_select(0, order)
    grouped = images.index_select(0, order).contiguous()
    pixels = grouped[: len(types) - counts[-1]].mul_(255).round_()  # all but those of `identity`

    bounds = list(accumulate(counts, initial=0))
    for names, operate in _FAMILIES:
        first = OPERATORS.index(names[0])
        family = slice(bounds[first], bounds[first + len(names)])
        if family.start == family.stop:
            continue
        parts = [slice(bounds[first + i], bounds[first + i + 1]) for i in range(len(names))]
        amounts = [magnitudes(name, levels[part], signs[part], ranges) for name, part in zip(names, parts)]
        pixels[family] = operate(pixels[family], *amounts)
    pixels.div_(torch.full((), 255.0, device=device))  # a plain number CUDA would turn into its rounded reciprocal
    return _in_format_of(images, grouped.index_select(0, back))


def shift_crop(images, offsets, padding, mode):
    """Pad images and cut out windows of their old size, each at a place of its own.

    Args:
        images: [B, C, H, W].
        offsets: row and column of the window's top left corner in the padded image [B, 2], 0 to 2 * `padding`.
        padding: pixels added on every side.
        mode: `constant` (zeros) or `reflect`.

    Returns:
        New images [B, C, H, W] in the memory format of the input.
    """
    height, width = images.shape[-2:]
    offsets = offsets.to(images.device, torch.int64, non_blocking=True)
    windows = F.pad(images, (padding,) * 4, mode=mode).unfold(2, height, 1).unfold(3, width, 1)
    samples = torch.arange(len(images), device=images.device)
    return _in_format_of(images, windows[samples, :, offsets[:, 0], offsets[:, 1]])


def flip(images, flags):
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


def _in_format_of(images, result):
    """The result as a tensor of its own with the memory format of `images`."""
    new = torch.empty_like(images)
    return result if result.stride() == new.stride() else new.copy_(result)


# The functions below take and return pixels [n, C, H, W] as whole numbers 0 to 255 in float32, sorted by operator, with
# one tensor of magnitudes for each operator, of which some may be empty. Pillow truncates where they floor.


def _shear_x(pixels, slopes):
    """Move every row by slope times distance from the top, with Pillow's bicubic kernel (a = -1, not -0.75)."""
    height, width = pixels.shape[-2:]
    centres = torch.arange(max(height, width), device=pixels.device) + 0.5
    shifts = slopes[:, None] * centres[:height]
    whole = shifts.floor()
    t = (shifts - whole)[:, None, :, None]
    # All pixels of a row lie at the same distance from their four neighbours, so one window of the row serves them.
    places = torch.arange(-1, width + 2, device=pixels.device) + whole.long()[..., None]
    window = _gather(pixels, 3, places.clamp_(0, width - 1))
    # The kernel is written for differences of neighbours: an even area keeps its level, which a sum of weights that is
    # one only up to rounding would lower.
    steps = window.diff()
    sheared = window[..., 1:-2].addcmul(steps[..., :-2], (t * (1 - t) ** 2).float())
    sheared.addcmul_(steps[..., 1:-1], t.float()).addcmul_(steps[..., 2:], (t * t * (t - 1)).float())
    sources = centres[:width] + shifts[..., None]
    outside = (sources < 0) | (sources >= width)
    return sheared.clamp_(0, 255).floor_().masked_fill_(outside[:, None], _FILL)


def _shear_y(pixels, slopes):
    return _shear_x(pixels.transpose(2, 3), slopes).transpose(2, 3)


def _move(pixels, x_shares, y_shares, angles):
    """Translate or rotate to the nearest pixel, in the fixed-point numbers with which Pillow rotates."""
    height, width = pixels.shape[-2:]
    num_x, num_y, num_angles = len(x_shares), len(y_shares), len(angles)
    x_shift = F.pad((x_shares * width + 0.5).floor(), (0, num_y + num_angles))
    y_shift = F.pad((y_shares * height + 0.5).floor(), (num_x, num_angles))
    radians = F.pad(torch.deg2rad(-angles), (num_x + num_y, 0))
    cos, sin = radians.cos(), radians.sin()
    x_start = (0.5 - width / 2) * cos + (0.5 - height / 2) * sin + width / 2 + x_shift
    y_start = (0.5 - height / 2) * cos - (0.5 - width / 2) * sin + height / 2 + y_shift
    fixed = torch.stack([cos, sin, x_start, y_start])[..., None, None] * 2**_FIXED_POINT_BITS
    cos, sin, x_start, y_start = (fixed + 0.5).floor().int()
    rows = torch.arange(height, dtype=torch.int32, device=pixels.device)[:, None]
    columns = torch.arange(width, dtype=torch.int32, device=pixels.device)
    x_sources = ((sin * rows + x_start) + cos * columns) >> _FIXED_POINT_BITS
    y_sources = ((cos * rows + y_start) - sin * columns) >> _FIXED_POINT_BITS
    x_inside, y_inside = x_sources.clamp(0, width - 1), y_sources.clamp(0, height - 1)
    outside = (x_sources != x_inside) | (y_sources != y_inside)
    index = (y_inside * width + x_inside).long().flatten(1)
    moved = _gather(pixels.flatten(2), 2, index).view_as(pixels)
    return moved.masked_fill_(outside[:, None], _FILL)


def _blend(pixels, *factors):
    """Move images away from a degenerate one (factor above 1) or towards it."""
    num_color, num_contrast, _, _ = sizes = [len(factor) for factor in factors]
    degenerate = pixels.clone()
    greyed, evened, smoothed, blackened = degenerate.split(sizes)
    grey = _grey(pixels[: num_color + num_contrast])
    greyed.copy_(grey[:num_color])
    area = pixels[0, 0].numel()
    evened.copy_((2 * grey[num_color:].sum((1, 2, 3), True, dtype=torch.int64) + area) // (2 * area))
    inner = smoothed[..., 1:-1, 1:-1]  # the filter leaves the outermost pixels alone
    inner.copy_(_smooth(smoothed))
    blackened.zero_()
    factors = torch.cat(factors).float()[:, None, None, None]
    return (pixels - degenerate).mul_(factors).add_(degenerate).clamp_(0, 255).floor_()


def _grey(pixels):
    """Luma [n, 1, H, W] with Pillow's weights in units of 2**-16; all sums are below 2**24 and thus exact."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, dim=1)
    weighted = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return weighted.add_(2**15).div_(2**16).floor_()


def _smooth(pixels):
    """Weighted mean of each inner pixel (5) and its eight neighbours (1 each) [n, C, H - 2, W - 2]."""
    columns = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    squares = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    return squares.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()


def _look_up(pixels, bits, thresholds, unused_autocontrast, unused_equalize):
    """Send grey levels through tables [n, C, 256]: posterize, solarize, autocontrast, equalize."""
    sizes = [len(bits), len(thresholds), len(unused_autocontrast), len(unused_equalize)]
    index = pixels.flatten(2).long()
    _, _, stretched, equalized = index.split(sizes)
    levels = torch.arange(256, device=pixels.device)
    zeroed_bits = (8 - bits).long()[:, None]
    posterize = levels >> zeroed_bits << zeroed_bits
    solarize = torch.where(levels < thresholds[:, None], levels, 255 - levels)
    shared = torch.cat([posterize, solarize])[:, None].expand(-1, pixels.shape[1], -1)
    tables = torch.cat([shared, _autocontrast_tables(stretched, levels), _equalize_tables(equalized, levels)])
    return tables.float().gather(2, index).view_as(pixels)


def _autocontrast_tables(index, levels):
    low, high = index.aminmax(dim=2, keepdim=True)
    span = (high - low).clamp_(min=1).double()
    scale = torch.full_like(span, 255) / span  # 255 / span is a product with the rounded reciprocal
    stretched = (levels * scale - low * scale).clamp_(0, 255).long()
    return torch.where(high > low, stretched, levels)


def _equalize_tables(index, levels):
    histogram = torch.zeros(*index.shape[:2], 256, dtype=torch.int64, device=index.device)
    histogram.scatter_add_(2, index, torch.ones_like(levels[:1]).expand_as(index))
    darker = histogram.cumsum(2) - histogram
    step = (darker * (histogram > 0)).amax(2, keepdim=True) // 255  # without the brightest pixels
    equalized = ((darker + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, equalized, levels)


def _gather(pixels, dim, index):
    """`torch.gather` with one index for all channels: [n, ...] for pixels [n, C, ...]."""
    return pixels.gather(dim, index[:, None].expand(-1, pixels.shape[1], *index.shape[1:]))


_FAMILIES = (  # neighbours in OPERATORS that the same kernels serve
    (('shear_x',), _shear_x),
    (('shear_y',), _shear_y),
    (('translate_x', 'translate_y', 'rotate'), _move),
    (('color', 'contrast', 'sharpness', 'brightness'), _blend),
    (('posterize', 'solarize', 'autocontrast', 'equalize'), _look_up),
)
