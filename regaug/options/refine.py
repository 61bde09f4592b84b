"""Options of the refinement phase."""

from argparse import Namespace

from regaug.options.parser import Group, Option, flag, require, shown, warn
from regaug.options.timm_checks import main_epochs

_LR = 'learning rate of the refinement (default: the last of a step schedule, 1/1000 of the peak otherwise)'

TRAIN = Group(
    'Refinement parameters',
    Option('--refine-epochs', int, 0, 'epochs without intensive augmentation after the schedule; 0: off', low=0),
    Option('--refine-lr', float, None, _LR, low=0),
    Option('--refine-fade', int, 0, 'epochs before the refinement over which the augmentation fades out', low=0),
    flag('--refine-plain', 'no sub-networks (GradAug) in the refinement either'),
    switch='--refine-epochs',
)


def check(args: Namespace):
    """Refuse a run without epochs, and a fade that is longer than the schedule."""
    why = 'nothing to train; to refine a finished model give --refine-epochs as well'
    require(args, '--epochs', args.epochs or args.refine_epochs, why)
    if not args.refine_epochs:  # so that --refine-epochs 0 switches off what a recipe asks for
        return
    require(args, '--refine-lr', args.refine_lr != 0, 'must be positive')
    in_time = args.refine_fade <= main_epochs(args)
    require(args, '--refine-fade', in_time, f'must not be longer than the main phase ({shown(args, "--epochs")})')
    if args.refine_lr and args.lr and args.refine_lr > args.lr:
        warn(f'{shown(args, "--refine-lr")} is above the peak learning rate, {shown(args, "--lr")}.')
