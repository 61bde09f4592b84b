"""Stopping and going on: from every epoch, after signals, after broken files, from timm's checkpoints and in timm."""

import errno
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver
from torch import nn

from regaug.device import LossScaler, Precision
from regaug.errors import OptionError
from regaug.seeds import reseed_epoch
from regaug.training.resume import find_newest
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    assert_same_training,
    follow_log,
    read_checkpoint,
    read_summary,
)

EXACT = [
    *('--exact-resume', '--epochs', 3, '--workers', 1, '--model', 'test_efficientnet', '--drop', 0.2),
    *('--model-ema', '--model-ema-decay', 0.9, '--model-ema-warmup', '--grad-accum-steps', 3, '--mixup', 0.5),
    *('--opt', 'adamw', '--lr', 1e-3, '--warmup-epochs', 1, '--sched-on-updates'),
]


def copy_of(path, name):
    """A copy under another name in the same folder: files of a run share their content by hard links."""
    return Path(shutil.copy(path, path.with_name(name)))


def truncate(path):
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


# Exact resume


def test_exactly_resumed_runs_equal_the_uninterrupted_one_bit_for_bit(train):
    """With all that timm keeps beside the weights; what every method keeps is in `test_methods`."""
    whole = train(*EXACT, experiment='whole')
    start = create_model('test_efficientnet', num_classes=CLASSES).state_dict()
    assert not torch.equal(
        read_checkpoint(whole / 'last.pth.tar')['state_dict']['conv_stem.weight'], start['conv_stem.weight']
    )
    for epoch in (0, 1):
        resume = ['--resume', whole / f'checkpoint-{epoch}.pth.tar']
        resumed = train(*EXACT, *resume, experiment=f'resumed-{epoch}')
        assert [int(row['epoch']) for row in read_summary(resumed)] == list(range(epoch + 1, 3))
        assert_same_training(resumed, whole, from_epoch=epoch + 1)


def test_without_exact_resume_a_resumed_run_sees_other_batches(train):
    """The control: the option is what makes the runs above equal."""
    options = ['--epochs', 2, '--model', 'test_efficientnet']
    whole = train(*options, experiment='whole')
    resumed = train(*options, '--resume', whole / 'checkpoint-0.pth.tar', experiment='resumed')
    assert read_summary(resumed)[-1]['train_loss'] != read_summary(whole)[-1]['train_loss']


def test_a_start_epoch_that_is_given_wins_over_that_of_the_checkpoint(train):
    first = train('--epochs', 1, experiment='first') / 'last.pth.tar'
    for start in (0, 2):
        options = ('--epochs', 3, '--resume', first, '--start-epoch', start)
        rows = read_summary(train(*options, experiment=f'from-{start}'))
        assert [int(row['epoch']) for row in rows] == list(range(start, 3))


class Scaled(Precision):
    """Number formats of a run whose losses are scaled, as in float16 on CUDA."""

    def __init__(self, args, device):
        super().__init__(args, device)
        self.loss_scaler = LossScaler(device='cpu')


def test_the_scale_of_losses_counts_updates_and_goes_on_with_the_optimiser(train, monkeypatch):
    monkeypatch.setattr('regaug.training.run.Precision', Scaled)
    first = train('--epochs', 1, experiment='first') / 'last.pth.tar'
    kept = train('--epochs', 2, '--resume', first, experiment='kept') / 'last.pth.tar'
    fresh = train('--epochs', 2, '--resume', first, '--no-resume-opt', experiment='fresh') / 'last.pth.tar'
    states = [read_checkpoint(path)['amp_scaler'] for path in (first, kept, fresh)]
    assert [state['_growth_tracker'] for state in states] == [4, 8, 4]  # updates since the scale last changed


# Resuming in the same folder


def test_resume_auto_takes_the_newest_good_checkpoint_and_the_summary_has_each_epoch_once(train, caplog):
    exact = ['--exact-resume', '--resume', 'auto']
    folder = train(*exact, '--epochs', 4, experiment='run')
    reference = Path(shutil.copytree(folder, folder.with_name('reference')))
    (folder / 'checkpoint-3.pth.tar').unlink()
    for name in ('last.pth.tar', 'model_best.pth.tar', 'checkpoint-2.pth.tar'):
        truncate(folder / name)
    torch.save({'weights': torch.zeros(3)}, folder / 'other.pth.tar')
    log = follow_log(caplog)
    train(*exact, '--epochs', 4, experiment='run')
    assert f'Resuming {folder}/checkpoint-1.pth.tar' in log.text
    assert 'Skipped: --resume auto' in log.text
    assert_same_training(folder, reference)
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1', '2', '3']


def test_the_best_metric_is_not_forgotten(train, caplog):
    folder = train('--epochs', 1)
    state = read_checkpoint(folder / 'last.pth.tar')
    state['saver'].update(best_metric=200.0, best_epoch=0, pending=(0, 200.0))
    for name in ('last.pth.tar', 'checkpoint-0.pth.tar', 'model_best.pth.tar'):
        (folder / name).unlink()
        torch.save(state, folder / name)
    log = follow_log(caplog)
    train('--epochs', 2, '--resume', folder / 'last.pth.tar')
    assert '*** Best metric: 200.0 (epoch 0)' in log.text
    assert read_checkpoint(folder / 'model_best.pth.tar')['epoch'] == 0
    assert read_checkpoint(folder / 'last.pth.tar')['saver']['best_metric'] == 200.0
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 1


