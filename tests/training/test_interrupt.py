"""Stopping on SIGTERM: after which update, with what on disk, and how the run goes on."""

import os
import re
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch

from regaug.errors import OptionError
from regaug.training.checkpoints import Saver
from regaug.training.interrupt import command_to_go_on, without_start
from regaug.training.report import Report
from tests.helpers.training import (
    assert_same_training,
    follow_log,
    messages_of,
    read_checkpoint,
    read_summary,
    run_argv,
    run_train,
)


def command_of(text):
    """The arguments of train.py in the command that an interrupted run gives."""
    command = re.search(r'Go on with:\n(.*)', text).group(1)
    return shlex.split(command)


def resume_option(text):
    """`--resume` and its value out of the command that an interrupted run gives."""
    command = command_of(text)
    return command[command.index('--resume') :][:2]


EXACT = ('--exact-resume', '--epochs', 3, '--log-interval', 1)


@pytest.fixture(scope='module')
def whole(image_folder, tmp_path_factory):
    """Folder of an uninterrupted run with these options."""
    return run_train(image_folder, tmp_path_factory.mktemp('whole'), *EXACT)


@pytest.fixture
def stop_at(monkeypatch):
    """Makes the next run in this process receive SIGTERM at an update, counted over its epochs."""
    on_update = Report.on_update

    def stop_at(epoch, update_idx):
        def with_signal(self, record):
            on_update(self, record)
            if (record.epoch, record.update_idx) == (epoch, update_idx):
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Report, 'on_update', with_signal)

    yield stop_at
    monkeypatch.undo()


def test_an_interrupted_epoch_is_repeated_from_the_recovery_checkpoint(train, stop_at, caplog):
    log = follow_log(caplog)
    stop_at(1, 1)
    folder = train('--epochs', 3, '--log-interval', 1, status=143)
    assert [path.name for path in folder.glob('recovery*')] == ['recovery-1-2.pth.tar']
    assert 'Stopped in epoch 1, which will be repeated' in log.text
    recovery = read_checkpoint(folder / 'recovery-1-2.pth.tar')
    last = read_checkpoint(folder / 'last.pth.tar')
    assert not torch.equal(recovery['state_dict']['fc.weight'], last['state_dict']['fc.weight'])
    stop_at(-1, -1)
    log = follow_log(caplog)
    train('--epochs', 3, *resume_option('Go on with:\nx --resume ' + str(folder / 'recovery-1-2.pth.tar')))
    assert 'Epoch 1 was interrupted; it is repeated from its start.' in log.text
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1', '2']


def test_recovery_checkpoints_of_an_interval_are_resumed_as_interrupted(train, caplog):
    folder = train('--epochs', 1, '--recovery-interval', 3, experiment='first')
    [recovery] = folder.glob('recovery*')
    assert recovery.name == 'recovery-0-2.pth.tar'
    log = follow_log(caplog)
    resumed = train('--epochs', 1, '--resume', recovery, experiment='second')
    assert 'Epoch 0 was interrupted' in log.text
    assert [row['epoch'] for row in read_summary(resumed)] == ['0']


@pytest.mark.few(1)
@pytest.mark.parametrize('update_idx', [1, 3])
def test_after_a_signal_the_given_command_resumes_exactly(update_idx, whole, train, stop_at, caplog):
    """`--exact-resume` promises the numbers of an uninterrupted run, stopped within an epoch (4 updates) too."""
    log = follow_log(caplog)
    stop_at(1, update_idx)
    stopped = train(*EXACT, experiment='stopped', status=143)
    stop_at(-1, -1)
    train(*EXACT, *resume_option(log.text), experiment='stopped')
    assert_same_training(stopped, whole)


def test_the_given_command_does_not_repeat_how_the_run_started(monkeypatch):
    start = ['--overwrite', '--resume', 'old.pth.tar', '--no-resume-opt', '--start-epoch', '0', '--start-epoch=1']
    monkeypatch.setattr(sys, 'argv', ['train.py', '--epochs', '3', *start, '--lr', '0.1'])
    lasting = [sys.executable, 'train.py', '--epochs', '3', '--lr', '0.1', '--experiment', 'run']
    assert shlex.split(command_to_go_on('run', 'new.pth.tar')) == [*lasting, '--resume', 'new.pth.tar']
    again = [sys.executable, *sys.argv, '--experiment', 'run']
    assert shlex.split(command_to_go_on('run', None)) == [*again, '--overwrite']
    assert shlex.split(command_to_go_on('run', None, auto=True)) == again
    assert shlex.split(command_to_go_on('run', 'old.pth.tar', written=False)) == [*again, '--resume', 'old.pth.tar']


def test_the_given_command_knows_abbreviations():
    words = ['train.py', '--overw', '-b', '4', '--resume-it', '--resum', 'auto', '--start-ep=2', '--no-resume', '-']
    assert without_start(words) == ['train.py', '-b', '4', '--resume-it', '-']


