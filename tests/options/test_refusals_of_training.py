"""Augmentation, optimisers and schedules that cannot work are refused by option and value."""

import pytest

from tests.helpers.options import assert_refused

REFUSALS = [
    # augmentation, mixing, splits
    ('--aa rand-q9', ['--aa rand-q9', 'policy']),
    ('--aa randaug', ['--aa randaug', 'rand-m9-mstd0.5-inc1']),
    ('--aa RandAugment', ['--aa RandAugment', 'rand-m9-mstd0.5-inc1']),
    ('--aa agmix-m5', ['--aa agmix-m5', 'augmix-m5-w4-d2']),
    ('--aa v1', ['--aa v1', 'v0']),
    ('--aa strong', ['--aa strong', 'original', 'v0', '3a', 'rand-m9-mstd0.5-inc1', 'augmix-m5-w4-d2']),
    ('--aa rand-m9-mstdx1', ['--aa rand-m9-mstdx1', 'policy']),
    ('--aa autoaugment', ['--aa autoaugment', 'policy']),
    ('--train-crop-mode center', ['--train-crop-mode center', 'rrc']),
    ('--remode noise', ['--remode noise', 'pixel']),
    ('--scale 0.5', ['--scale 0.5', 'two values']),
    ('--ratio 2 0.5', ['--ratio 2.0 0.5', 'two values']),
    ('--cutmix-minmax 0.5', ['--cutmix-minmax 0.5', 'two values']),
    ('--mixup-mode image', ['--mixup-mode image', 'batch, pair, elem']),
    ('--mixup-mode half --no-prefetcher', ['--mixup-mode half', 'batch, pair, elem']),
    ('--mixup 0.2 --batch-size 7', ['--batch-size 7', '--mixup 0.2', 'even']),
    ('--cutmix 1 --batch-size 7 --no-prefetcher', ['--batch-size 7', '--cutmix 1.0', 'even']),
    ('--cutmix-minmax 0.2 0.8 --batch-size 7', ['--batch-size 7', '--cutmix-minmax 0.2 0.8', 'even']),
    (
        '--mixup 0.2 --train-img-sizes 8 16 --train-batch-sizes 8 7',
        ['--train-batch-sizes 8 7', '--mixup 0.2', 'even'],
    ),
    ('--jsd-loss', ['--jsd-loss', '--aug-splits', 'not 0']),
    ('--aug-splits 1', ['--aug-splits 1', '2 and more']),
    ('--aug-splits 2 --mixup 0.2', ['--aug-splits 2', '--mixup 0.2']),
    ('--aug-splits 2 --cutmix-minmax 0.2 0.8', ['--aug-splits 2', '--cutmix-minmax 0.2 0.8']),
    ('--aug-splits 2 --no-aug', ['--aug-splits 2', '--no-aug']),
    ('--aug-splits 2 --no-prefetcher', ['--aug-splits 2', '--no-prefetcher']),
    ('--split-bn', ['--split-bn', '--aug-splits', '--resplit']),
    ('--split-bn --resplit --batch-size 7', ['--batch-size 7', '--split-bn']),
    ('--pad-crop 4 --no-aug', ['--pad-crop 4', '--no-aug']),
    ('--pad-crop 4 --train-crop-mode rrc', ['--pad-crop 4', '--train-crop-mode rrc']),
    ('--pad-crop 4 --train-img-sizes 8', ['--pad-crop 4', '--train-img-sizes 8']),
    ('--pad-crop 4 --naflex-loader', ['--pad-crop 4', '--naflex-loader']),
    ('--pad-crop -4', ['--pad-crop -4']),
    # optimiser and schedule
    ('--opt adamq', ['--opt adamq', 'did you mean', 'adam']),
    ('--opt lookahed_adam', ['--opt lookahed_adam', 'optimiser']),
    ('--opt adamw --opt-betas 0.9', ['--opt-betas 0.9', '--opt adamw', '2 values']),
    ('--opt adamw --opt-betas 0.9 1.5', ['--opt adamw', '--opt-betas 0.9 1.5', 'Invalid beta']),
    ('--opt sgd --opt-kwargs wings=2', ['--opt sgd', '--opt-kwargs wings=2', 'wings']),
    ('--opt sgd --opt-kwargs lr=2', ['--opt sgd', '--opt-kwargs lr=2', 'multiple values']),
    ('--clip-mode global', ['--clip-mode global', 'agc']),
    ('--sched cosin', ['--sched cosin', "Unknown scheduler 'cosin'"]),
    ('--sched plateau --sched-on-updates', ['--sched plateau', '--sched-on-updates']),
    ('--sched step --decay-epochs 0', ['--decay-epochs 0', '--sched step']),
    ('--sched wsd --epochs 10', ['--sched wsd', '--epochs 10', 'decay_epochs']),
    ('--sched multistep --decay-milestones 60 30', ['--decay-milestones 60 30', 'ascending']),
    ('--lr-base-scale log', ['--lr-base-scale log', 'sqrt']),
    ('--lr-noise 0.1 0.5 0.9', ['--lr-noise 0.1 0.5 0.9', 'two values']),
    # the rest
    ('--worker-seeding none', ['--worker-seeding none', 'all, part']),
    ('--dist-bn mean', ['--dist-bn mean', 'reduce, broadcast']),
    ('--eval-metric accuracy', ['--eval-metric accuracy', 'loss, top1, top5']),
    ('--wandb-resume-id abc', ['--wandb-resume-id abc', '--log-wandb']),
    ('--kd-model-name resnet5O', ['--kd-model-name resnet5O', 'resnet50']),
    ('--kd-model-name resnet200', ['--kd-model-name resnet200', 'teacher']),
    ('--kd-model-name resnet18 --kd-loss-type mse', ['--kd-loss-type mse', 'kl']),
    ('--exact-resume --use-multi-epochs-loader', ['--exact-resume', '--use-multi-epochs-loader']),
    ('--exact-resume --sched plateau', ['--exact-resume', '--sched plateau']),
    ('--exact-resume --opt adahessian', ['--exact-resume', '--opt adahessian']),
    ('--exact-resume --opt lookahead_kron', ['--exact-resume', '--opt lookahead_kron']),
    ('--exact-resume --dist-bn=', ['--exact-resume', '--dist-bn']),
]


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_work_is_refused_by_option_and_value(workplace, line, parts):
    assert_refused(line, parts)
