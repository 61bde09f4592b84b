"""What the operators do to pixels, several of them in one go.

A kernel takes and returns pixels [n, C, H, W], whole numbers 0 to 255 in float32, sorted by operator, with one tensor
of magnitudes for each operator, of which some may be empty. Results are Pillow's on 8-bit images; it truncates where
they floor.
"""

import math
from typing import Any

import torch

FILL = 128.0
_FIXED_POINT_BITS = 16


def shear(pixels: torch.Tensor, x_slopes: torch.Tensor, y_slopes: torch.Tensor) -> torch.Tensor:
    """Move every row by slope times distance from the top, or every column by slope times distance from the left."""
    across, down = pixels.split([len(x_slopes), len(y_slopes)])
    down = down.transpose(2, 3)
    if pixels.shape[2] == pixels.shape[3]:
        sheared = _shear_rows(torch.cat([across, down]), torch.cat([x_slopes, y_slopes]))
        across, down = sheared.split([len(across), len(down)])
    else:
        across, down = _shear_rows(across, x_slopes), _shear_rows(down, y_slopes)
    return torch.cat([across, down.transpose(2, 3)])


def _shear_rows(pixels: Any, slopes: Any):
    """Rows moved with Pillow's bicubic kernel (a = -1, not -0.75)."""
    height, width = pixels.shape[-2:]
    centres = torch.arange(max(height, width), device=pixels.device) + 0.5
    shifts = slopes[:, None] * centres[:height]
    whole = shifts.floor()
    t = (shifts - whole)[:, None, :, None]
    # All pixels of a row lie at the same distance from their four neighbours, so one window of the row serves them.
    columns = torch.arange(-1, width + 2, device=pixels.device) + whole.long()[..., None]
    window = _gather(pixels, 3, columns.clamp_(0, width - 1))
    # The kernel is written for differences of neighbours: an even area keeps its level, which a sum of weights that is
    # one only up to rounding would lower.
    steps = window.diff()
    sheared = window[..., 1:-2].addcmul(steps[..., :-2], (t * (1 - t) ** 2).float())
    sheared.addcmul_(steps[..., 1:-1], t.float()).addcmul_(steps[..., 2:], (t * t * (t - 1)).float())
    sources = centres[:width] + shifts[..., None]
    outside = (sources < 0) | (sources >= width)
    return sheared.clamp_(0, 255).floor_().masked_fill_(outside[:, None], FILL)


def move(pixels: torch.Tensor, x_parts: torch.Tensor, y_parts: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Translate by parts of the side or rotate, to the nearest pixel, in the fixed-point numbers of Pillow's."""
    height, width = pixels.shape[-2:]
    num_x, num_moved = len(x_parts), len(x_parts) + len(y_parts)
    x_shift, y_shift, radians = amounts = x_parts.new_zeros(3, len(pixels))
    torch.mul(x_parts, width, out=x_shift[:num_x])
    torch.mul(y_parts, height, out=y_shift[num_x:num_moved])
    torch.mul(angles, -math.pi / 180, out=radians[num_moved:])
    x_shift, y_shift = (amounts[:2] + 0.5).floor()
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
    return moved.masked_fill_(outside[:, None], FILL)


def blend(pixels: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
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


def _grey(pixels: Any):
    """Luma [n, 1, H, W] with Pillow's weights in units of 2**-16; all sums are below 2**24 and thus exact."""
    if pixels.shape[1] == 1:
        return pixels
    red, green, blue = pixels.split(1, dim=1)
    weighted = (red * 19595).add_(green, alpha=38470).add_(blue, alpha=7471)
    return weighted.add_(2**15).div_(2**16).floor_()


def _smooth(pixels: Any):
    """Weighted mean of each inner pixel (5) and its eight neighbours (1 each) [n, C, H - 2, W - 2]."""
    columns = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    squares = columns[..., :-2] + columns[..., 1:-1] + columns[..., 2:]
    return squares.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13).add_(0.5).floor_()


def look_up(
    pixels: torch.Tensor,
    bits: torch.Tensor,
    thresholds: torch.Tensor,
    unused_autocontrast: torch.Tensor,
    unused_equalize: torch.Tensor,
) -> torch.Tensor:
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


def _autocontrast_tables(index: Any, levels: Any):
    low, high = index.aminmax(dim=2, keepdim=True)
    span = (high - low).clamp_(min=1).double()
    scale = torch.full_like(span, 255) / span  # 255 / span is a product with the rounded reciprocal
    stretched = (levels * scale - low * scale).clamp_(0, 255).long()
    return torch.where(high > low, stretched, levels)


def _equalize_tables(index: Any, levels: Any):
    histogram = torch.zeros(*index.shape[:2], 256, dtype=torch.int64, device=index.device)
    histogram.scatter_add_(2, index, torch.ones_like(levels[:1]).expand_as(index))
    darker = histogram.cumsum(2) - histogram
    step = (darker * (histogram > 0)).amax(2, keepdim=True) // 255  # without the brightest pixels
    equalized = ((darker + step // 2) // step.clamp(min=1)).clamp_(max=255)
    return torch.where(step > 0, equalized, levels)


def _gather(pixels: Any, dim: Any, index: Any):
    """`torch.gather` with one index for all channels: [n, ...] for pixels [n, C, ...]."""
    return pixels.gather(dim, index[:, None].expand(-1, pixels.shape[1], *index.shape[1:]))