def test_a_run_that_has_written_nothing_starts_again_as_it_did(whole, train, stop_at, caplog):
    start = ['--resume', str(whole / 'checkpoint-1.pth.tar'), '--start-epoch', '0', '--no-resume-opt']
    log = follow_log(caplog)
    stop_at(0, 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['train.py', *start])
        train(*EXACT, *start, experiment='stopped', status=143)
        words = command_of(log.text)
        assert words[2:] == [*start, '--experiment', 'stopped', '--resume', start[1]]
        log = follow_log(caplog)
        stop_at(1, 1)
        stopped = train(*EXACT, *start, experiment='later', status=143)
        assert command_of(log.text)[2:] == ['--experiment', 'later', '--resume', str(stopped / 'last.pth.tar')]


def test_a_run_stopped_before_its_first_checkpoint_goes_on_from_where_it_started(whole, train, stop_at, caplog):
    start = ['--resume', whole / 'checkpoint-0.pth.tar']
    log = follow_log(caplog)
    stop_at(1, 1)
    train(*EXACT, *start, experiment='stopped', status=143)
    stop_at(-1, -1)
    stopped = train(*EXACT, *start, *resume_option(log.text), experiment='stopped')
    assert [row['epoch'] for row in read_summary(stopped)] == ['1', '2']
    assert_same_training(stopped, whole, from_epoch=1)


def test_a_finished_epoch_is_not_repeated_after_a_signal(whole, train, monkeypatch, caplog):
    on_epoch = Report.on_epoch

    def with_signal(self, row, **kwargs):
        on_epoch(self, row, **kwargs)
        signal.raise_signal(signal.SIGTERM)

    log = follow_log(caplog)
    with monkeypatch.context() as patch:
        patch.setattr(Report, 'on_epoch', with_signal)
        stopped = train(*EXACT, experiment='stopped', status=143)
    assert [row['epoch'] for row in read_summary(stopped)] == ['0']
    resume = resume_option(log.text)
    log = follow_log(caplog)
    train(*EXACT, *resume, experiment='stopped')
    assert 'Train: 0 ' not in log.text
    assert_same_training(stopped, whole)


def test_a_finished_epoch_without_evaluation_is_not_repeated_after_a_signal(whole, train, stop_at, caplog):
    """Also where the middle of an epoch is no place to go on from: checkpoints lie `--val-interval` epochs apart."""
    rarely = [*EXACT, '--val-interval', 3]
    log = follow_log(caplog)
    stop_at(1, 1)
    stopped = train(*rarely, experiment='stopped', status=143)
    assert not list(stopped.glob('checkpoint*'))
    assert 'Stopped in epoch 1, which will be repeated from its start' in log.text
    stop_at(-1, -1)
    resume = resume_option(log.text)
    assert Path(resume[1]).name == 'recovery-0-end.pth.tar'
    log = follow_log(caplog)
    train(*rarely, *resume, experiment='stopped')
    assert 'Train: 0 ' not in log.text and 'Train: 1 ' in log.text
    assert_same_training(stopped, whole, from_epoch=2)


def test_a_signal_in_the_last_epoch_after_its_last_update_lets_the_run_end(train, stop_at):
    stop_at(1, 3)
    folder = train('--log-interval', 1, '--val-split', '')
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 1
    assert not list(folder.glob('recovery*'))


def processes_of_session(session):
    """Process ids, by state, of a session: those of a program started as its leader and of all its children."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/stat'):
        try:
            fields = path.read_text().rpartition(')')[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[3]) == session:
            found[int(path.parent.name)] = fields[0]
    return found


@pytest.mark.slow  # as a hangup does, see test_signals
def test_sigterm_ends_a_real_run_with_a_command_that_goes_on(start_train, tmp_path):
    program = start_train('--epochs', 500, '--workers', 2, '--log-interval', 1)
    program.wait_for('Train: 1 [   1/4')
    assert len(processes_of_session(program.process.pid)) >= 3  # the main process and the loader's workers
    os.kill(program.process.pid, signal.SIGTERM)
    status, output = program.finish()
    assert status == 143, output
    assert processes_of_session(program.process.pid) == {}
    assert 'Traceback' not in output
    [recovery] = (tmp_path / 'run').glob('recovery-*.pth.tar')
    assert not list((tmp_path / 'run').glob('*tmp*'))
    command = command_of(output)
    assert command[0] == sys.executable
    epochs = [row['epoch'] for row in read_summary(tmp_path / 'run')]
    stopped_in = len(epochs)
    assert epochs == [str(epoch) for epoch in range(stopped_in)]

    assert Path(command[1]).name == 'train.py'
    with messages_of('train') as log:
        run_argv([*command[2:], '--epochs', str(stopped_in + 1)])
    assert f'Epoch {stopped_in} was interrupted; it is repeated from its start.' in log
    epochs = [row['epoch'] for row in read_summary(tmp_path / 'run')]
    assert epochs == [str(epoch) for epoch in range(stopped_in + 1)]
    assert recovery.exists()


def test_a_stop_on_a_full_disk_says_how_to_go_on_from_what_there_is(train, stop_at, caplog, monkeypatch):
    def full(*args):
        raise OptionError('the disk is full')

    monkeypatch.setattr(Saver, 'save_recovery', full)
    stop_at(1, 1)
    log = follow_log(caplog)
    folder = train('--epochs', 3, '--log-interval', 1, status=143)
    assert 'the disk is full' in log.text
    assert resume_option(log.text) == ['--resume', str(folder / 'last.pth.tar')]
