"""Signals to a whole process group, as schedulers, terminals and torchrun send them: one or two ranks with workers."""

import os
import signal

import pytest

from tests.helpers.training import read_checkpoint, read_summary
from tests.training.test_interrupt import command_of, processes_of_session

TORCHRUN = ('-m', 'torch.distributed.run', '--nproc-per-node', 2, '--master-port', 0)


@pytest.mark.parametrize(
    ('signum', 'launcher'),
    [
        (signal.SIGHUP, ()),
        (signal.SIGTERM, TORCHRUN),
        (signal.SIGTERM, ()),
        (signal.SIGHUP, TORCHRUN),
    ],
)
@pytest.mark.slow
def test_a_signal_to_the_process_group_leaves_a_recovery_checkpoint_and_the_command_that_was_used(
    signum, launcher, start_train, start, tmp_path
):
    if launcher:
        launcher = [*launcher[:-1], 29500 + os.getpid() % 1000 + signum]
    program = start_train('--epochs', 500, '--workers', 2, '--batch-size', 8, '--log-interval', 1, launcher=launcher)
    program.wait_for('Train: 1 [   1/', 120)
    os.killpg(program.process.pid, signum)
    status, output = program.finish(60)
    assert status != 0, output
    assert 'DataLoader worker' not in output
    assert 'Go on with:' in output
    assert processes_of_session(program.process.pid) == {}
    [recovery] = (tmp_path / 'run').glob('recovery-*.pth.tar')
    epoch = read_checkpoint(recovery)['epoch']
    command = command_of(output)
    assert ('--nproc-per-node' in command) is bool(launcher)
    status, output = start(*command[1:], '--epochs', epoch + 1).finish()
    assert status == 0, output
    assert f'Epoch {epoch} was interrupted; it is repeated' in output
    assert [int(row['epoch']) for row in read_summary(tmp_path / 'run')] == list(range(epoch + 1))
