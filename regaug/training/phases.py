"""Which epoch is in which phase, and what augmentation and learning rate each phase has.

Source of the refinement phase: He et al., "Data Augmentation Revisited: Rethinking the Distribution Gap between Clean
and Augmented Data" (arXiv 1909.09148), sections 3 and 4.
"""

from argparse import Namespace
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler

from regaug.data.loaders import mixing_active
from regaug.methods import adapt_phase

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
    """What holds in an epoch. Loader, criterion and methods are set up anew when it changes, and only then.

    Attributes:
        name: `warmup` (of MaxUp), `main`, `unmixed` (after `--mixup-off-epoch`), `fade` or `refine`.
        options: the training options as they hold now.
        methods: names of the methods that are on.
        mixing: Mixup and CutMix are applied.
        loader_mixes: the loader applies them, rather than a method.
        intensity: of what fades and has no strength of its own (policies, Cutout, noise), 1 to 0.
        num_views: versions of each image that the loader delivers.
        padding: pixels that `--pad-crop` pads by in the loader.
        normalises: the loader normalises the images; otherwise they come in [0, 1].
        soft_targets: targets are mixed, [B, K].
        run_mixes: the run's options ask for that.
        switched_off: flags of what is off now although the user set it.
    """

    name: str
    options: Namespace
    methods: tuple[str, ...] = ()
    mixing: bool = True
    loader_mixes: bool = True
    intensity: float = 1.0
    num_views: int = 1
    padding: int = 0
    normalises: bool = True
    soft_targets: bool = False
    run_mixes: bool = False
    switched_off: tuple[str, ...] = ()

    @property
    def refining(self) -> bool:
        return self.name == 'refine'

    @property
    def loader_smooths(self) -> bool:
        """Labels come smoothed, as they do from timm's mixing."""
        return self.loader_mixes and mixing_active(self.options)

    def on(self, method: str) -> 'Phase':
        """The phase with a method on."""
        return replace(self, methods=(*self.methods, method))

    def without(self, *flags: str) -> 'Phase':
        """The phase that tells of further options that are off."""
        return replace(self, switched_off=(*self.switched_off, *flags))

    def with_options(self, **values) -> 'Phase':
        """The phase with other values of some options."""
        return replace(self, options=Namespace(**{**vars(self.options), **values}))

    @property
    def for_loader(self) -> 'Phase':
        """The phase as far as the training loader depends on it."""
        return replace(self, name='', methods=(), switched_off=(), soft_targets=False)


def main_epochs(args: Namespace) -> int:
    """Epochs of the learning rate schedule, with its cycles, cooldown and warm-up prefix; refinement comes after."""
    if args.epochs == 0:
        return 0
    _, _, num_epochs = trial_schedule(args, lr=1.0)
    return num_epochs


def trial_schedule(args: Namespace, lr: float) -> tuple[torch.optim.Optimizer, Scheduler, int]:
    """The schedule of the main phase for one parameter and epochs alone: (optimiser, scheduler, epochs)."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    return optimizer, *create_scheduler_v2(optimizer, **{**scheduler_kwargs(args), 'step_on_epochs': True})


def phase_at(epoch: int, args: Namespace) -> Phase:
    """The phase of an epoch (counted from 0), from the options alone."""
    run_mixes = mixing_active(args) or args.manifold_mixup > 0
    phase = Phase('main', args, padding=args.pad_crop, run_mixes=run_mixes)
    first_refining = main_epochs(args)
    if epoch >= first_refining:
        phase = refinement(phase)
    else:
        off = set_flags(args, ('mixup', 'cutmix', 'cutmix_minmax'))
        if off and args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
            phase = replace(phase, name='unmixed', mixing=False, switched_off=off)
        faded = epoch - (first_refining - args.refine_fade) + 1 if args.refine_epochs else 0
        if faded > 0:
            phase = fade(phase, 1 - faded / (args.refine_fade + 1))
    phase = replace(phase, soft_targets=mixing_active(phase.options))
    return adapt_phase(phase, epoch, args)


def refinement(phase: Phase) -> Phase:
    """The refinement phase: only crop and flip are left."""
    off = set_flags(phase.options, _INTENSIVE)
    return replace(phase.with_options(**_INTENSIVE), name='refine', switched_off=off)


def set_flags(options: Namespace, names: Iterable[str]) -> tuple[str, ...]:
    """Flags of those options that augment as they are set."""
    return tuple(f'--{name.replace("_", "-")}' for name in names if getattr(options, name))


def fade(phase: Phase, intensity: float) -> Phase:
    """Weaken all that refinement switches off.

    Alphas of Mixup and Manifold Mixup, probabilities of CutMix, policies, erasing, grey and blur, strength of jitter.

    Augmentation whose strength is no option of timm's is weakened by the phase's intensity, where it is built.

    Args:
        intensity: 1 for full strength, 0 for none.
    """
    options = phase.options
    both = options.mixup * intensity and (options.cutmix or options.cutmix_minmax)
    cutmix_share = options.mixup_switch_prob if both else 1.0 if options.cutmix or options.cutmix_minmax else 0.0
    cutmix_prob = options.mixup_prob * cutmix_share * intensity
    mixup_prob = options.mixup_prob * (1 - cutmix_share) + cutmix_prob
    names = ('mixup', 'manifold_mixup', 'reprob', 'color_jitter', 'grayscale_prob', 'gaussian_blur_prob')
    weaker = {name: value * intensity for name in names if (value := getattr(options, name))}
    weaker['mixup_prob'] = mixup_prob
    if both:
        weaker['mixup_switch_prob'] = cutmix_prob / mixup_prob if mixup_prob else 0.0
    return replace(phase.with_options(**weaker), name='fade', intensity=intensity)


def refine_lr(args: Namespace) -> float:
    """Learning rate of the refinement: `--refine-lr`, the last value of a step schedule, or 1/1000 of the peak.

    Args:
        args: training options with the peak learning rate resolved.
    """
    if args.refine_lr is not None:
        return args.refine_lr
    if args.sched not in ('step', 'multistep') or not args.epochs:
        return _REFINE_LR_SHARE * args.lr
    optimizer, scheduler, num_epochs = trial_schedule(args, args.lr)
    scheduler.step(num_epochs - 1)
    return optimizer.param_groups[0]['lr']


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float):
    """Set every group's learning rate, times its layer decay scale."""
    for group in optimizer.param_groups:
        group['lr'] = lr * group.get('lr_scale', 1.0)
