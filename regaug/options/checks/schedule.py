"""Optimiser, learning rate schedule, length of the training."""

import logging
import warnings
from argparse import Namespace

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers, optimizer_kwargs
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler_factory import scheduler_kwargs

from regaug.errors import OptionError
from regaug.options.checks.require import require, require_known, require_one_of, spell

_logger = logging.getLogger(__name__)

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', 'rsqrt', 'constant', 'plateau', 'none')


def check_optimizer(args: Namespace):
    """The name of the optimiser; then timm builds it for one parameter, and what it says is reported."""
    *prefix, name = args.opt.lower().split('_')
    known = list_optimizers()
    require_known(args, '--opt', prefix in ([], ['lookahead']) and name in known, 'optimiser', args.opt, known)
    require_one_of(args, '--clip-mode', ('norm', 'value', 'agc'))
    info = get_optimizer_info(name)
    fits = args.opt_betas is None or not info.has_betas or len(args.opt_betas) == info.num_betas
    require(args, '--opt-betas', fits, f'{spell(args, "--opt")} takes {info.num_betas} values')
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            create_optimizer_v2([trial_parameter()], **optimizer_kwargs(args) | trial_lr(args), **args.opt_kwargs)
    except Exception as error:  # whatever an optimiser makes of arguments it does not like
        given = [
            spell(args, flag) for flag in ('--opt-betas', '--opt-eps', '--opt-kwargs') if spell(args, flag) != flag
        ]
        raise OptionError(f'{" ".join([spell(args, "--opt"), *given])}: cannot be built ({error})') from None


def trial_parameter() -> torch.nn.Parameter:
    """Something to optimise; made without random numbers, whose stream belongs to the run."""
    return torch.nn.Parameter(torch.zeros(2, 2))


def trial_lr(args: Namespace) -> dict[str, float]:
    """A learning rate for trials, since the real one may depend on the number of processes."""
    return {'lr': args.lr_base if args.lr is None else args.lr}


def check_schedule(args: Namespace):
    """The name of the schedule; then timm builds it, and what it says is reported."""
    require_known(args, '--sched', args.sched in SCHEDULES, 'schedule', args.sched, SCHEDULES)
    require_one_of(args, '--lr-base-scale', ('', 'linear', 'sqrt'))
    noise = args.lr_noise
    require(args, '--lr-noise', noise is None or len(noise) in (1, 2), 'needs one or two values: from, and until')
    in_order = args.decay_milestones == sorted(args.decay_milestones)
    require(args, '--decay-milestones', in_order, 'must be in ascending order')
    by_epoch = args.sched != 'plateau' or not args.sched_on_updates
    require(args, '--sched', by_epoch, 'does not go with --sched-on-updates (it looks at the metric of an epoch)')
    if args.sched == 'step':
        require(args, '--decay-epochs', args.decay_epochs > 0, f'must be positive for {spell(args, "--sched")}')
    if args.epochs:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                optimizer = torch.optim.SGD([trial_parameter()], **trial_lr(args))
                create_scheduler_v2(optimizer, **scheduler_kwargs(args), updates_per_epoch=1)
        except Exception as error:  # whatever a schedule makes of arguments it does not like
            raise OptionError(
                f'{spell(args, "--sched")} {spell(args, "--epochs")}: cannot be built ({error})'
            ) from None


def check_length(args: Namespace):
    require(
        args,
        '--epochs',
        args.epochs or args.refine_epochs,
        'nothing to train; to refine a finished model give --refine-epochs as well',
    )


def check_refinement(args: Namespace):
    if not args.refine_epochs:  # so that --refine-epochs 0 switches off what a recipe asks for
        return
    require(args, '--refine-lr', args.refine_lr != 0, 'must be positive')
    in_time = args.refine_fade <= args.epochs
    require(args, '--refine-fade', in_time, f'must not be longer than the main phase ({spell(args, "--epochs")})')
    if args.refine_lr and args.lr and args.refine_lr > args.lr:
        _logger.warning(f'{spell(args, "--refine-lr")} is above the peak learning rate, {spell(args, "--lr")}.')
