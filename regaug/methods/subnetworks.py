"""What GradAug's sub-networks are in one update: widths and inputs that are drawn, and how DDP sees them.

Source: Yang et al., "GradAug: A New Regularization Method for Deep Neural Networks" (arXiv 2006.07989), sections 3.2
and 4.1.
"""

import functools
import math
import random
from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import nn

from regaug.errors import OptionError
from regaug.methods.depth import DepthTwin, take_drop_path
from regaug.slimmable import SlimmablePlan, Twin
from regaug.slimmable.shapes import shape_error, single_values

# Shares of the training size, as 224, 192, 160, 128 on ImageNet (section 4.1).
SIZE_SHARES = (1, 6 / 7, 5 / 7, 4 / 7)


@dataclass(frozen=True)
class Draw:
    """What one sub-network of one update looks like.

    Attributes:
        width: kept fraction of the channels.
        size: height of the input after `scale` or `crop`, in pixels.
        seed: what is masked.
        quarter_turns: rotation by multiples of 90 degrees, 0 to 3.
        top, left: place of the crop among those there are, as fractions from 0 to below 1.
        flip: flip the batch from left to right.
    """

    width: float
    size: int
    seed: int = 0
    quarter_turns: int = 0
    top: float = 0.0
    left: float = 0.0
    flip: bool = False


def sizes_for(height: int, sizes: Sequence[float] = SIZE_SHARES) -> list[int]:
    """Sizes that `scale` and `crop` draw from, for images of a height in pixels.

    Args:
        sizes: pixels, or shares of the height in (0, 1], which give multiples of 32 from 160 pixels up, of 4 below.

    Returns:
        List without repetition, in the order given.
    """
    step = 32 if height >= 160 else 4

    def pixels(size):
        if size > 1:
            return int(size)
        return height if size == 1 else min(max(step, round(height * size / step) * step), height)

    return list(dict.fromkeys(map(pixels, sizes)))


def draw_widths(
    rng: random.Random, count: int, min_width: float, choices: Sequence[float] | None = None, rule: str = 'sandwich'
) -> list[float]:
    """Widths of an update's sub-networks, in descending order.

    Args:
        count: how many.
        min_width: smallest width (alpha).
        choices: draw from these widths instead of uniformly from [min_width, 1].
        rule: `sandwich` (from two sub-networks on, one of them has the smallest width: section 3.2), `uniform` (all are
            drawn: rebuttal, table 4), `smallest` (none is drawn: the released code with one sub-network).
    """
    fixed = [min_width] * {'sandwich': int(count > 1), 'uniform': 0, 'smallest': count}[rule]
    drawn = [rng.choice(choices) if choices else rng.uniform(min_width, 1.0) for _ in range(count - len(fixed))]
    return sorted(fixed + drawn, reverse=True)


