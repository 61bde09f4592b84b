"""Torchvision's detectors on a backbone of timm, and GradAug inside them.

Source: Yang et al., "GradAug: A New Regularization Method for Deep Neural Networks" (arXiv 2006.07989), section 4.4.
"""

import copy
import functools
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import timm
import torch
from timm.task import ClassificationTask
from torch import nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from regaug.detection import DETECTORS
from regaug.detection.data import Target
from regaug.errors import OptionError
from regaug.methods.gradaug import GradAug
from regaug.methods.subnetworks import Draw
from regaug.options.parser import naming
from regaug.seeds import separate_randomness
from regaug.slimmable import SlimmablePlan, Twin
from regaug.slimmable.shapes import shape_error
from regaug.training.task import LossTerms
from regaug.training.weights import load_initial

STRIDES = (4, 8, 16, 32)
MAPS = 256  # channels of each map of the pyramid
_DIVISOR = 32  # torchvision pads images to multiples of it


class Backbone(nn.Module):
    """A network of timm under torchvision's feature pyramid.

    Args:
        body: a model of timm with `features_only`, whose maps are [B, C, H, W].
    """

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body, self.out_channels = body, MAPS
        self.fpn = FeaturePyramidNetwork(body.feature_info.channels(), MAPS, extra_blocks=LastLevelMaxPool())

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.fpn(OrderedDict((str(level), features) for level, features in enumerate(self.body(x))))


def create_body(args: Namespace) -> nn.Module:
    """The network of `--backbone` with the weights of `--checkpoint`, as far as it makes feature maps.

    Raises:
        OptionError: it makes no maps of the strides that a pyramid needs, or the checkpoint does not fit.
    """
    create = functools.partial(timm.create_model, args.backbone, **args.model_kwargs)
    with naming(args, '--backbone', '--model-kwargs'):
        with torch.device('meta'):
            strides = create(features_only=True).feature_info.reduction()
        if not set(STRIDES) <= set(strides):
            raise ValueError(f'a pyramid needs feature maps of strides {STRIDES}, this has {tuple(strides)}')
    last = [max(index for index, found in enumerate(strides) if found == stride) for stride in STRIDES]
    weights = {}
    if args.checkpoint:
        classifier = create()
        load_initial(classifier, args.checkpoint, option='--checkpoint')
        weights = dict(pretrained=True, pretrained_cfg_overlay=dict(state_dict=classifier.state_dict()))
    body = create(features_only=True, out_indices=last, **(weights or dict(pretrained=args.pretrained)))
    body.pretrained_cfg.pop('state_dict', None)
    return body


def create_detector(args: Namespace, num_classes: int) -> nn.Module:
    """Torchvision's detector for these options; its state dict is torchvision's.

    Args:
        num_classes: the background included.

    Raises:
        OptionError: naming what cannot be built, or the size that the backbone cannot take.
    """
    body = create_body(args)
    backbone = Backbone(body)
    check_size(backbone, '--size', args.size, args.batch_size, training=False)
    statistics = {f'image_{name}': body.pretrained_cfg[name] for name in ('mean', 'std')}
    sizes = dict(min_size=args.size, max_size=args.max_size)
    with naming(args, '--detector-kwargs'):
        return DETECTORS[args.detector](backbone, num_classes, **{**sizes, **statistics, **args.detector_kwargs})


