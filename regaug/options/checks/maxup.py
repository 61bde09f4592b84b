"""MaxUp and UADA: what candidates of a sample cannot be made of."""

from argparse import Namespace

from regaug.options.checks.data import refuse_iterable
from regaug.options.checks.require import refuse_with, require, require_known, spell

AUGMENTATIONS = ('cutmix', 'mixup', 'cutout', 'gauss', 'views')
GROUPS = ('crop', 'flip', 'policy', 'cutout')
LEVELS = 10


def check_maxup(args: Namespace):
    if not args.maxup:
        return
    names = args.maxup_aug.split('+')
    for name in names:
        require_known(args, '--maxup-aug', name in AUGMENTATIONS, 'augmentation', name, AUGMENTATIONS)
    require(args, '--maxup-aug', len(set(names)) == len(names), 'each augmentation may be given once')
    check_strengths(args, names)
    if 'views' in names:
        check_views(args)
    refuse_with(args, '--maxup', ['--uada'], 'each chooses the input by itself')
    refuse_with(args, '--maxup', ['--manifold-mixup'], 'copies would be scored without the mixed features')
    check_warmup(args, names)


def check_warmup(args: Namespace, names: list[str]):
    """More than one copy is drawn in some epoch."""
    ends = [('--epochs', args.epochs)]
    if args.mixup_off_epoch and set(names) <= {'cutmix', 'mixup'}:
        ends.append(('--mixup-off-epoch', args.mixup_off_epoch))
    for flag, end in ends:
        in_time = args.maxup == 1 or args.maxup_warmup_epochs < end or not args.epochs
        why = f'{spell(args, "--maxup")} would never begin before {spell(args, flag)}'
        require(args, '--maxup-warmup-epochs', in_time, why)


def check_strengths(args: Namespace, names: list[str]):
    """Mixing options against the augmentations of MaxUp, which mixes in the place of the loader."""
    cutmix = ['--cutmix', '--cutmix-minmax']
    alpha = args.cutmix > 0 or args.cutmix_minmax is not None
    require(args, '--maxup-aug', 'cutmix' not in names or alpha, 'cutmix needs --cutmix above 0, its alpha')
    require(args, '--maxup-aug', 'mixup' not in names or args.mixup > 0, 'mixup needs --mixup above 0, its alpha')
    for name, flags in (('cutmix', cutmix), ('mixup', ['--mixup'])):
        if name not in names:
            refuse_with(args, '--maxup-aug', flags, f'the loader does not mix under MaxUp; add {name} to --maxup-aug')
    by_sample = args.mixup_mode in ('batch', 'elem')
    require(args, '--mixup-mode', by_sample, f'under {spell(args, "--maxup")} every sample has a mixture of its own')


def check_views(args: Namespace):
    others = ['--train-img-sizes', '--no-prefetcher', '--no-aug']
    refuse_with(args, '--maxup-aug', others, 'views are versions of one size that the collate function joins')
    refuse_iterable(args, '--maxup-aug', 'views are made by index, which a stream has not')


def check_uada(args: Namespace):
    if not args.uada:
        return
    groups = args.uada_groups
    require(args, '--uada-groups', groups, 'needs at least one group')
    for group in groups:
        require_known(args, '--uada-groups', group in GROUPS, 'group', group, GROUPS)
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
    if args.uada_reuse:
        why = 'the ranks would differ in the number of scoring passes'
        refuse_with(args, '--uada-reuse', ['--sync-bn'], why)
        refuse_with(args, '--uada-reuse', ['--split-bn'], 'its batches differ in size')
