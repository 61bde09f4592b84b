"""Options of MaxUp, the defaults that depend on others, and what copies of a sample cannot be made of."""

from argparse import Namespace

from regaug.options.parser import Group, Option, refuse_with, require, require_known, shown, value_of, warn
from regaug.options.timm_checks import main_epochs
from regaug.options.timm_data_checks import mixing_flags, refuse_stream

AUGMENTATIONS = ('cutmix', 'mixup', 'cutout', 'gauss', 'views')
_AUG = (
    'what makes the copies differ: cutmix, mixup, cutout, gauss, views (the transforms of the loader), or several, as '
    'in cutmix+gauss (default: mixup with --mixup alone, else cutmix, with alpha 1 if there is no --cutmix)'
)
_WARMUP = 'first epochs with one copy, the plain augmentation (default: 5, or 0 for pretrained weights)'
_SIGMA = 'deviation of the Gaussian noise, for pixels from 0 to 1'
_SCORE = 'rank the copies by their loss, or by its excess over the entropy of the mixed label'

TRAIN = Group(
    'MaxUp parameters',
    Option('--maxup', int, 0, 'train on the worst of this many augmented copies of each sample; 0: off', low=0),
    Option('--maxup-aug', str, None, _AUG),
    Option('--maxup-warmup-epochs', int, None, _WARMUP, low=0),
    Option('--maxup-score', str, 'loss', _SCORE, choices=('loss', 'excess')),
    Option('--gauss-sigma', float, 0.1, _SIGMA, low=0, needs='--maxup-aug=gauss'),
    switch='--maxup',
)


def resolve(args: Namespace, chosen: dict):
    """Choose augmentation and warm-up where they are left open."""
    if args.maxup and args.maxup_aug is None:
        cutmix = {'--cutmix', '--cutmix-minmax'} & set(mixing_flags(args))
        args.maxup_aug = 'mixup' if args.mixup and not cutmix else 'cutmix'
        if args.maxup_aug == 'cutmix' and not cutmix:
            args.cutmix = 1.0  # as in the paper, section 4.1
    if args.maxup and 'mixup_switch_prob' in chosen:
        warn(f'{shown(args, "--mixup-switch-prob")} has no effect under --maxup, which mixes as --maxup-aug says.')
    if args.maxup and args.maxup_warmup_epochs is None:
        tuned = args.pretrained or args.initial_checkpoint or args.pretrained_path
        args.maxup_warmup_epochs = 0 if tuned else 5  # section 4


def check(args: Namespace):
    """Refuse augmentations that do not exist or lack their strength, other methods, a warm-up that never ends."""
    if not args.maxup:
        return
    names = args.maxup_aug.split('+')
    for name in names:
        require_known(args, '--maxup-aug', name, AUGMENTATIONS, 'augmentation')
    require(args, '--maxup-aug', len(set(names)) == len(names), 'each augmentation may be given once')
    check_strengths(args, names)
    if 'views' in names:
        others = ['--train-img-sizes', '--no-prefetcher', '--no-aug']
        refuse_with(args, '--maxup-aug', others, 'views are versions of one size that the collate function joins')
        refuse_stream(args, '--maxup-aug', 'views are made by index, which a stream has not')
    refuse_with(args, '--maxup', ['--uada'], 'each chooses the input by itself')
    refuse_with(args, '--maxup', ['--manifold-mixup'], 'copies would be scored without the mixed features')
    ends = ['--epochs', *(['--mixup-off-epoch'] if args.mixup_off_epoch and {*names} <= {'cutmix', 'mixup'} else [])]
    for flag in ends:  # more than one copy is drawn in some epoch
        end = main_epochs(args) if flag == '--epochs' else value_of(args, flag)
        in_time = args.maxup == 1 or args.maxup_warmup_epochs < end or not args.epochs
        why = f'{shown(args, "--maxup")} would never begin before {shown(args, flag)}'
        require(args, '--maxup-warmup-epochs', in_time, why)


def check_strengths(args: Namespace, names: list[str]):
    """Check mixing options against the augmentations of MaxUp, which mixes in the place of the loader."""
    for name, flags in {'cutmix': ['--cutmix', '--cutmix-minmax'], 'mixup': ['--mixup']}.items():
        on = set(flags) & set(mixing_flags(args))
        require(args, '--maxup-aug', on or name not in names, f'{name} needs --{name} above 0, its alpha')
        if name not in names:
            refuse_with(args, '--maxup-aug', flags, f'the loader does not mix under MaxUp; add {name} to --maxup-aug')
    by_sample = args.mixup_mode in ('batch', 'elem')
    require(args, '--mixup-mode', by_sample, f'under {shown(args, "--maxup")} every sample has a mixture of its own')
