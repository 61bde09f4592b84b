"""Options of UADA, and what moved parameters cannot be combined with."""

from argparse import Namespace

from regaug.options.parser import Group, Option, flag, refuse_with, require, require_known

GROUPS = ('crop', 'flip', 'policy', 'cutout')
LEVELS = 10
_GROUPS = 'what adapts: crop (needs --pad-crop) and flip in place of the loader, policy (two operators), cutout'
_RANGES = "ranges of the operators: the paper's, or those of timm's increasing RandAugment"
_STEP = 'where parameters move: up the loss, at random, or down the loss (then towards the smallest)'

TRAIN = Group(
    'UADA parameters',
    flag('--uada', 'adapt the augmentation of each sample to the loss, by the sign of its finite differences'),
    Option('--uada-groups', str, ['policy'], _GROUPS, nargs='+'),
    Option('--uada-ranges', str, 'paper', _RANGES, choices=('paper', 'timm'), needs='--uada-groups=policy'),
    Option('--uada-delta', int, 1, 'size of the probes, in levels and pixels', low=1),
    Option('--uada-epsilon', int, 1, 'size of the step, in levels and pixels; 0: the operators as drawn', low=0),
    Option('--uada-step', str, 'ascend', _STEP, choices=('ascend', 'random', 'descend')),
    switch='--uada',
)


def check(args: Namespace):
    """Refuse groups that do not exist or lack their room, and augmentation that UADA draws itself."""
    if not args.uada:
        return
    groups = args.uada_groups
    for group in groups:
        require_known(args, '--uada-groups', group, GROUPS, 'group')
    require(args, '--uada-groups', len(set(groups)) == len(groups), 'each group may be given once')
    given = args.pad_crop or 'crop' not in groups
    require(args, '--uada-groups', given, 'crop needs --pad-crop, the padding it crops from')
    for group, room in (('policy', LEVELS - 1), ('crop', 2 * args.pad_crop)):
        fits = group not in groups or args.uada_delta <= room
        require(args, '--uada-delta', fits, f'must be at most {room}, the range of the group {group}')
    mixing = ['--mixup', '--cutmix', '--cutmix-minmax', '--manifold-mixup']
    refuse_with(args, '--uada', mixing, 'it moves the parameters of single images')
    refuse_with(args, '--uada', ['--aa', '--reprob'], 'it draws the operators itself')
    if args.model_dtype not in (None, 'float32'):
        refuse_with(args, '--uada', ['--no-prefetcher'], 'operators need float32 images before they are cast')
