"""Which epoch is in which phase, and what augmentation and learning rate each phase has.

Source of the refinement phase: He et al., "Data Augmentation Revisited: Rethinking the Distribution Gap between Clean
and Augmented Data" (arXiv 1909.09148), sections 3 and 4.
"""

import copy
from argparse import Namespace
from dataclasses import dataclass

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs

# Intensive augmentation, and the value with which timm leaves it out.
_INTENSIVE = {
    'mixup': 0.0,
    'cutmix': 0.0,
    'cutmix_minmax': None,
    'manifold_mixup': 0.0,
    'maxup': 0,
    'uada': False,
    'aa': None,
    'reprob': 0.0,
    'color_jitter': None,  # 0 would still be a transform, and timm's default comes back with the policy gone
    'color_jitter_prob': None,
    'grayscale_prob': None,
    'gaussian_blur_prob': None,
}
_REFINE_LR_SHARE = 1e-3  # of the peak, as 0.1 -> 1e-4 on ImageNet (section 4.1)


@dataclass(frozen=True)
class Phase:
    """What holds in an epoch.

    Attributes:
        name: `warmup` (of MaxUp), `main`, `unmixed` (after `--mixup-off-epoch`), `fade` or `refine`.
        options: the training options as they hold now; the train loader is rebuilt when they change. Added to them
            are `mixup_enabled`, `intensity` (of what fades and has no strength of its own: policies, Cutout, noise;
            1 to 0) and `num_views` (versions of each image that the loader delivers).
        gradaug: GradAug's sub-networks run.
        switched_off: flags of what is off now although the user set it.
    """

    name: str
    options: Namespace
    gradaug: bool = True
    switched_off: tuple[str, ...] = ()

    @property
    def refining(self):
        return self.name == 'refine'


def main_epochs(args):
    """Epochs of the learning rate schedule, with its cycles, cooldown and warm-up prefix; refinement comes after."""
    if args.epochs == 0:
        return 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    _, num_epochs = create_scheduler_v2(optimizer, **{**scheduler_kwargs(args), 'step_on_epochs': True})
    return num_epochs


def phase_at(epoch, args):
    """The phase of an epoch (counted from 0), from the options alone."""
    options = copy.copy(args)
    options.mixup_enabled = True
    options.intensity = 1.0
    options.num_views = 1
    gradaug = epoch >= args.gradaug_start_epoch
    first_refining = main_epochs(args)
    if epoch >= first_refining:
        return refinement(options, gradaug)
    name, off = 'main', ()
    if args.maxup > 1 and epoch < args.maxup_warmup_epochs:
        name, options.maxup = 'warmup', 1  # the average, not the worst, over the same augmentation (MaxUp, section 3.1)
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        name, off = 'unmixed', stop_mixing(options)
    faded = epoch - (first_refining - args.refine_fade) + 1 if args.refine_epochs else 0
    if faded > 0:
        name = 'fade'
        fade(options, 1 - faded / (args.refine_fade + 1))
    if options.maxup and 'views' in options.maxup_aug.split('+'):
        options.num_views = options.maxup
    return Phase(name, options, gradaug, off)


def stop_mixing(options):
    """Switch off what `--mixup-off-epoch` ends: mixing, and MaxUp if its copies differ in that alone.

    Returns:
        The flags of what is off.
    """
    off = set_flags(options, ('mixup', 'cutmix', 'cutmix_minmax'))
    options.mixup_enabled = False
    if options.maxup > 1 and set(options.maxup_aug.split('+')) <= {'mixup', 'cutmix'}:
        options.maxup, off = 1, (*off, '--maxup')
    return off


def refinement(options, gradaug):
    """The refinement phase: only crop and flip are left."""
    off = set_flags(options, _INTENSIVE)
    vars(options).update(_INTENSIVE)
    if options.refine_plain and options.gradaug:
        gradaug, off = False, (*off, '--gradaug')
    return Phase('refine', options, gradaug, off)


def set_flags(options, names):
    """Flags of those options that augment as they are set."""
    return tuple(f'--{name.replace("_", "-")}' for name in names if getattr(options, name))


def fade(options, intensity):
    """Weaken the intensive augmentation: Mixup's alpha, the probabilities of CutMix, policies and erasing.

    Augmentation whose strength is no option of timm's is weakened by `options.intensity`, where it is built.

    Args:
        options: changed in place.
        intensity: 1 for full strength, 0 for none.
    """
    options.intensity = intensity
    options.reprob *= intensity
    options.mixup *= intensity
    if options.maxup:  # its mixtures come one after the other, not in each other's place
        return
    both = options.mixup and (options.cutmix or options.cutmix_minmax)
    cutmix_share = options.mixup_switch_prob if both else 1.0 if options.cutmix or options.cutmix_minmax else 0.0
    cutmix_prob = options.mixup_prob * cutmix_share * intensity
    options.mixup_prob = options.mixup_prob * (1 - cutmix_share) + cutmix_prob
    if both:
        options.mixup_switch_prob = cutmix_prob / options.mixup_prob if options.mixup_prob else 0.0


def refine_lr(args):
    """Learning rate of the refinement: `--refine-lr`, the last value of a step schedule, or 1/1000 of the peak.

    Args:
        args: training options with the peak learning rate resolved.
    """
    if args.refine_lr is not None:
        return args.refine_lr
    if args.sched not in ('step', 'multistep') or not args.epochs:
        return _REFINE_LR_SHARE * args.lr
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.lr)
    scheduler, num_epochs = create_scheduler_v2(optimizer, **{**scheduler_kwargs(args), 'step_on_epochs': True})
    scheduler.step(num_epochs - 1)
    return optimizer.param_groups[0]['lr']


def set_learning_rate(optimizer, lr):
    """Set every group's learning rate, times its layer decay scale."""
    for group in optimizer.param_groups:
        group['lr'] = lr * group.get('lr_scale', 1.0)
