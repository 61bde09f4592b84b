"""`--task multilabel`: defaults that follow it, and what counts on one label an image."""

import pytest

from regaug.options import args_as_yaml, parse_train, parse_validate, timm_data_checks, train_parser
from tests.helpers.options import BASE, assert_refused

LABELS = '--dataset hfds/flowers --task multilabel'


@pytest.fixture(autouse=True)
def packages(monkeypatch):
    """The readers that know several labels are there, whatever is installed."""
    monkeypatch.setattr(timm_data_checks, 'require_package', lambda *args: None)


def parse(line, script=parse_train):
    return script([*BASE, *line.split()])


@pytest.mark.parametrize(
    ('line', 'smoothing', 'metric'),
    [
        ('', 0.1, 'top1'),
        ('--task classification --smoothing 0.2 --eval-metric loss', 0.2, 'loss'),
        (LABELS, 0.0, 'map'),
        (f'{LABELS} --smoothing 0.1', 0.1, 'map'),
        (f'{LABELS} --eval-metric micro_f1', 0.0, 'micro_f1'),
        (f'{LABELS} --eval-metric loss --smoothing 0', 0.0, 'loss'),
    ],
)
def test_smoothing_and_metric_follow_the_task_unless_given(line, smoothing, metric):
    args = parse(line)
    assert (args.smoothing, args.eval_metric) == (smoothing, metric)


def test_a_file_counts_as_given_and_the_resolved_defaults_read_back(write_config):
    args = parse_train([*BASE, *LABELS.split(), '-c', write_config('smoothing: 0.1\n')])
    assert (args.smoothing, args.eval_metric) == (0.1, 'map')
    args = parse(LABELS)
    assert parse_train(['-c', write_config(args_as_yaml(args))]) == args
    assert 'smoothing: 0.0\n' in args_as_yaml(args) and 'eval_metric: map\n' in args_as_yaml(args)


def test_help_tells_both_defaults():
    text = ' '.join(train_parser().format_help().split())
    assert 'label smoothing; unless given, 0 with --task multilabel (default: 0.1)' in text
    assert 'multilabel: map (unless given), micro_f1, macro_f1, sample_f1, loss (default: top1)' in text


@pytest.mark.parametrize(
    'line',
    [
        '--target-format multihot --target-key labels',
        '--target-format indices --num-classes 20',
        '--target-key cat,dog,bird/kind --num-classes 3',
        '--dataset wds/flowers --data-dir s3://x --target-key labels',
        '--dataset TFDS/flowers --target-key a,b --num-classes 2',
        '--multilabel-threshold 0.3 --bce-sum --bce-pos-weight 2 --bce-target-thresh 0.2 --bce-loss',
        '--mixup 0.2 --cutmix 1',
        '--gradaug 3 --gradaug-targets hard',
        '--gradaug 2 --gradaug-subnet depth --refine-epochs 2',
        '--maxup 4 --maxup-score excess',
        '--maxup 4 --maxup-aug views',
        '--uada',
        '--manifold-mixup 1',
        '--aug-splits 2',
        '--naflex-loader',
    ],
)
def test_what_works_with_several_labels_is_accepted(line, caplog):
    args = parse(f'{LABELS} {line}')
    assert args.task == 'multilabel'
    assert caplog.messages == []