def rows_of(index: int, batch_size: int, share: float) -> slice:
    """The rows of the batch that a sub-network sees: consecutive ones, each sub-network's after the last one's.

    Args:
        index: of the sub-network, from 0.
        share: of the batch, in (0, 1]; at least one row.
    """
    rows = max(1, int(share * batch_size + 0.05))  # a share written as 0.333 is a third
    start = index % max(1, batch_size // rows) * rows
    return slice(start, start + rows)


def mask(input: torch.Tensor, ratio: float, patch: int, seed: int) -> torch.Tensor:
    """Set random square patches of each image to zero, the mean colour after normalisation (MaskSub).

    Source: Heo et al., "Masking meets Supervision: A Strong Learning Alliance" (arXiv 2306.11339), section 3.

    Args:
        input: images [B, C, H, W].
        ratio: share of the patches, in (0, 1), rounded to whole patches.
        patch: side in pixels; the last ones of a row or column may be smaller.
        seed: of the generator on the device of the images.
    """
    height, width = input.shape[-2:]
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    generator = torch.Generator(input.device).manual_seed(seed)
    order = torch.rand(len(input), rows * columns, generator=generator, device=input.device).argsort(dim=1)
    masked = (order < round(ratio * rows * columns)).view(len(input), 1, rows, columns)
    masked = masked.repeat_interleave(patch, 2).repeat_interleave(patch, 3)[..., :height, :width]
    return input.masked_fill(masked, 0)


def transform(input: torch.Tensor, draw: Any, names: Sequence[str], *, mask_ratio: float = 0.5, mask_patch: int = 32):
    """Transform a normalised batch for a sub-network.

    Args:
        input: images [B, C, H, W].
        draw: `Draw`.
        names: transforms in the order in which they are applied: `scale` (bilinear, aligned corners, to `draw.size`),
            `rotate` (by quarter turns), `crop` (to `draw.size`), `flip`, `mask`.
        mask_ratio, mask_patch: see `mask`.

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
        elif name == 'mask':
            input = mask(input, mask_ratio, mask_patch, draw.seed)
    return input.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def soft_label_loss(output: torch.Tensor, teacher_output: torch.Tensor, criterion: nn.Module):
    """Distance of a sub-network's output from the full network's, in float32.

    Args:
        output: logits of the sub-network [B, K].
        teacher_output: logits of the full network [B, K], detached.
        criterion: the training loss; under binary cross-entropy the full network's sigmoid is the label, as it is, with
            the criterion's reduction, else its softmax (temperature 1) and the mean KL divergence per sample.
    """
    if isinstance(criterion, BinaryCrossEntropy):
        return taught(criterion)(output.float(), teacher_output.float().sigmoid())
    teacher_target = teacher_output.float().softmax(dim=-1)
    return F.kl_div(output.float().log_softmax(dim=-1), teacher_target, reduction='batchmean')


def taught(criterion: BinaryCrossEntropy) -> BinaryCrossEntropy:
    """The criterion for labels that are a network's output: taken as they are, least where both agree.

    What `pos_weight` asks for is in the output already.
    """
    how = dict(weight=criterion.weight, reduction=criterion.reduction, sum_classes=criterion.sum_classes)
    return BinaryCrossEntropy(smoothing=0.0, **how)


class SubnetSwitch(nn.Module):
    """The module that DDP wraps: the full network, or on request the sub-network that shares its parameters.

    It holds the full network as `module`, where `timm.utils.unwrap_model` looks for it.
    """

    def __init__(self, module: nn.Module, subnet: Any):
        super().__init__()
        self.module = module
        object.__setattr__(self, 'subnet', subnet)  # hidden from parameters() and state_dict()

    def forward(self, input: torch.Tensor, use_subnet: bool = False):
        return self.subnet(input) if use_subnet else self.module(input)


def check_inputs(args: Namespace, model: nn.Module, input_size: Sequence[int]):
    """Refuse images that the sub-networks cannot be given, at any size of the training images.

    Raises:
        OptionError: naming the option.
    """
    _, height, width = input_size
    if 'rotate' in args.gradaug_transforms and height != width:
        raise OptionError(f'--gradaug-transforms rotate: needs square images, these are {height}x{width}.')
    heights = args.train_img_sizes or [height]
    resizes = {'scale', 'crop'} & set(args.gradaug_transforms)
    shares = (args.gradaug_sizes or SIZE_SHARES) if resizes else [1]
    sizes = dict.fromkeys(size for each in heights for size in sizes_for(each, shares))
    if max(sizes) > max(heights):
        raise OptionError(f'--gradaug-sizes {max(sizes)}: above the training size, {max(heights)} pixels.')
    check_sizes(model, input_size, sizes, single=single_images(args))


def single_images(args: Namespace) -> str:
    """The options by which a sub-network, whose batch-norm always takes statistics, sees one image at a time, or ''."""
    images = {'--batch-size': min(args.train_batch_sizes or [args.batch_size])}
    if args.unlabeled_split and args.uratio and args.ulb_loss_ratio:
        images['--uratio'] = round(args.uratio * args.batch_size)
    for option, count in images.items():
        if rows_of(0, count, args.gradaug_batch_share).stop == 1 and not (args.distributed and args.sync_bn):
            share = f' --gradaug-batch-share {args.gradaug_batch_share:g}' if count > 1 else ''
            given = f' --uratio {args.uratio:g}' if option == '--uratio' else ''
            return f'--batch-size {args.batch_size}{given}{share}'
    return ''


def check_sizes(
    model: nn.Module,
    input_size: Sequence[int],
    sizes: Iterable[float],
    *,
    option: str = '--gradaug-sizes',
    single: str = '',
):
    """Run the model's shapes at each size.

    Args:
        option: what asked for the sizes, for messages.
        single: the options by which it trains on one image at a time, if it does.

    Raises:
        OptionError: naming the first size that the model cannot take, or at which batch-norm has nothing to average.
    """
    channels, height, width = input_size
    for size in sizes:
        shape = (channels, size, round(size * width / height))
        reason = shape_error(model, shape)
        if single and single_values(model, shape):
            raise OptionError(f'{single}: batch-norm would see one value per channel at {option} {size}.')
        if reason is not None:
            patches = getattr(model, 'patch_embed', None)
            strict, pads = (getattr(patches, name, None) for name in ('strict_img_size', 'dynamic_img_pad'))
            wanted = 'dynamic_img_size' if strict else 'dynamic_img_pad' if pads is False else ''
            hint = f'; --model-kwargs {wanted}=True makes it take any' if wanted else ''
            raise OptionError(f'{option} {size}: {type(model).__name__} cannot take such images ({reason}){hint}.')


def plan_subnetworks(args: Namespace, model: nn.Module, input_size: Sequence[int]):
    """What the sub-networks will be.

    Returns:
        (make_subnet, share_of_flops, report): a function from the model to what runs a width, one from a width to the
        share of FLOPs that it keeps, and text for the log.
    """
    if args.gradaug_subnet == 'depth':
        rates = take_drop_path(model)
        if not rates:
            raise OptionError(f'--gradaug-subnet depth: --model {args.model} has no drop path.')
        make_subnet = functools.partial(DepthTwin, rates=rates, mode=args.gradaug_depth_mode)
        return make_subnet, lambda width: 1.0, f'drop path in {len(rates)} blocks'
    try:
        plan = SlimmablePlan(model, input_size)
    except ValueError as error:
        raise OptionError(f'--gradaug {args.gradaug} with --model {args.model}: {error}') from error
    divisor = args.gradaug_width_divisor
    make_subnet = functools.partial(Twin, plan=plan, width_divisor=divisor, in_place=not args.distributed)
    return make_subnet, lambda width: plan.kept(width, divisor)[1], plan.report(args.gradaug_min_width, divisor)