# timm's files


def test_checkpoints_load_in_plain_timm(train):
    folder = train('--epochs', 1, '--model-ema', '--model-ema-decay', 0.5, '--gradaug', 1)
    saved = read_checkpoint(folder / 'last.pth.tar')
    model = create_model('test_resnet', num_classes=CLASSES, checkpoint_path=str(folder / 'last.pth.tar'))
    assert_equal(dict(model.state_dict()), dict(saved['state_dict_ema']))  # which timm prefers
    assert not torch.equal(saved['state_dict']['fc.weight'], saved['state_dict_ema']['fc.weight'])


def test_runs_go_on_from_checkpoints_that_timm_wrote(train, tmp_path):
    options = ['--exact-resume', '--model-ema', '--model-ema-decay', 0.5]
    ours = train(*options, experiment='ours')
    model = create_model('test_resnet', num_classes=CLASSES)
    task = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False)
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1.0, weight_decay=2e-5, momentum=0.9)
    checkpoint = str(ours / 'checkpoint-0.pth.tar')
    assert resume_task_checkpoint(task, checkpoint, optimizer=optimizer) == 1
    task.setup_ema(decay=0.5)
    task.load_checkpoint_state(read_checkpoint(checkpoint)['state_dict_ema'], ema=True)
    timms = tmp_path / 'timm'
    timms.mkdir()
    CheckpointSaver(model, optimizer, task=task, checkpoint_dir=str(timms)).save_checkpoint(0, metric=1.0)
    resumed = train(*options, '--resume', timms / 'last.pth.tar', experiment='resumed')
    assert_same_training(resumed, ours, from_epoch=1)


# A full disk


def failing_save(after, error):
    """torch.save that, after so many calls, writes a part of the file and fails."""
    save, calls = torch.save, []

    def fail(state, path):
        calls.append(path)
        if len(calls) <= after:
            return save(state, path)
        Path(path).write_bytes(b'half a checkpoint')
        raise error

    return fail


def test_a_full_disk_leaves_earlier_checkpoints_and_no_piece_of_a_file(train, monkeypatch, tmp_path):
    monkeypatch.setattr(torch, 'save', failing_save(1, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(OptionError, match=rf'^--output {tmp_path}/run: .*epoch 1 .*No space left.* are intact'):
        train('--epochs', 3)
    folder = tmp_path / 'run'
    checkpoints = {'checkpoint-0.pth.tar', 'last.pth.tar', 'model_best.pth.tar'}
    assert {path.name for path in folder.iterdir()} == {*checkpoints, 'args.yaml', 'summary.csv'}
    assert {read_checkpoint(folder / name)['epoch'] for name in checkpoints} == {0}
    assert find_newest(folder, finished_only=True) == str(folder / 'last.pth.tar')


def test_a_run_killed_while_it_writes_leaves_complete_files(train, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', failing_save(1, KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train()
    folder = tmp_path / 'run'
    for name in ('checkpoint-0.pth.tar', 'last.pth.tar', 'model_best.pth.tar'):
        assert read_checkpoint(folder / name)['epoch'] == 0
    train('--resume', 'auto')
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1']
    assert not list(folder.glob('*tmp*'))


def test_each_epoch_and_rank_has_a_random_state_of_its_own_in_every_generator():
    def draws(seed, epoch, rank):
        reseed_epoch(seed, epoch, rank)
        return random.random(), float(np.random.rand()), torch.rand(1).item()

    first = draws(7, 3, 0)
    assert draws(7, 3, 0) == first
    for other in (draws(8, 3, 0), draws(7, 4, 0), draws(7, 3, 1)):
        assert all(one != another for one, another in zip(first, other, strict=True))


# Another optimiser, or other settings of it


def test_another_optimiser_than_the_checkpoints_is_refused(train):
    start = train('--epochs', 1, experiment='start') / 'last.pth.tar'
    with pytest.raises(OptionError, match='its optimiser is sgd, not lion; --no-resume-opt'):
        train('--resume', start, '--opt', 'lion', experiment='other')
    train('--resume', start, '--opt', 'lion', '--no-resume-opt', '--epochs', 2, experiment='other')


def test_settings_that_the_checkpoints_optimiser_keeps_are_told(train, caplog):
    start = train('--epochs', 1, experiment='start') / 'last.pth.tar'
    log = follow_log(caplog)
    train('--resume', start, '--epochs', 2, experiment='same')
    assert 'goes on as it was saved' not in log.text
    train('--resume', start, '--epochs', 2, '--lr', 0.001, '--weight-decay', 0.125, experiment='other')
    assert 'goes on as it was saved: lr 0.05, weight_decay 2e-05; what is given (0.001, 0.125)' in log.text
