"""A kill between any two steps of saving leaves a folder as if it had come before or after."""

import os
import shutil

import pytest
import torch

from regaug.training.checkpoints import Saver
from regaug.training.resume import find_newest
from tests.helpers.checkpoints import create_saver
from tests.helpers.training import read_checkpoint

METRICS = {'better': 90.0, 'between': 55.0, 'worse': 10.0}  # of the epoch that is killed, beside 50, 60 and 40
STEPS = [(torch, 'save'), (os, 'replace'), (os, 'link'), (os, 'remove'), (os, 'fsync')]


class Killed(BaseException):
    """The process is gone."""


def kill_at(patch, number):
    """Patch every step that changes a folder: all from the `number`-th on do nothing, since the process is dead."""
    count = 0

    def step(original):
        def run(*args, **kwargs):
            nonlocal count
            count += 1
            if count > number:
                raise Killed
            return original(*args, **kwargs)

        return run

    for module, name in STEPS:
        patch.setattr(module, name, step(getattr(module, name)))
    return lambda: count


def train_epochs(folder, model, metrics):
    """A saver that has saved an epoch for each metric, the first weight telling the epoch."""
    saver = create_saver(model, folder)
    for epoch, metric in metrics.items():
        save(saver, epoch, metric)
    return saver


def save(saver, epoch, metric):
    with torch.no_grad():
        saver.model.weight[0, 0] = epoch
    saver.save_checkpoint(epoch, metric)


def state_of(folder, saver):
    """What matters to whoever goes on: files with the epoch that each holds, ranking, best."""
    held = {path.name: int(read_checkpoint(path)['state_dict']['weight'][0, 0]) for path in folder.glob('*')}
    ranking = [(os.path.basename(name), metric) for name, metric in saver.checkpoint_files]
    return held, ranking, saver.best_epoch, saver.best_metric


def gone_on(folder, model):
    """A saver of a new process that takes up the folder's history."""
    saver = create_saver(model, folder)
    newest = find_newest(folder, finished_only=False)
    saver.restore(newest)
    return saver, read_checkpoint(newest)['epoch']


@pytest.mark.parametrize('case', METRICS)
def test_a_kill_between_any_two_steps_of_saving_is_as_one_before_or_after(case, tmp_path):
    model = torch.nn.Linear(3, 2)
    whole = train_epochs(tmp_path / 'whole', model, {0: 50.0, 1: 60.0, 2: 40.0})
    before = state_of(tmp_path / 'whole', whole)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'start')
    save(whole, 3, METRICS[case])
    after = state_of(tmp_path / 'whole', whole)
    assert before != after
    number, seen = 0, set()
    while True:
        folder = tmp_path / f'killed-{number}'
        shutil.copytree(tmp_path / 'start', folder)
        saver, _ = gone_on(folder, model)
        with pytest.MonkeyPatch.context() as patch:
            steps = kill_at(patch, number)
            try:
                save(saver, 3, METRICS[case])
                finished = True
            except Killed:
                finished = False
        saver, epoch = gone_on(folder, model)
        found = state_of(folder, saver)
        assert found == (after if epoch == 3 else before), f'killed after step {number}'
        seen.add(epoch)
        if epoch == 2:
            save(saver, 3, METRICS[case])
            assert state_of(folder, saver) == after
        if finished:
            break
        number = steps()
    assert seen == {2, 3}
    assert number >= 3


def test_leftovers_of_killed_runs_are_cleared_and_recovery_checkpoints_kept_to_two(tmp_path):
    model = torch.nn.Linear(3, 2)
    saver = train_epochs(tmp_path, model, {0: 50.0})
    for update in range(4):
        saver.save_recovery(1, update)
        saver.curr_recovery_file = saver.prev_recovery_file = ''  # each by a process of its own
    for name in ('tmp.pth.tar', 'recovery_tmp.pth.tar', 'summary.csv.tmp', 'last.pth.tar.tmp'):
        (tmp_path / name).write_bytes(b'half')
    saver, epoch = gone_on(tmp_path, model)
    names = {path.name for path in tmp_path.iterdir()}
    kept = {'recovery-1-2.pth.tar', 'recovery-1-3.pth.tar'}
    assert names == {'last.pth.tar', 'checkpoint-0.pth.tar', 'model_best.pth.tar', *kept}
    assert epoch == 1
    saver.save_recovery(1, 9)
    assert {path.name for path in tmp_path.glob('recovery*')} == {'recovery-1-3.pth.tar', 'recovery-1-9.pth.tar'}


def test_after_a_fall_back_to_an_older_checkpoint_the_best_is_of_its_time(tmp_path):
    model = torch.nn.Linear(3, 2)
    train_epochs(tmp_path, model, {0: 50.0, 1: 60.0, 2: 70.0})
    for name in ('last.pth.tar', 'checkpoint-2.pth.tar'):
        path = tmp_path / name
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:-2000])
    (tmp_path / 'model_best.pth.tar').unlink()
    saver, epoch = gone_on(tmp_path, model)
    assert epoch == 1
    held, ranking, best_epoch, _ = state_of_readable(tmp_path, saver)
    assert (best_epoch, held['model_best.pth.tar']) == (1, 1)
    assert ('checkpoint-1.pth.tar', 60.0) in ranking
    assert isinstance(saver, Saver)


def state_of_readable(folder, saver):
    for name in ('last.pth.tar', 'checkpoint-2.pth.tar'):
        (folder / name).unlink(missing_ok=True)
    return state_of(folder, saver)
