"""GradAug: sub-networks trained on transformed inputs towards the full network's output.

Source: Yang et al., "GradAug: A New Regularization Method for Deep Neural Networks" (arXiv 2006.07989), section 3, and
the authors' rebuttal for the depth variant.
"""

import copy
import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import nn

from regaug.seeds import derived_seed, separate_randomness
from regaug.training.averages import FULL

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


def soft_label_loss(output, teacher_output, criterion):
    """Distance of a sub-network's output from the full network's, in float32.

    Args:
        output: logits of the sub-network [B, K].
        teacher_output: logits of the full network [B, K], detached.
        criterion: the training loss; under binary cross-entropy the full network's sigmoid is the label, with the
            criterion's reduction, else its softmax (temperature 1) and the mean KL divergence per sample.
    """
    if isinstance(criterion, BinaryCrossEntropy):
        soft_criterion = copy.copy(criterion)
        soft_criterion.target_threshold = None
        return soft_criterion(output.float(), teacher_output.float().sigmoid())
    teacher_target = teacher_output.float().softmax(dim=-1)
    return F.kl_div(output.float().log_softmax(dim=-1), teacher_target, reduction='batchmean')


class GradAug:
    """Sub-networks of a training task.

    Args:
        num_subnetworks: sub-networks per update (n).
        min_width: smallest kept fraction of channels (alpha).
        seed: of the run; all ranks draw the same from (seed, num_updates).
        sizes: heights in pixels for `scale` and `crop`; derived from each batch's own height when None.
        transforms: names in order of application, see `transform`.
        targets: `soft` (the full network's output) or `hard` (labels and criterion).
        weight: factor of each sub-network's loss.
        every: sub-networks run in every so many updates.
        num_widths: draw from so many fixed widths (for compilation), 0 for all.

    Attributes:
        subnet: runs a width: `slimmable.Twin`, or `DepthTwin`.
    """

    def __init__(
        self,
        *,
        num_subnetworks,
        min_width,
        seed,
        sizes=None,
        transforms=('scale',),
        targets='soft',
        weight=1.0,
        every=1,
        num_widths=0,
    ):
        self.num_subnetworks = num_subnetworks
        self.min_width = min_width
        self.seed = seed
        self.sizes = sizes
        self.transforms = tuple(transforms)
        self.targets = targets
        self.weight = weight
        self.every = every
        self.width_choices = [min_width + (1 - min_width) * i / num_widths for i in range(num_widths)] or None
        self.subnet = None

    def runs_in(self, num_updates):
        return num_updates % self.every == 0

    def draw(self, num_updates, height):
        """The sub-networks of an update, in the order in which they run; the same on every rank and after a resume."""
        rng = random.Random(derived_seed('gradaug', self.seed, num_updates))
        widths = draw_widths(rng, self.num_subnetworks, self.min_width, self.width_choices)
        sizes = self.sizes or default_sizes(height)
        resizes = 'scale' in self.transforms or 'crop' in self.transforms
        return [
            Draw(
                width=width,
                size=rng.choice(sizes) if resizes else height,
                quarter_turns=rng.randrange(4),
                top=rng.random(),
                left=rng.random(),
                flip=rng.random() < 0.5,
            )
            for width in widths
        ]

    def loss_terms(self, full, forward, input, target, *, criterion, num_updates, noise, autocast):
        """The full network's term and one term for each sub-network.

        Args:
            full: callable that runs the full network's term and returns timm's dict.
            forward: runs the sub-network that is set on a batch and returns its logits.
            input: images [B, C, H, W].
            target: labels [B] or soft labels [B, K].
            criterion: the training loss.
            num_updates: which update of the run this is.
            noise: what else dropout and drop path of the sub-networks depend on (rank, micro-batch).
            autocast: gives the context of the forward passes.

        Returns:
            List of (name, callable); `full` must run first.
        """
        teacher = {}

        def full_term():
            self.subnet.clear()
            result = full()
            teacher['output'] = result['output'].detach()
            return result

        def subnet_term(draw, index):
            def term():
                self.subnet.set(draw.width)
                with separate_randomness(input.device, self.seed, num_updates, noise, index), autocast():
                    output = forward(transform(input, draw, self.transforms))
                    if self.targets == 'hard':
                        loss = criterion(output, target)
                if self.targets == 'soft':
                    loss = soft_label_loss(output, teacher['output'], criterion)
                agreement = (output.argmax(dim=-1) == teacher['output'].argmax(dim=-1)).float().mean()
                return {
                    'loss': self.weight * loss,
                    'output': output,
                    'agreement': agreement,
                    'width': draw.width,
                    'size': draw.size,
                }

            return term

        draws = self.draw(num_updates, input.shape[-2])
        subnets = [(f'sub{index}', subnet_term(draw, index)) for index, draw in enumerate(draws, start=1)]
        return [(FULL, full_term), *subnets]

    def expected_cost(self, share_of_flops, height, samples=256):
        """Cost of an update relative to plain training, by FLOPs, averaged over the sizes and some updates' widths.

        Args:
            share_of_flops: function from a width to the share of FLOPs that its sub-network keeps.
            height: of the training images, in pixels.
        """
        resizes = 'scale' in self.transforms or 'crop' in self.transforms
        sizes = (self.sizes or default_sizes(height)) if resizes else [height]
        share_of_pixels = sum((size / height) ** 2 for size in sizes) / len(sizes)
        draws = [draw for num_updates in range(samples) for draw in self.draw(num_updates, height)]
        share_of_width = sum(share_of_flops(draw.width) for draw in draws) / samples
        return 1 + share_of_width * share_of_pixels / self.every


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
