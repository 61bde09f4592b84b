"""Every number is held to its range: the ranges as they are meant, written down once more."""

import pytest

from regaug.options import parse_train, parse_validate
from tests.helpers.options import BASE, refusal

AT_LEAST_ONE = (
    '--batch-size --grad-accum-steps --num-classes --img-size --in-chans --input-size --lr-base-size --log-interval '
    '--val-interval --checkpoint-hist --train-num-samples --val-num-samples --train-img-sizes --train-batch-sizes '
    '--train-batches-per-epoch --naflex-train-seq-lens --naflex-max-seq-len --naflex-patch-sizes '
    '--kd-student-feature-dim --kd-teacher-feature-dim --labels-per-class --gradaug-width-divisor '
    '--gradaug-every --cutout-size --uada-delta'
)
NOT_NEGATIVE = (
    '--validation-batch-size --crop-pct --opt-eps --layer-decay --lr-cycle-mul --lr-cycle-decay --lr-cycle-limit '
    '--decay-milestones --decay-epochs --decay-rate --bce-pos-weight --bn-eps --lr --lr-base --warmup-lr --min-lr '
    '--weight-decay --momentum --lr-noise --lr-noise-std --layer-decay-min-scale --epochs --epoch-repeats '
    '--start-epoch --warmup-epochs --cooldown-epochs --patience-epochs --color-jitter --aug-repeats --aug-splits '
    '--recount --mixup --cutmix --mixup-off-epoch --recovery-interval --workers --tta --distill-loss-weight '
    '--task-loss-weight --train-size-probs --train-size-schedule-spread --naflex-patch-size-probs --pad-crop '
    '--label-split --max-bad-updates --gradaug --gradaug-start-epoch --gradaug-compile --maxup --maxup-warmup-epochs '
    '--gauss-sigma --uada-epsilon --refine-epochs --refine-lr --refine-fade --manifold-mixup'
)
POSITIVE = '--std --clip-grad --ratio --kd-temperature --gradaug-weight --gradaug-sizes --score-size'
FRACTIONS = (
    '--hflip --vflip --color-jitter-prob --grayscale-prob --gaussian-blur-prob --reprob --cutmix-minmax --mixup-prob '
    '--mixup-switch-prob --drop --drop-path --drop-block --bn-momentum --model-ema-decay --train-size-random-mix'
)
VALIDATE_AT_LEAST_ONE = (
    '--batch-size --num-samples --num-classes --img-size --in-chans --input-size --log-freq --num-gpu '
    '--naflex-max-seq-len --calibrate-images'
)


@pytest.mark.parametrize(
    ('parse', 'flags', 'bad', 'reason'),
    [
        (parse_train, AT_LEAST_ONE, '0', 'must be at least 1'),
        (parse_train, NOT_NEGATIVE, '-1', 'must not be negative'),
        (parse_train, POSITIVE, '0', 'must be positive'),
        (parse_train, FRACTIONS, '-1', 'must lie between 0 and 1'),
        (parse_train, FRACTIONS, '2', 'must lie between 0 and 1'),
        (parse_validate, VALIDATE_AT_LEAST_ONE, '0', 'must be at least 1'),
        (parse_validate, '--workers --crop-border-pixels --crop-pct', '-1', 'must not be negative'),
        (parse_validate, '--std', '0', 'must be positive'),
    ],
)
def test_every_number_is_held_to_its_range(parse, flags, bad, reason):
    for flag in flags.split():
        values = [bad] * 3 if flag == '--input-size' else [bad]
        message = refusal([*BASE, flag, *values], parse)
        assert message.startswith(f'{flag} {bad}') and message.endswith(f': {reason}'), message


@pytest.mark.parametrize(
    ('line', 'parts'),
    [
        ('--smoothing 1', '--smoothing 1.0: must be at least 0 and below 1'),
        ('--gradaug-depth-rate 1', '--gradaug-depth-rate 1.0: must be at least 0 and below 1'),
        ('--gradaug-min-width 0', '--gradaug-min-width 0.0: must be above 0 and at most 1'),
        ('--seed 4294967296', '--seed 4294967296: must lie between 0 and 4294967295'),
        ('--scale 0.5 nan', '--scale 0.5 nan: must be a finite number'),
    ],
)
def test_the_message_tells_value_and_range(line, parts):
    assert refusal([*BASE, *line.split()]) == parts


@pytest.mark.parametrize('value', ['inf', '-inf', 'nan'])
def test_numbers_are_finite_whatever_their_range(value):
    for flag in (
        '--lr',
        '--weight-decay',
        '--clip-grad',
        '--gradaug-weight',
        '--head-init-bias',
        '--refine-lr',
        '--mean',
    ):
        assert refusal([*BASE, f'{flag}={value}']) == f'{flag} {value}: must be a finite number'


@pytest.mark.parametrize('line', ['--smoothing 0', '--drop 1', '--seed 4294967295', '--mixup-prob 0', '--workers 0'])
def test_the_bounds_themselves_are_accepted(line):
    flag, value = line.split()
    assert getattr(parse_train([*BASE, flag, value]), flag[2:].replace('-', '_')) == float(value)
