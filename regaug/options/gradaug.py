"""Options of GradAug, and what its sub-networks cannot work with."""

from argparse import Namespace

from timm.optim import get_optimizer_info

from regaug.options.parser import Group, Option, flag, refuse_with, require, shown, size, value_of, warn
from regaug.options.timm_checks import check_pixels, main_epochs

_WIDTH, _DEPTH, _MASK = '--gradaug-subnet=width', '--gradaug-subnet=depth', '--gradaug-transforms=mask'
_WIDTHS = 'the smallest width and others drawn (sandwich), all drawn, or the smallest alone'
_MODE = 'blocks dropped for each sample, rescaled as in timm, or for the whole batch, unscaled as in the released code'
_TRANSFORMS = ('scale', 'rotate', 'crop', 'flip', 'mask')
_SIZES = 'of scale and crop: pixels, or shares up to 1 of the training size (default: 1, 6/7, 5/7 and 4/7, rounded)'
_MASK_RATIO = 'share of the patches (or tokens) that mask drops'
_MASK_PATCH = 'side in pixels of the patches that mask sets to zero'
_SUBNET = 'what makes a sub-network: fewer channels, or fewer blocks (stochastic depth)'

TRAIN = Group(
    'GradAug parameters',
    Option('--gradaug', int, 0, 'sub-networks trained beside the full network at each update; 0: off', low=0),
    Option('--gradaug-min-width', float, 0.9, 'smallest fraction of channels kept', above=0, high=1, needs=_WIDTH),
    Option('--gradaug-width-divisor', int, 8, 'channels are kept in multiples of this', low=1, needs=_WIDTH),
    Option('--gradaug-widths', str, 'sandwich', _WIDTHS, choices=('sandwich', 'uniform', 'smallest'), needs=_WIDTH),
    Option('--gradaug-transforms', str, ['scale'], 'of the input, in this order', nargs='*', choices=_TRANSFORMS),
    Option('--gradaug-sizes', size, None, _SIZES, nargs='+', above=0),
    Option('--gradaug-targets', str, 'soft', "the full network's output, or the labels", choices=('soft', 'hard')),
    Option('--gradaug-subnet', str, 'width', _SUBNET, choices=('width', 'depth')),
    Option('--gradaug-depth-rate', float, 0.2, 'drop rate of the last block', low=0, below=1, needs=_DEPTH),
    Option('--gradaug-depth-mode', str, 'sample', _MODE, choices=('sample', 'batch'), needs=_DEPTH),
    Option('--gradaug-weight', float, 1.0, "weight of each sub-network's loss", above=0),
    Option('--gradaug-batch-share', float, 1.0, 'share of the batch that each sub-network sees', above=0, high=1),
    flag('--gradaug-average', 'divide the sum of all loss terms by their number, as MaskSub does'),
    Option('--gradaug-mask-ratio', float, 0.5, _MASK_RATIO, above=0, below=1, needs=_MASK),
    Option('--gradaug-mask-patch', int, 32, _MASK_PATCH, low=1, needs=_MASK),
    Option('--gradaug-every', int, 1, 'train sub-networks at every n-th update only', low=1),
    Option('--gradaug-start-epoch', int, 0, 'first epoch that trains sub-networks', low=0),
    Option('--gradaug-compile', int, 0, 'draw from this many fixed widths, and compile them (approximate)', low=0),
    switch='--gradaug',
)


def check(args: Namespace):
    """Refuse what sub-networks cannot work with."""
    once = len(set(args.gradaug_transforms)) == len(args.gradaug_transforms)
    require(args, '--gradaug-transforms', once, 'each transform may be given once')
    if not args.gradaug:
        return
    refuse_with(args, '--gradaug', ['--kd-model-name'], 'sub-networks learn from the full network alone')
    first_order = not get_optimizer_info(args.opt.split('_')[-1]).second_order
    require(args, '--gradaug', first_order, f'does not go with the second-order optimiser of {shown(args, "--opt")}')
    square = args.input_size is None or args.input_size[1] == args.input_size[2]
    why = f'rotate needs a square input, not {shown(args, "--input-size")}'
    require(args, '--gradaug-transforms', square or 'rotate' not in args.gradaug_transforms, why)
    used = {'scale', 'crop'} & set(args.gradaug_transforms)
    why = 'scale and crop have one size, so that the second of them would change nothing'
    require(args, '--gradaug-transforms', len(used) < 2, why)
    require(args, '--gradaug-sizes', args.gradaug_sizes is None or used, 'only scale and crop change the size')
    check_pixels(args, '--gradaug-sizes', args.gradaug_sizes or ())
    epochs = main_epochs(args) + (0 if args.refine_plain else args.refine_epochs)
    reached = args.gradaug_start_epoch < max(epochs, 1)
    require(args, '--gradaug-start-epoch', reached, f'is never reached in {epochs} epochs')
    for name in ('--drop-path', '--drop-connect') if args.gradaug_subnet == 'depth' else ():
        if value_of(args, name):
            instead = 'blocks are dropped in the sub-networks alone, see --gradaug-depth-rate'
            warn(f'{shown(args, name)} has no effect with {shown(args, "--gradaug-subnet")}: {instead}.')
    by_width = not args.gradaug_compile or args.gradaug_subnet == 'width'
    require(args, '--gradaug-compile', by_width, f'fixes widths, which {shown(args, "--gradaug-subnet")} has not')
