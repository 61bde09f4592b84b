"""Numbers that must lie in a range whatever the other options say."""

from argparse import Namespace
from collections.abc import Iterable

from regaug.options.checks.require import require, value_of

TRAIN_AT_LEAST_ONE = (
    '--updates-per-epoch',
    '--batch-size',
    '--grad-accum-steps',
    '--num-classes',
    '--img-size',
    '--in-chans',
    '--input-size',
    '--lr-base-size',
    '--log-interval',
    '--val-interval',
    '--checkpoint-hist',
    '--train-num-samples',
    '--val-num-samples',
    '--train-img-sizes',
    '--train-batch-sizes',
    '--train-batches-per-epoch',
    '--naflex-train-seq-lens',
    '--naflex-max-seq-len',
    '--naflex-patch-sizes',
    '--kd-student-feature-dim',
    '--kd-teacher-feature-dim',
    '--labels-per-class',
    '--gradaug-width-divisor',
    '--gradaug-sizes',
    '--gradaug-every',
    '--cutout-size',
    '--uada-delta',
)
TRAIN_NOT_NEGATIVE = (
    '--validation-batch-size',
    '--crop-pct',
    '--opt-eps',
    '--layer-decay',
    '--lr-cycle-mul',
    '--lr-cycle-decay',
    '--lr-cycle-limit',
    '--decay-milestones',
    '--decay-epochs',
    '--decay-rate',
    '--bce-pos-weight',
    '--bn-eps',
    '--lr',
    '--lr-base',
    '--warmup-lr',
    '--min-lr',
    '--weight-decay',
    '--momentum',
    '--lr-noise',
    '--lr-noise-std',
    '--layer-decay-min-scale',
    '--epochs',
    '--epoch-repeats',
    '--start-epoch',
    '--warmup-epochs',
    '--cooldown-epochs',
    '--patience-epochs',
    '--color-jitter',
    '--aug-repeats',
    '--aug-splits',
    '--recount',
    '--mixup',
    '--cutmix',
    '--mixup-off-epoch',
    '--recovery-interval',
    '--workers',
    '--tta',
    '--distill-loss-weight',
    '--task-loss-weight',
    '--train-size-probs',
    '--train-size-schedule-spread',
    '--naflex-patch-size-probs',
    '--pad-crop',
    '--label-split',
    '--max-bad-updates',
    '--gradaug',
    '--gradaug-start-epoch',
    '--gradaug-compile',
    '--maxup',
    '--maxup-warmup-epochs',
    '--gauss-sigma',
    '--uada-epsilon',
    '--refine-epochs',
    '--refine-lr',
    '--refine-fade',
    '--manifold-mixup',
)
TRAIN_POSITIVE = ('--std', '--clip-grad', '--ratio', '--kd-temperature', '--gradaug-weight')
TRAIN_FRACTIONS = (
    '--hflip',
    '--vflip',
    '--color-jitter-prob',
    '--grayscale-prob',
    '--gaussian-blur-prob',
    '--reprob',
    '--cutmix-minmax',
    '--mixup-prob',
    '--mixup-switch-prob',
    '--drop',
    '--drop-path',
    '--drop-block',
    '--bn-momentum',
    '--model-ema-decay',
    '--train-size-random-mix',
)
VALIDATE_AT_LEAST_ONE = (
    '--batch-size',
    '--num-samples',
    '--num-classes',
    '--img-size',
    '--in-chans',
    '--input-size',
    '--log-freq',
    '--num-gpu',
    '--naflex-max-seq-len',
    '--calibrate-images',
)
VALIDATE_NOT_NEGATIVE = ('--workers', '--crop-border-pixels', '--crop-pct')
VALIDATE_POSITIVE = ('--std',)

# NumPy's generators take no larger seed.
SEEDS = 2**32


def check_train_ranges(args: Namespace):
    require_at_least_one(args, TRAIN_AT_LEAST_ONE)
    require_not_negative(args, TRAIN_NOT_NEGATIVE)
    require_positive(args, TRAIN_POSITIVE)
    for flag in TRAIN_FRACTIONS:
        require(args, flag, all(0 <= value <= 1 for value in numbers(args, flag)), 'must lie between 0 and 1')
    require(args, '--smoothing', 0 <= args.smoothing < 1, 'must be at least 0 and below 1')
    check_seed(args)


def check_validate_ranges(args: Namespace):
    require_at_least_one(args, VALIDATE_AT_LEAST_ONE)
    require_not_negative(args, VALIDATE_NOT_NEGATIVE)
    require_positive(args, VALIDATE_POSITIVE)
    check_seed(args)


def require_at_least_one(args: Namespace, flags: Iterable[str]):
    for flag in flags:
        require(args, flag, all(value >= 1 for value in numbers(args, flag)), 'must be at least 1')


def require_not_negative(args: Namespace, flags: Iterable[str]):
    for flag in flags:
        require(args, flag, all(value >= 0 for value in numbers(args, flag)), 'must not be negative')


def require_positive(args: Namespace, flags: Iterable[str]):
    for flag in flags:
        require(args, flag, all(value > 0 for value in numbers(args, flag)), 'must be positive')


def check_seed(args: Namespace):
    require(args, '--seed', 0 <= args.seed < SEEDS, f'must lie between 0 and {SEEDS - 1}')


def numbers(args: Namespace, flag: str) -> list[float]:
    """The values of an option that takes one number, several or none."""
    value = value_of(args, flag)
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
