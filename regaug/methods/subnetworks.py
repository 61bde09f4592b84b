"""What GradAug's sub-networks are in one update: widths and inputs that are drawn, and how DDP sees them.

Source: Yang et al., "GradAug: A New Regularization Method for Deep Neural Networks" (arXiv 2006.07989), sections 3.2
and 4.1.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from regaug.errors import OptionError
from regaug.slimmable.shapes import shape_error

# Shares of the training size, as 224, 192, 160, 128 on ImageNet (section 4.1).
_SIZE_SHARES = (1, 6 / 7, 5 / 7, 4 / 7)


@dataclass(frozen=True)
class Draw:
    """What one sub-network of one update looks like.

    Attributes:
        width: kept fraction of the channels.
        size: height of the input after `scale` or `crop`, in pixels.
        quarter_turns: rotation by multiples of 90 degrees, 0 to 3.
        top, left: place of the crop among those there are, as fractions from 0 to below 1.
        flip: flip the batch from left to right.
    """

    width: float
    size: int
    quarter_turns: int = 0
    top: float = 0.0
    left: float = 0.0
    flip: bool = False


def default_sizes(size):
    """Sizes of the `scale` transform for a training size: multiples of 32 from 160 pixels up, of 4 below.

    Returns:
        Descending list without repetition that starts with `size`.
    """
    step = 32 if size >= 160 else 4
    rounded = [max(step, round(size * share / step) * step) for share in _SIZE_SHARES[1:]]
    return list(dict.fromkeys([size, *(other for other in rounded if other < size)]))


def draw_widths(rng, count, min_width, choices=None):
    """Widths of an update's sub-networks, in descending order (sandwich rule, section 3.2).

    Args:
        rng: `random.Random`.
        count: sub-networks; from two on, one of them has the smallest width.
        min_width: smallest width (alpha).
        choices: draw from these widths instead of uniformly from [min_width, 1].
    """
    fixed = [min_width] if count > 1 else []
    drawn = [rng.choice(choices) if choices else rng.uniform(min_width, 1.0) for _ in range(count - len(fixed))]
    return sorted(fixed + drawn, reverse=True)


def transform(input, draw, names):
    """Transform a normalised batch for a sub-network.

    Args:
        input: images [B, C, H, W].
        draw: `Draw`.
        names: transforms in the order in which they are applied: `scale` (bilinear, aligned corners, to `draw.size`),
            `rotate` (by quarter turns), `crop` (to `draw.size`), `flip`.

    Returns:
        Images [B, C, h, w] in the memory format of the input.
    """
    height, width = input.shape[-2:]
    target = (draw.size, round(draw.size * width / height))
    channels_last = input.is_contiguous(memory_format=torch.channels_last) and not input.is_contiguous()
    for name in names:
        if name == 'scale' and input.shape[-2:] != target:
            input = F.interpolate(input, size=target, mode='bilinear', align_corners=True)
        elif name == 'rotate':
            input = torch.rot90(input, draw.quarter_turns, dims=(2, 3))
        elif name == 'crop':
            top = int(draw.top * (input.shape[-2] - target[0] + 1))
            left = int(draw.left * (input.shape[-1] - target[1] + 1))
            input = input[..., top : top + target[0], left : left + target[1]]
        elif name == 'flip' and draw.flip:
            input = input.flip(-1)
    return input.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class SubnetSwitch(nn.Module):
    """The module that DDP wraps: the full network, or on request the sub-network that shares its parameters.

    It holds the full network as `module`, where `timm.utils.unwrap_model` looks for it.
    """

    def __init__(self, module, subnet):
        super().__init__()
        self.module = module
        object.__setattr__(self, 'subnet', subnet)  # hidden from parameters() and state_dict()

    def forward(self, input, use_subnet=False):
        return self.subnet(input) if use_subnet else self.module(input)


def check_sizes(model, input_size, sizes):
    """Run the model's shapes at each size.

    Raises:
        OptionError: naming the first size that the model cannot take.
    """
    channels, height, width = input_size
    for size in sizes:
        reason = shape_error(model, (channels, size, round(size * width / height)))
        if reason is not None:
            hint = ''
            if hasattr(getattr(model, 'patch_embed', None), 'strict_img_size'):
                hint = '; --model-kwargs dynamic_img_size=True makes it take any'
            raise OptionError(
                f'--gradaug-sizes {size}: {type(model).__name__} cannot take such images ({reason}){hint}.'
            )