def check_size(backbone: Backbone, option: str, size: int, batch_size: int, *, training: bool):
    """Make sure that a backbone takes images of a short edge in pixels.

    Raises:
        OptionError: naming the option.
    """
    padded = -(-size // _DIVISOR) * _DIVISOR
    reason = shape_error(backbone, (3, padded, padded), batch_size=batch_size, training=training)
    if reason is not None:
        who = 'sub-networks' if training else 'the backbone'
        raise OptionError(f'{option} {size}: {who} cannot take {batch_size} such images in a batch ({reason}).')


def losses_at(
    detector: nn.Module, backbone: Any, size: int, images: Sequence[torch.Tensor], targets: Sequence[Target]
) -> dict[str, torch.Tensor]:
    """Losses of a detector with another backbone, on its images at another size.

    Args:
        backbone: callable in the place of the detector's own.
        size: short edge in pixels; the limit of the long edge changes in proportion, boxes and masks follow.
        images: [3, H, W] in [0, 1], at whatever size they have.
        targets: boxes, labels and masks in pixels of the images.
    """
    transform = copy.copy(detector.transform)
    transform.max_size = round(transform.max_size * size / transform.min_size[-1])
    transform.min_size = (size,)
    resized, targets = transform(images, targets)
    features = backbone(resized.tensors)
    proposals, losses = detector.rpn(resized, features, targets)
    return {**detector.roi_heads(features, proposals, resized.image_sizes, targets)[1], **losses}


class SubnetSwitch(nn.Module):
    """The module that DDP wraps: the detector, or on request with the sub-network in the place of its backbone."""

    def __init__(self, module: nn.Module, subnet: Twin):
        super().__init__()
        self.module = module
        object.__setattr__(self, 'subnet', subnet)  # hidden from parameters() and state_dict()

    def forward(self, images: Sequence[torch.Tensor], targets: Sequence[Target], size: int | None = None):
        if size is None:
            return self.module(images, targets)
        return losses_at(self.module, self.subnet, size, images, targets)


class DetectorGradAug(GradAug):
    """Sub-networks of the backbone, which train on resized images and the ground truth; pyramid and heads are shared.

    They use the statistics of the batch in batch-norm; the full network keeps its running ones.
    """

    switch = SubnetSwitch

    def loss_terms(self, terms: Any, input: Any, target: Any, context: Any) -> list:
        self.subnet.clear()
        if not self.runs_in(context.num_updates):
            return terms

        def term(index: int, draw: Draw):
            self.subnet.set(draw.width)
            network = context.network if self._inside_ddp else SubnetSwitch(context.network, self.subnet)
            # Which anchors and proposals are sampled differs from rank to rank and from term to term.
            varies = (self.seed, context.num_updates, (context.rank, context.micro_batch), index)
            with separate_randomness(input[0].device, *varies), context.autocast():
                losses = network(input, target, size=draw.size)
            return {'loss': self.weight * sum(losses.values()), 'width': draw.width, 'size': draw.size}

        draws = self.draw(context.num_updates, max(self.sizes))
        return [*terms, *((f'sub{i}', functools.partial(term, i, draw)) for i, draw in enumerate(draws, start=1))]


def create_gradaug(args: Namespace, detector: nn.Module) -> tuple[DetectorGradAug, str]:
    """GradAug for these options, and text for the log.

    Raises:
        OptionError: the backbone cannot be slimmed, or sub-networks cannot take a size.
    """
    for size in args.gradaug_sizes:
        check_size(detector.backbone, '--gradaug-sizes', size, args.batch_size, training=True)
    try:
        plan = SlimmablePlan(detector.backbone, (3, 2 * _DIVISOR, 2 * _DIVISOR), full=('fpn',))
    except ValueError as error:
        raise OptionError(f'--gradaug {args.gradaug} with --backbone {args.backbone}: {error}') from error
    gradaug = DetectorGradAug(
        num_subnetworks=args.gradaug,
        min_width=args.gradaug_min_width,
        seed=args.seed,
        sizes=args.gradaug_sizes,
        weight=args.gradaug_weight,
        every=args.gradaug_every,
        rule=args.gradaug_widths,
        make_subnet=lambda detector: Twin(
            detector.backbone, plan, args.gradaug_width_divisor, in_place=not args.distributed
        ),
    )
    return gradaug, plan.report(args.gradaug_min_width, args.gradaug_width_divisor)


class DetectorTask(ClassificationTask):
    """A detector as a task of timm."""

    def forward(self, input: Sequence[torch.Tensor], target: Sequence[Target]) -> dict[str, torch.Tensor]:
        losses = self.trainable_module(input, target)
        return {'loss': sum(losses.values()), **losses}


class DetectionTask(LossTerms, DetectorTask):
    """The task as the engine takes it: torchvision's losses are logged one by one.

    Batch-norm of the full network keeps its running statistics, as is the habit with batches of few images; its affine
    parameters train.
    """

    freeze_bn = True
