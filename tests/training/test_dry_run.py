"""`--dry-run` tries everything, says what a run would be, and leaves no trace."""

import dataclasses
import gc
import logging
import re
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from timm.utils import AverageMeter
from torch.optim.optimizer import register_optimizer_step_post_hook

import regaug.training.engine
from regaug.errors import OptionError
from regaug.training.dry_run import TimedUpdates
from regaug.training.report import Report
from regaug.training.task import RegAugTask
from tests.helpers.data import child_processes


@pytest.fixture
def dry_run(train, caplog, tmp_path, monkeypatch):
    """Runs `train.py --dry-run` and returns its log as lines; nothing may be written."""
    monkeypatch.chdir(tmp_path)

    def dry_run(*options):
        caplog.clear()
        caplog.set_level(logging.INFO)
        before = sorted(tmp_path.rglob('*'))
        train('--dry-run', '--log-interval', 1000, *options)
        assert sorted(tmp_path.rglob('*')) == before
        return [line for record in caplog.records for line in record.getMessage().splitlines()]

    return dry_run


@pytest.fixture
def steady_clock(monkeypatch):
    """Lets every look at the clock take a quarter of a second, so that estimates can be recalculated."""
    now = iter(range(10**6))
    monkeypatch.setattr(regaug.training.engine, 'time', SimpleNamespace(perf_counter=lambda: next(now) / 4))


def told(lines, pattern):
    """The one match of a pattern among the lines of a dry run."""
    matches = [match for line in lines if line.startswith('Dry run: ') and (match := re.search(pattern, line))]
    assert len(matches) == 1, lines
    return matches[0]


def test_an_evaluation_takes_as_many_batches_as_it_has_like_one_after_the_first(dry_run, monkeypatch):
    on_eval_batch, seconds = Report.on_eval_batch, iter((500.0, 2.0))  # with the start of workers and compilation

    def timed(self, batch_idx, last_idx, batch_time, metrics, **kwargs):
        batch_time = AverageMeter()
        batch_time.update(next(seconds))
        on_eval_batch(self, batch_idx, last_idx, batch_time, metrics, **kwargs)

    monkeypatch.setattr(Report, 'on_eval_batch', timed)
    lines = dry_run('--validation-batch-size', 4, '--log-interval', 1)
    assert told(lines, r's per update, (\d+\.\d) s per evaluation')[1] == '8.0'


def test_model_data_and_schedule_are_told(dry_run):
    options = '--epochs 7 --opt adamw --lr 0.003 --sched tanh --grad-accum-steps 2 --warmup-epochs 1'
    lines = dry_run(*options.split())
    assert any(re.search(r'test_resnet: 373,076 parameters, 4 classes', line) for line in lines)
    told(lines, r'64 training images, 16 for evaluation')
    told(lines, r'input \(3, 32, 32\), batch 16 x 1 ranks x 2 accumulated, 2 updates per epoch')
    told(lines, r'epochs 0 to 6, adamw lr 0\.003, tanh schedule')
    told(lines, r'phase main: epochs 0 to 6$')
    assert float(told(lines, r'loss of update 2 in epoch 0: (\d\S*\d), at lr \d\S*$')[1]) == pytest.approx(1.4, abs=0.5)
    told(lines, r'\d\.\d+ s per update, \d+\.\d s per evaluation')
    told(lines, r'(?i)\bmem(ory)?:? \d+(\.\d+)? [GM]iB')
    told(lines, r'estimated time \d+:\d\d:\d\d')


def test_a_run_without_evaluation_is_told_so(dry_run):
    told(dry_run('--val-split', ''), r'64 training images, 0 for evaluation')


def test_every_phase_is_told_with_its_epochs_and_what_is_off(dry_run):
    lines = dry_run('--epochs', 6, '--mixup', 0.5, '--mixup-off-epoch', 4, '--refine-epochs', 2)
    assert [line.removeprefix('Dry run: ') for line in lines if line.startswith('Dry run: phase')] == [
        'phase main: epochs 0 to 3',
        'phase unmixed: epochs 4 to 5, without --mixup',
        'phase refine: epochs 6 to 7, without --mixup, --color-jitter',
    ]


@pytest.mark.parametrize(('steps', 'batches'), [(1, 2), (2, 4)])
def test_two_updates_and_two_evaluation_batches_are_run(dry_run, monkeypatch, steps, batches):
    updates, trained, evaluated = [], [], []
    choose_input, call = RegAugTask.choose_input, torch.nn.Module.__call__

    def count_training(task, input, target):
        trained.append(len(input))
        return choose_input(task, input, target)

    def count_evaluation(module, *args, **kwargs):
        if type(module).__name__ == 'ResNet' and not module.training and args[0].device.type == 'cpu':
            evaluated.append(len(args[0]))
        return call(module, *args, **kwargs)

    monkeypatch.setattr(RegAugTask, 'choose_input', count_training)
    monkeypatch.setattr(torch.nn.Module, '__call__', count_evaluation)
    hook = register_optimizer_step_post_hook(lambda *_: updates.append(1))
    try:
        dry_run('--grad-accum-steps', steps, '--batch-size', 8, '--validation-batch-size', 4)
    finally:
        hook.remove()
    assert (len(updates), trained, evaluated) == (2, [8] * batches, [4, 4])