@pytest.mark.parametrize(
    ('line', 'parts'),
    [
        # what the task needs
        ('--task multilabel', ['--task multilabel', '--dataset regaug/digits', 'one label', 'hfds/']),
        ('--task multilabel --dataset= --data-dir images', ['--task multilabel', "--dataset ''"]),
        ('--task multilabel --dataset torch/cifar10 --data-dir images', ['--task multilabel', 'torch/cifar10']),
        ('--task multilabel --dataset wds/x --data-dir x', ['--target-key', '--dataset wds/x']),
        (f'{LABELS} --target-key a,b', ['--num-classes', 'must be 2', '--target-key a,b']),
        (f'{LABELS} --target-key a,b --num-classes 3', ['--num-classes 3', 'must be 2', '--target-key a,b']),
        (f'{LABELS} --target-key a,,b', ['--target-key a,,b', 'unique, non-empty']),
        (f'{LABELS} --target-key a,a', ['--target-key a,a', 'unique']),
        (f'{LABELS} --target-key a,b --target-format multihot', ['--target-key a,b', '--target-format multihot']),
        (f'{LABELS} --multilabel-threshold 0', ['--multilabel-threshold 0.0', 'above 0 and below 1']),
        (f'{LABELS} --multilabel-threshold 1', ['--multilabel-threshold 1.0', 'above 0 and below 1']),
        (f'{LABELS} --eval-metric top1', ['--eval-metric top1', 'map, micro_f1, macro_f1, sample_f1']),
        ('--task multi', ['--task', "'multi'", 'multilabel']),
        (f'{LABELS} --target-format dense', ['--target-format', "'dense'", 'multihot']),
        # what the task is needed for
        ('--dataset hfds/flowers --target-key a,b', ['--target-key a,b', '--task multilabel']),
        ('--dataset hfds/flowers --target-format multihot', ['--target-format multihot', '--task multilabel']),
        ('--eval-metric map', ['--eval-metric map', 'loss, top1, top5']),
        # what counts on one label an image
        (f'{LABELS} --aug-splits 2 --jsd-loss', ['--task multilabel', '--jsd-loss', 'one label']),
        (f'{LABELS} --kd-model-name resnet18', ['--task multilabel', '--kd-model-name resnet18']),
        (f'{LABELS} --labels-per-class 5', ['--labels-per-class 5', '--task multilabel']),
    ],
)
def test_what_cannot_work_is_refused_by_option_and_value(workplace, line, parts):
    assert_refused(line, parts)


@pytest.mark.parametrize(
    ('line', 'parts'),
    [
        ('--task multilabel', ['--task multilabel', '--dataset regaug/digits']),
        (f'{LABELS} --metrics-avg macro', ['--task multilabel', '--metrics-avg macro']),
        (f'{LABELS} --real-labels notes.txt', ['--task multilabel', '--real-labels notes.txt']),
        (f'{LABELS} --valid-labels notes.txt', ['--task multilabel', '--valid-labels notes.txt']),
        ('--dataset hfds/flowers --target-format multihot', ['--target-format multihot', '--task multilabel']),
    ],
)
def test_validation_refuses_what_cannot_work(workplace, line, parts):
    assert_refused(line, parts, parse_validate)


def test_validation_takes_the_task_and_its_options():
    args = parse(
        f'{LABELS} --target-key a,b --num-classes 2 --width 1.0 0.9 --multilabel-threshold 0.4', parse_validate
    )
    assert (args.task, args.target_key, args.target_format, args.multilabel_threshold) == (
        'multilabel',
        'a,b',
        None,
        0.4,
    )
    assert parse('', parse_validate).task == 'classification'


def test_options_of_the_task_have_no_effect_without_it(caplog):
    parse('--multilabel-threshold 0.4 --bce-sum')
    assert caplog.messages == [
        '--bce-sum has no effect without --bce-loss or --task multilabel.',
        '--multilabel-threshold 0.4 has no effect without --task multilabel.',
    ]


def test_binary_cross_entropy_of_plain_labels_is_told_once_to_have_no_effect(caplog):
    parse('--bce-loss --smoothing 0 --epochs 3')
    assert [message for message in caplog.messages if '--bce-loss' in message] == [
        '--bce-loss has no effect without --smoothing or --mixup or --cutmix or --cutmix-minmax or --manifold-mixup '
        'or --task multilabel.'
    ]
    caplog.clear()
    for line in ('--bce-loss', '--bce-loss --smoothing 0 --mixup 0.5', '--bce-loss --smoothing 0 --manifold-mixup 1'):
        parse(line)
    assert caplog.messages == []
