"""Builds the methods that the options ask for, and checks what only the model can tell."""

import functools
import logging

import torch
from timm.data.loader import adapt_to_chs
from timm.utils import unwrap_model

from regaug.augment.mix import CutMix, Cutout, GaussianNoise, Mixup
from regaug.augment.parameters import Augmentation
from regaug.errors import OptionError
from regaug.methods.depth import DepthTwin, take_drop_path
from regaug.methods.gradaug import GradAug, default_sizes
from regaug.methods.manifold import ManifoldMixup, find_stages
from regaug.methods.maxup import MaxUp
from regaug.methods.scoring import Scorer
from regaug.methods.uada import UADA
from regaug.slimmable import SlimmablePlan, Twin
from regaug.slimmable.shapes import shape_error

_logger = logging.getLogger('train')
_MAX_SIZES = 16


def create_gradaug(args, model, input_size):
    """GradAug for these options, its sub-networks planned but not yet attached; None with `--gradaug 0`.

    Call it when the model is built and before batch-norm is converted.

    Args:
        input_size: (C, H, W) of the training images.

    Raises:
        OptionError: when the model has nothing to slim or no drop path, or cannot take a size that may be drawn.
    """
    if not args.gradaug:
        return None
    _, height, width = input_size
    if 'rotate' in args.gradaug_transforms and height != width:
        raise OptionError(f'--gradaug-transforms rotate: needs square images, these are {height}x{width}.')
    sizes = args.gradaug_sizes or default_sizes(height)
    if 'crop' in args.gradaug_transforms and max(sizes) > height:
        raise OptionError(f'--gradaug-sizes {max(sizes)}: no crop of that size in images of {height} pixels.')
    if {'scale', 'crop'} & set(args.gradaug_transforms):
        check_sizes(model, input_size, sizes)
    gradaug = GradAug(
        num_subnetworks=args.gradaug,
        min_width=args.gradaug_min_width,
        seed=args.seed,
        sizes=args.gradaug_sizes,
        transforms=args.gradaug_transforms,
        targets=args.gradaug_targets,
        weight=args.gradaug_weight,
        every=args.gradaug_every,
        num_widths=args.gradaug_compile,
    )
    if args.gradaug_subnet == 'depth':
        rates = take_drop_path(model)
        if not rates:
            raise OptionError(f'--gradaug-subnet depth: --model {args.model} has no drop path.')
        gradaug.make_subnet = functools.partial(DepthTwin, rates=rates)
        share_of_flops, report = (lambda width: 1.0), f'drop path in {len(rates)} blocks'
    else:
        plan = plan_widths(args, model, input_size)
        gradaug.make_subnet = functools.partial(Twin, plan=plan, width_divisor=args.gradaug_width_divisor)
        report = plan.report(args.gradaug_min_width, args.gradaug_width_divisor)

        def share_of_flops(width):
            return plan.kept(width, args.gradaug_width_divisor)[1]

    if args.rank == 0:
        for line in report.splitlines():
            _logger.info(f'GradAug: {line}')
        cost = gradaug.expected_cost(share_of_flops, height)
        _logger.info(f'GradAug: an update costs about {cost:.2f} times a plain one, by FLOPs.')
    return gradaug


def create_manifold_mixup(args, model, input_size):
    """Manifold Mixup for these options, None without.

    Raises:
        OptionError: when the model names no stages.
    """
    if not args.manifold_mixup:
        return None
    stages = find_stages(model, input_size)
    if not stages:
        raise OptionError(f'--manifold-mixup {args.manifold_mixup:g}: --model {args.model} names no feature stages.')
    if args.rank == 0:
        _logger.info(f'Manifold Mixup: at the input or after one of {", ".join(stages)}.')
    return ManifoldMixup(
        stages,
        alpha=args.manifold_mixup,
        seed=args.seed,
        num_classes=args.num_classes,
        smoothing=args.smoothing,
    )