@pytest.mark.parametrize(
    ('options', 'epochs', 'updates', 'evaluations'),
    [
        ((), 200, 4, 200),
        (('--val-interval', 3), 200, 4, 67),
        (('--grad-accum-steps', 3), 200, 2, 200),
        (('--model-ema',), 200, 4, 400),
        (('--start-epoch', 150), 50, 4, 50),
        (('--refine-epochs', 20), 220, 4, 220),
        (('--val-split', ''), 200, 4, 0),
    ],
)
def test_estimate_is_that_of_all_updates_and_evaluations(dry_run, steady_clock, options, epochs, updates, evaluations):
    lines = dry_run('--epochs', 200, '--validation-batch-size', 4, *options)
    per_update = float(told(lines, r'(\S+) s per update')[1])
    told(lines, r'\d+\.\d s per evaluation')
    hours, minutes, seconds = map(int, told(lines, r'estimated time (\d+):(\d\d):(\d\d)$').groups())
    estimate = timedelta(hours=hours, minutes=minutes, seconds=seconds).total_seconds()
    assert per_update >= 0.25
    per_evaluation = 4 * 0.25  # batches of 4 images
    assert estimate == pytest.approx(epochs * updates * per_update + evaluations * per_evaluation, abs=1)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    'options', [(), ('--gradaug-subnet', 'depth', '--model', 'test_convnext', '--input-size', 3, 64, 64)]
)
def test_gradaug_is_tried_and_its_plan_and_cost_are_told(dry_run, options):
    lines = dry_run('--gradaug', 2, '--gradaug-min-width', 0.5, *options)
    assert any(line.startswith('GradAug: ') for line in lines)
    assert any(re.search(r'GradAug: an update costs about [1-9]\.\d\d times a plain one', line) for line in lines)
    assert any(re.search(r'Train: 0 \[.*  Sub loss: \S+ \S+  Sub agreement: ', line) for line in lines)
    told(lines, r'estimated time')


@pytest.mark.parametrize(('model', 'cost'), [('test_vit', '1.50'), ('test_resnet', '2.00')])
def test_dropped_tokens_cost_nothing_and_masked_patches_what_the_image_costs(dry_run, model, cost):
    masksub = ('--gradaug', 1, '--gradaug-min-width', 1, '--gradaug-transforms', 'mask', '--gradaug-mask-patch', 16)
    kwargs = ('--model-kwargs', 'img_size=32') if model == 'test_vit' else ()
    lines = dry_run('--model', model, *kwargs, *masksub)
    assert any(f'GradAug: an update costs about {cost} times a plain one' in line for line in lines)


def test_updates_that_diverge_are_one_line(dry_run):
    with pytest.raises(OptionError, match=r'^--dry-run, epoch 0: loss \(now nan\) .*--max-bad-updates 1'):
        dry_run('--lr', '1e20', '--max-bad-updates', 1)


def test_nothing_is_written_where_a_run_would_write_most(dry_run, monkeypatch, tmp_path):
    import wandb

    monkeypatch.setattr(wandb, 'init', lambda **kwargs: pytest.fail('a dry run must not start a W&B run'))
    lines = dry_run('--log-wandb', '--recovery-interval', 1, '--model-ema', '--exact-resume')
    told(lines, r'estimated time')
    assert not (tmp_path / 'run').exists()


def test_a_run_that_would_go_on_says_from_where(dry_run, train, tmp_path):
    train('--epochs', 2)
    lines = dry_run('--epochs', 5, '--resume', 'auto')
    told(lines, r'epochs 2 to 4, sgd')
    assert any('Resuming' in line and 'last.pth.tar' in line for line in lines)


def test_worker_processes_end_with_the_dry_run(dry_run):
    before = child_processes()
    told(dry_run('--workers', 2), r'estimated time')
    gc.collect()
    assert child_processes() == before


def test_updates_are_those_of_the_main_phase_not_of_a_cheaper_warm_up(dry_run):
    lines = dry_run('--epochs', 4, '--maxup', 3, '--maxup-warmup-epochs', 1)
    [line] = [line for line in lines if line.startswith('Train: ')][-1:]
    assert 'Maxup passes: 3 ' in line


def test_of_sub_networks_in_every_third_update_a_whole_turn_is_timed(dry_run, monkeypatch):
    on_update, seconds = TimedUpdates.on_update, iter((500.0, 1.0, 1.0, 4.0))  # the first one starts and compiles

    def timed(self, record):
        meter = AverageMeter()
        meter.update(next(seconds))
        on_update(self, dataclasses.replace(record, update_time=meter))

    monkeypatch.setattr(TimedUpdates, 'on_update', timed)
    lines = dry_run('--gradaug', 1, '--gradaug-every', 3)
    assert told(lines, r'(\S+) s per update')[1] == '2.000'


def test_of_a_finished_run_nothing_is_tried(dry_run):
    lines = dry_run('--epochs', 2, '--start-epoch', 5)
    assert any('Nothing is left to train' in line for line in lines)
    assert not any('estimated' in line for line in lines)
