"""GradAug: sub-networks trained on transformed inputs towards the full network's output.

Source: Yang et al., "GradAug: A New Regularization Method for Deep Neural Networks" (arXiv 2006.07989), section 3, and
the authors' rebuttal for the depth variant.
"""

import logging
import random
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import PatchDropout
from timm.models.vision_transformer import VisionTransformer
from timm.utils import unwrap_model
from torch import nn

from regaug.methods import Method
from regaug.methods.subnetworks import (
    SIZE_SHARES,
    Draw,
    SubnetSwitch,
    check_inputs,
    draw_widths,
    plan_subnetworks,
    rows_of,
    sizes_for,
    soft_label_loss,
    transform,
)
from regaug.seeds import derived_seed, separate_randomness

_logger = logging.getLogger('train')
_MAX_SIZES = 16
_SAMPLES = 256  # updates whose widths the expected cost averages
_SHOWN = 8  # images of a picture


class GradAug(Method):
    """Sub-networks of a training task.

    Args:
        num_subnetworks: sub-networks per update (n).
        min_width: smallest kept fraction of channels (alpha).
        seed: of the run; all ranks draw the same from (seed, num_updates).
        sizes: heights for `scale` and `crop`, in pixels or as shares of each batch's own height.
        transforms: names in order of application, see `transform`.
        targets: `soft` (the full network's output) or `hard` (labels and criterion).
        weight: factor of each sub-network's loss.
        every: sub-networks run in every so many updates.
        batch_share: share of the batch that each sub-network sees, another one each; 1 as in the paper. The same
            objective, estimated from fewer samples.
        average: divide the sum of all terms by their number, as MaskSub does.
        mask_ratio, mask_patch: of the transform `mask`; where the model drops tokens (`patch_drop`), the sub-network
            drops this share of them instead, at the cost of what is left (the same idea, other values).
        rule: see `draw_widths`.
        num_widths: draw from so many fixed widths (for compilation), 0 for all.
        narrows: sub-networks have fewer channels (else fewer blocks).
        make_subnet: function from the full network, where it trains, to what runs a width.
        compile_kwargs: arguments of `torch.nn.Module.compile` for the sub-networks, None to leave them alone.

    Attributes:
        subnet: runs a width: `slimmable.Twin`, or `DepthTwin`.
    """

    name = 'gradaug'
    switch = SubnetSwitch  # what DDP wraps

    def __init__(
        self,
        *,
        num_subnetworks: Any,
        min_width: Any,
        seed: int,
        sizes: Sequence[float] = SIZE_SHARES,
        transforms: Any = ('scale',),
        targets: str = 'soft',
        weight: float = 1.0,
        every: int = 1,
        batch_share: float = 1.0,
        average: bool = False,
        mask_ratio: float = 0.5,
        mask_patch: int = 32,
        rule: str = 'sandwich',
        num_widths: int = 0,
        narrows: bool = True,
        make_subnet: Any = None,
        compile_kwargs: Any = None,
    ):
        self.num_subnetworks = num_subnetworks
        self.min_width = min_width
        self.seed = seed
        self.sizes = sizes
        self.transforms = tuple(transforms)
        self.targets = targets
        self.weight = weight
        self.every = every
        self.batch_share = batch_share
        self.average = average
        self.mask_ratio = mask_ratio
        self.mask_patch = mask_patch
        self.rule = rule
        self.width_choices = [min_width + (1 - min_width) * i / num_widths for i in range(num_widths)] or None
        self.narrows = narrows
        self.make_subnet = make_subnet
        self.compile_kwargs = compile_kwargs
        self.subnet = None
        self._seen = {}
        self._inside_ddp = False

    def attach(self, task: nn.Module):
        """Build the sub-networks, and compile them under `--gradaug-compile`."""
        self.subnet = self.make_subnet(unwrap_model(task.get_trainable_module()))
        if self.drops_tokens(self.subnet.module):
            prefix = self.subnet.module.num_prefix_tokens
            self.subnet.module.patch_drop = PatchDropout(self.mask_ratio, num_prefix_tokens=prefix)
            self.transforms = tuple(name for name in self.transforms if name != 'mask')
        if self.compile_kwargs:
            graphs = _MAX_SIZES * len(self.width_choices)  # one for each width and size
            torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
            self.subnet.module.compile(**self.compile_kwargs, dynamic=False)
            _logger.info(f'GradAug: --gradaug-compile draws widths from {self.width_choices} only, not uniformly.')

    def drops_tokens(self, model: nn.Module) -> bool:
        """Whether a sub-network of this model leaves out tokens instead of seeing masked patches.

        timm's other transformers with a `patch_drop` need the places of the tokens that it keeps, or have no prefix.
        """
        return 'mask' in self.transforms and isinstance(model, VisionTransformer) and hasattr(model, 'patch_drop')

    @property
    def resizes(self) -> bool:
        """Sub-networks see images of other sizes."""
        return 'scale' in self.transforms or 'crop' in self.transforms

    def wrap(self, network: nn.Module):
        self._inside_ddp = True
        return self.switch(network, self.subnet)

    def train(self, mode: bool):
        if self.subnet is not None:
            self.subnet.train(mode)

    def pictures(self):
        """What the sub-networks saw, at their sizes."""
        return [
            (name, inputs[:_SHOWN], [f'width {draw.width:.2f} {inputs.shape[-1]}px'] * len(inputs[:_SHOWN]))
            for name, (inputs, draw) in self._seen.items()
        ]

    def runs_in(self, num_updates: int):
        return num_updates % self.every == 0

    def draw(self, num_updates: int, height: int):
        """The sub-networks of an update, in the order in which they run; the same on every rank and after a resume."""
        rng = random.Random(derived_seed('gradaug', self.seed, num_updates))
        widths = draw_widths(rng, self.num_subnetworks, self.min_width, self.width_choices, self.rule)
        sizes = sizes_for(height, self.sizes)
        if 'crop' in self.transforms:
            sizes = [min(size, height) for size in sizes]
        return [
            Draw(
                width=width,
                size=rng.choice(sizes) if self.resizes else height,
                quarter_turns=rng.randrange(4),
                top=rng.random(),
                left=rng.random(),
                flip=rng.random() < 0.5,
            )
            for width in widths
        ]

    def loss_terms(self, terms: Any, input: torch.Tensor, target: torch.Tensor, context: Any):
        """The terms so far, then one for each sub-network; the first one's output is what they learn (equation 4)."""
        if not self.runs_in(context.num_updates):
            return terms
        (name, full), *others = terms
        teacher = {}
        draws = self.draw(context.num_updates, input.shape[-2])
        weight = {'weight': 1 / (len(terms) + len(draws))} if self.average else {}

        def full_term(**kwargs):
            self.subnet.clear()
            result = full(**kwargs)
            teacher['output'] = result['output'].detach()
            return {**result, **weight}

        def subnet_term(draw, index):
            def term():
                output, rows = self.run_subnet(draw, index, input, context)
                taught = teacher['output'][rows]
                if self.targets == 'hard':
                    with context.autocast():
                        loss = context.criterion(output, target[rows])
                else:
                    loss = soft_label_loss(output, taught, context.criterion)
                agreement = (output.argmax(dim=-1) == taught.argmax(dim=-1)).float().mean()
                result = {'loss': self.weight * loss, 'output': output, 'agreement': agreement, **weight}
                if self.narrows:
                    result['width'] = draw.width
                return {**result, 'size': draw.size}

            return term

        subnets = [(f'sub{index}', subnet_term(draw, index)) for index, draw in enumerate(draws, start=1)]
        return [(name, full_term), *others, *subnets]

    def run_subnet(self, draw: Any, index: Any, input: torch.Tensor, context: Any, *kind):
        """Run a sub-network on the rows of a batch that it sees, transformed.

        Args:
            draw: `Draw`.
            index: which sub-network of the update this is, from 1.
            input: images [B, C, H, W].
            context: `Context`.
            *kind: what random numbers differ by from those for another batch of the same update.

        Returns:
            (logits, rows): [b, K], and which rows of the batch these are.
        """
        self.subnet.set(draw.width)
        rows = rows_of(index - 1, len(input), self.batch_share)
        seed = derived_seed('mask', self.seed, *context.key, index, *kind)
        masking = dict(mask_ratio=self.mask_ratio, mask_patch=self.mask_patch)
        inputs = transform(input[rows], replace(draw, seed=seed), self.transforms, **masking)
        if self.keep_pictures and not kind:
            self._seen[f'sub{index}'] = inputs, draw
        # What dropout and drop path draw differs from rank to rank, from micro-batch to micro-batch.
        varies = (self.seed, context.num_updates, (context.rank, context.micro_batch), index, *kind)
        with separate_randomness(input.device, *varies), context.autocast():
            return self._forward(inputs, context.network), rows

    def _forward(self, input: torch.Tensor, network: nn.Module):
        """Logits of the sub-network that is set, through DDP where it has to know of them."""
        return network(input, use_subnet=True) if self._inside_ddp else self.subnet(input)

    def expected_cost(self, share_of_flops: Any, height: int, *, share_of_tokens: float = 1.0, unlabelled: float = 0.0):
        """Cost of an update relative to plain training, by FLOPs, averaged over the sizes and some updates' widths.

        Args:
            share_of_flops: function from a width to the share of FLOPs that its sub-network keeps.
            height: of the training images, in pixels.
            share_of_tokens: that a sub-network sees.
            unlabelled: images without labels for each one with: a teacher's forward pass, and the sub-networks.
        """
        sizes = sizes_for(height, self.sizes) if self.resizes else [height]
        share_of_pixels = sum((size / height) ** 2 for size in sizes) / len(sizes)
        draws = [draw for num_updates in range(_SAMPLES) for draw in self.draw(num_updates, height)]
        share_of_width = sum(share_of_flops(draw.width) for draw in draws) / _SAMPLES
        share_of_rows = min(1.0, self.batch_share)
        subnetworks = share_of_width * share_of_pixels * share_of_rows * share_of_tokens
        return 1 + (subnetworks * (1 + unlabelled) + unlabelled / 3) / self.every


