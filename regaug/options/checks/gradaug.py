"""GradAug: what its sub-networks cannot work with."""

from argparse import Namespace

from timm.optim import get_optimizer_info

from regaug.options.checks.require import refuse_with, require, spell


def check_gradaug_ranges(args: Namespace):
    require(args, '--gradaug-min-width', 0 < args.gradaug_min_width <= 1, 'must be above 0 and at most 1')
    require(args, '--gradaug-depth-rate', 0 <= args.gradaug_depth_rate < 1, 'must be at least 0 and below 1')
    once = len(set(args.gradaug_transforms)) == len(args.gradaug_transforms)
    require(args, '--gradaug-transforms', once, 'each transform may be given once')


def check_gradaug(args: Namespace):
    if not args.gradaug:
        return
    refuse_with(args, '--gradaug', ['--kd-model-name'], 'sub-networks learn from the full network alone')
    second_order = get_optimizer_info(args.opt.split('_')[-1]).second_order
    require(
        args, '--gradaug', not second_order, f'does not go with the second-order optimiser of {spell(args, "--opt")}'
    )
    check_gradaug_inputs(args)
    if args.gradaug_compile:
        by_width = args.gradaug_subnet == 'width'
        require(args, '--gradaug-compile', by_width, f'fixes widths, which {spell(args, "--gradaug-subnet")} has not')


def check_gradaug_inputs(args: Namespace):
    """Transforms against the size of the input."""
    square = args.input_size is None or args.input_size[1] == args.input_size[2]
    turned = 'rotate' in args.gradaug_transforms
    why = f'rotate needs a square input, not {spell(args, "--input-size")}'
    require(args, '--gradaug-transforms', square or not turned, why)
    used = {'scale', 'crop'} & set(args.gradaug_transforms)
    require(args, '--gradaug-sizes', args.gradaug_sizes is None or used, 'only scale and crop change the size')