def create_selector(options, task, data_config):
    """What chooses the input in a phase: MaxUp or UADA, None without.

    Args:
        options: options as the phase has them (`phases.Phase.options`).
        task: whose network scores the candidates.
        data_config: timm's data configuration.
    """
    if options.maxup:
        return create_maxup(options, task, data_config)
    if options.uada:
        return create_uada(options, task, data_config)
    return None


def create_maxup(options, task, data_config):
    """MaxUp for these options."""
    names = options.maxup_aug.split('+')
    std = adapt_to_chs(data_config['std'], data_config['input_size'][0])
    labels = dict(num_classes=options.num_classes, smoothing=options.smoothing)
    mixing = dict(labels, prob=options.mixup_prob if options.mixup_enabled else 0.0)
    build = {
        'cutmix': lambda: CutMix(
            alpha=options.cutmix,
            minmax=options.cutmix_minmax,
            **{**mixing, 'prob': mixing['prob'] * options.intensity},
        ),
        'mixup': lambda: Mixup(alpha=options.mixup, **mixing),
        'cutout': lambda: Cutout(size=options.cutout_size, prob=options.intensity),
        'gauss': lambda: GaussianNoise(
            sigma=options.gauss_sigma * options.intensity / torch.tensor(std, device=task.device)
        ),
    }
    return MaxUp(
        [build[name]() for name in names if name != 'views'],
        num_copies=options.maxup,
        scorer=Scorer(task),
        seed=options.seed,
        views='views' in names,
        excess=options.maxup_score == 'excess',
    )


def create_uada(options, task, data_config):
    """UADA for these options."""
    channels = data_config['input_size'][0]
    augmentation = Augmentation(
        options.uada_groups,
        mean=adapt_to_chs(data_config['mean'], channels),
        std=adapt_to_chs(data_config['std'], channels),
        device=task.device,
        dtype=getattr(torch, options.model_dtype or 'float32'),
        padding=options.pad_crop,
        pad_mode=options.pad_mode,
        flip_prob=options.hflip,
        cutout_size=options.cutout_size,
        ranges=options.uada_ranges,
        intensity=options.intensity,
    )
    return UADA(
        augmentation,
        scorer=Scorer(task),
        seed=options.seed,
        delta=options.uada_delta,
        epsilon=options.uada_epsilon,
        step=options.uada_step,
    )


def check_selector(args, task, input_size):
    """Make sure that what chooses the input can do it: run one scoring pass, which must leave the model as it is.

    Args:
        input_size: (C, H, W) of the training images.

    Raises:
        OptionError: when a buffer changes, or when UADA has no operators for the images.
    """
    channels = input_size[0]
    if args.uada and 'policy' in args.uada_groups and channels not in (1, 3):
        raise OptionError(f'--uada-groups policy: its operators take 1 or 3 channels, these images have {channels}.')
    if not (args.maxup > 1 or (args.uada and args.uada_epsilon)):
        return
    parameter = next(task.full_network.parameters())
    input = torch.zeros((2, *input_size), device=parameter.device, dtype=parameter.dtype)
    try:
        Scorer(task.train()).check(input)
    except ValueError as error:
        method = f'--maxup {args.maxup}' if args.maxup else '--uada'
        raise OptionError(f'{method} with --model {args.model}: {error}') from error


def plan_widths(args, model, input_size):
    try:
        return SlimmablePlan(model, input_size)
    except ValueError as error:
        raise OptionError(f'--gradaug {args.gradaug} with --model {args.model}: {error}') from error


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


def attach_subnetworks(gradaug, task, *, compile_backend=None, compile_mode=None):
    """Give GradAug its sub-networks, when the model is where it trains and before compilation and DDP.

    Args:
        compile_backend: compile the sub-networks too (`--gradaug-compile`), None for not.
    """
    gradaug.subnet = gradaug.make_subnet(unwrap_model(task.get_trainable_module()))
    if compile_backend:
        graphs = _MAX_SIZES * len(gradaug.width_choices)  # one for each width and size
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, graphs)
        gradaug.subnet.module.compile(backend=compile_backend, mode=compile_mode, dynamic=False)
        _logger.info(f'GradAug: widths are drawn from {gradaug.width_choices} only (--gradaug-compile), not uniformly.')