def create(args: Namespace, model: nn.Module, data_config: dict[str, Any]):
    """GradAug for these options, its sub-networks planned but not yet built; None with `--gradaug 0`.

    Raises:
        OptionError: when the model has nothing to slim or no drop path, or cannot take a size that may be drawn.
    """
    if not args.gradaug:
        return None
    input_size = data_config['input_size']
    check_inputs(args, model, input_size)
    make_subnet, share_of_flops, report = plan_subnetworks(args, model, input_size)
    backend = args.torchcompile or 'inductor'
    gradaug = GradAug(
        num_subnetworks=args.gradaug,
        min_width=args.gradaug_min_width,
        seed=args.seed,
        sizes=args.gradaug_sizes or SIZE_SHARES,
        transforms=args.gradaug_transforms,
        targets=args.gradaug_targets,
        weight=args.gradaug_weight,
        every=args.gradaug_every,
        batch_share=args.gradaug_batch_share,
        average=args.gradaug_average,
        mask_ratio=args.gradaug_mask_ratio,
        mask_patch=args.gradaug_mask_patch,
        rule=args.gradaug_widths,
        num_widths=args.gradaug_compile,
        narrows=args.gradaug_subnet == 'width',
        make_subnet=make_subnet,
        compile_kwargs=dict(backend=backend, mode=args.torchcompile_mode) if args.gradaug_compile else None,
    )
    if args.rank == 0:
        for line in report.splitlines():
            _logger.info(f'GradAug: {line}')
        share_of_tokens = 1 - args.gradaug_mask_ratio if gradaug.drops_tokens(model) else 1.0
        unlabelled = args.uratio if args.unlabeled_split and args.ulb_loss_ratio else 0.0
        shares = dict(share_of_tokens=share_of_tokens, unlabelled=unlabelled)
        cost = gradaug.expected_cost(share_of_flops, input_size[1], **shares)
        _logger.info(f'GradAug: an update costs about {cost:.2f} times a plain one, by FLOPs.')
    return gradaug


def adapt_phase(phase: Any, epoch: int, args: Namespace):
    """Sub-networks run from `--gradaug-start-epoch` on, and in refinement unless `--refine-plain`."""
    if not args.gradaug:
        return phase
    if phase.refining and args.refine_plain:
        return phase.without('--gradaug')
    return phase.on('gradaug') if epoch >= args.gradaug_start_epoch else phase


def model_kwargs(args: Namespace):
    """Depth sub-networks need a model with drop path."""
    if args.gradaug and args.gradaug_subnet == 'depth':
        return {'--gradaug-subnet depth': {'drop_path_rate': args.gradaug_depth_rate}}
    return {}
