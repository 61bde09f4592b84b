"""Options of how candidates are scored, for the methods that choose among them."""

from argparse import Namespace

from regaug.options.parser import Group, Option, is_set, shown, size, value_of, warn
from regaug.options.timm_checks import check_pixels

_NEEDS = '--maxup --uada'
_SIZE = 'resize candidates to this for scoring alone: pixels, or a share up to 1 of the training size (approximate)'
_DTYPE = 'number format of an autocast around scoring alone, in the place of that of training (approximate)'

TRAIN = Group(
    'Scoring parameters',
    Option('--score-size', size, None, _SIZE, above=0, needs=_NEEDS),
    Option('--score-dtype', str, None, _DTYPE, choices=('bfloat16', 'float16'), needs=_NEEDS),
)


def check(args: Namespace):
    """Refuse sizes that are no whole numbers of pixels or above those of the training images."""
    alone = ['--maxup'] * (args.maxup == 1) + ['--uada-epsilon'] * (args.uada and not args.uada_epsilon)
    for flag in ('--score-size', '--score-dtype'):
        if alone and is_set(value_of(args, flag)):
            warn(f'{shown(args, flag)} has no effect with {shown(args, alone[0])}: there is nothing to choose.')
    if args.score_size is not None and (args.maxup or args.uada):
        check_pixels(args, '--score-size', [args.score_size])
