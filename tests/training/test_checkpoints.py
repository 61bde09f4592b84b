"""Checkpoints are whole or not there, and are found and resumed."""

import argparse
import errno
import os
import shutil

import pytest
import timm
import torch
from timm.utils import CheckpointSaver

from regaug.errors import OptionError
from regaug.training.resume import find_newest, next_epoch, resume
from tests.helpers.checkpoints import Dangerous, create_saver, hashes, no_space
from tests.helpers.training import make_model, make_task, read_checkpoint

FULL = [
    OSError(errno.ENOSPC, 'No space left on device'),
    RuntimeError('[enforce fail at inline_container.cc:603] . PytorchStreamWriter failed writing file data/7'),
]


@pytest.fixture
def model():
    return make_model('test_resnet', torch.float32)


@pytest.fixture
def saver(model, tmp_path):
    return create_saver(model, tmp_path / 'run')


@pytest.fixture
def saved(saver, tmp_path):
    """Path of a whole training checkpoint."""
    saver.save_checkpoint(3, 1.0)
    return tmp_path / 'run' / 'last.pth.tar'


# --- writing ------------------------------------------------------------------------------------------------------


def test_files_and_their_content_are_timms(saver, model, tmp_path):
    timms_folder = tmp_path / 'timm'
    timms_folder.mkdir()
    folder = str(timms_folder)
    timms = CheckpointSaver(
        model, saver.optimizer, saver.args, checkpoint_dir=folder, recovery_dir=folder, max_history=2
    )
    for epoch, metric in enumerate((10.0, 30.0, 20.0, 5.0)):
        assert saver.save_checkpoint(epoch, metric) == timms.save_checkpoint(epoch, metric)
    names = sorted(path.name for path in (tmp_path / 'run').iterdir())
    assert names == sorted(path.name for path in timms_folder.iterdir())
    assert names == ['checkpoint-1.pth.tar', 'checkpoint-2.pth.tar', 'last.pth.tar', 'model_best.pth.tar']
    for name in names:
        ours, reference = read_checkpoint(tmp_path / 'run' / name), read_checkpoint(timms_folder / name)
        assert list(ours) == list(reference)
        assert {key: ours[key] for key in ('epoch', 'arch', 'version', 'metric', 'saver')} == {
            key: reference[key] for key in ('epoch', 'arch', 'version', 'metric', 'saver')
        }
        assert all(torch.equal(ours['state_dict'][key], value) for key, value in reference['state_dict'].items())


@pytest.mark.parametrize('error', FULL, ids=['by Python', 'by PyTorch'])
@pytest.mark.parametrize('kind', ['checkpoint', 'recovery'])
def test_a_disk_that_is_full_in_the_middle_of_saving_leaves_earlier_checkpoints_intact(
    saver, tmp_path, monkeypatch, kind, error
):
    def half_written(state, path, **kwargs):
        torch.serialization.save(state, path)
        os.truncate(path, os.path.getsize(path) // 2)
        raise error

    saver.save_checkpoint(0, 1.0)
    saver.save_recovery(1, 5)
    before = hashes(tmp_path / 'run')
    monkeypatch.setattr(torch, 'save', half_written)
    with pytest.raises(OptionError) as caught:
        saver.save_checkpoint(1, 2.0) if kind == 'checkpoint' else saver.save_recovery(1, 9)
    assert hashes(tmp_path / 'run') == before
    message = str(caught.value)
    assert f'--output {tmp_path}' in message
    assert 'epoch 1' in message
    assert str(error).splitlines()[0] in message


@pytest.mark.parametrize('name', ['checkpoint-1.pth.tar', 'model_best.pth.tar'])
def test_a_disk_that_is_full_while_a_checkpoint_is_copied_leaves_no_half_copy(saver, tmp_path, monkeypatch, name):
    saver.save_checkpoint(0, 1.0)
    before = hashes(tmp_path / 'run')

    def copy_half(src, dst):
        if name in str(dst):
            with open(src, 'rb') as source, open(dst, 'wb') as target:
                target.write(source.read(1000))
            no_space()
        return shutil.copyfile(src, dst)

    monkeypatch.setattr(os, 'link', no_space)
    monkeypatch.setattr(shutil, 'copy2', copy_half)
    with pytest.raises(OptionError, match=r'--output .*No space left'):
        saver.save_checkpoint(1, 2.0)
    after = hashes(tmp_path / 'run')
    assert {key: after[key] for key in before if key != 'last.pth.tar'} == {
        key: before[key] for key in before if key != 'last.pth.tar'
    }
    assert set(after) - set(before) <= {'checkpoint-1.pth.tar'}
    assert all(read_checkpoint(tmp_path / 'run' / key)['epoch'] in (0, 1) for key in after)


def test_a_final_name_never_stands_for_a_file_that_is_being_written(saver, tmp_path, monkeypatch):
    seen = []

    def watch(state, path, **kwargs):
        names = {entry.name for entry in (tmp_path / 'run').iterdir()}
        torch.serialization.save(state, path)
        seen.append((os.path.basename(path), names))

    monkeypatch.setattr(torch, 'save', watch)
    for epoch in range(3):
        saver.save_checkpoint(epoch, float(epoch))
        saver.save_recovery(epoch, 3)
    assert len(seen) == 6
    assert all(name not in names and 'tmp' in name for name, names in seen)
    assert not [path.name for path in (tmp_path / 'run').iterdir() if 'tmp' in path.name]


def test_without_hard_links_checkpoints_are_copied(saver, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'link', no_space)
    for epoch in range(3):
        saver.save_checkpoint(epoch, float(epoch))
    assert len({path.stat().st_ino for path in (tmp_path / 'run').iterdir()}) == 4
    epochs = {path.name: read_checkpoint(path)['epoch'] for path in (tmp_path / 'run').iterdir()}
    assert epochs == {
        'checkpoint-1.pth.tar': 1,
        'checkpoint-2.pth.tar': 2,
        'last.pth.tar': 2,
        'model_best.pth.tar': 2,
    }


def test_with_hard_links_an_epoch_takes_the_room_of_one_file(saver, tmp_path):
    saver.save_checkpoint(0, 1.0)
    assert len(list((tmp_path / 'run').iterdir())) == 3
    assert len({path.stat().st_ino for path in (tmp_path / 'run').iterdir()}) == 1


def test_recovery_checkpoints_are_marked_and_others_are_not(saver, tmp_path):
    saver.save_checkpoint(0, 1.0)
    path = saver.save_recovery(1, 7)
    saver.save_checkpoint(1, 2.0)
    assert path == str(tmp_path / 'run' / 'recovery-1-7.pth.tar')
    marked = {file.name: read_checkpoint(file)['saver'].get('interrupted') for file in (tmp_path / 'run').iterdir()}
    assert marked.pop('recovery-1-7.pth.tar') is True
    assert set(marked.values()) == {None}


def test_epoch_saved_between_evaluations_is_finished_and_joins_no_ranking(saver, tmp_path):
    saver.save_checkpoint(0, 1.0)
    path = saver.save_between(1)
    assert path == str(tmp_path / 'run' / 'recovery-1-end.pth.tar')
    assert next_epoch(read_checkpoint(path)) == (2, False, 0)
    assert find_newest(tmp_path / 'run', finished_only=True) == path
    assert [name.rpartition('/')[2] for name, _ in saver.checkpoint_files] == ['checkpoint-0.pth.tar']
    assert read_checkpoint(path)['saver'].get('pending') in (None, (None, None))
    path = saver.save_recovery(2, 3)
    assert next_epoch(read_checkpoint(path)) == (2, True, 0)  # the mark of one does not stay for the other


def test_only_what_a_killed_process_leaves_is_removed_when_a_run_goes_on(saver, saved, tmp_path):
    folder = tmp_path / 'run'
    (folder / 'tmp_plots').mkdir()
    mine = {'tmp_notes.txt', 'data.tmp', 'tmp_plots'}
    for name in (*mine - {'tmp_plots'}, 'tmp.pth.tar', 'recovery_tmp.pth.tar', 'last.pth.tar.tmp', 'args.yaml.tmp'):
        (folder / name).write_text('')
    before = {path.name for path in folder.glob('*.pth.tar')} - {'tmp.pth.tar', 'recovery_tmp.pth.tar'}
    saver.restore(saved)
    assert {path.name for path in folder.iterdir()} == mine | before


def test_two_recovery_checkpoints_are_kept(saver, tmp_path):
    for update in (1, 2, 3):
        saver.save_recovery(0, update)
    assert sorted(hashes(tmp_path / 'run')) == ['recovery-0-2.pth.tar', 'recovery-0-3.pth.tar']


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('checkpoint', 'expected'),
    [
        ({'epoch': 7, 'version': 2}, (8, False)),
        ({'epoch': 7}, (7, False)),  # timm's first version counts finished epochs
        ({'epoch': 7, 'version': 1}, (7, False)),
        ({'epoch': 7, 'version': 2, 'saver': {'interrupted': True}}, (7, True)),
        ({'epoch': 7, 'version': 2, 'saver': {}}, (8, False)),
        ({'state_dict': {}}, (None, False)),
        ({'epoch': 7, 'version': 2, 'args': argparse.Namespace(epochs=8)}, (8, False)),
    ],
)
def test_a_run_goes_on_after_the_last_finished_epoch(checkpoint, expected):
    assert next_epoch(checkpoint)[:2] == expected


@pytest.mark.parametrize(
    ('args', 'earlier', 'expected'),
    [
        (argparse.Namespace(epochs=8), 0, (0, False, 8)),
        (argparse.Namespace(epochs=0), 20, (8, False, 20)),
        (None, 0, (0, False, 8)),
    ],
)
def test_a_refinement_starts_with_its_first_epoch_unless_it_was_one(args, earlier, expected):
    checkpoint = {'epoch': 7, 'version': 2, 'args': args, 'saver': {'earlier': earlier}}
    assert next_epoch(checkpoint, refine_only=True) == expected


def test_a_checkpoint_of_another_model_is_not_resumed(saved):
    task = make_task(timm.create_model('test_resnet', num_classes=7))
    with pytest.raises(OptionError, match=r'--resume .*last\.pth\.tar: does not fit ResNet: 2 of another shape'):
        resume(task, str(saved))


def test_a_checkpoint_of_another_optimiser_is_not_resumed(saved, model):
    task = make_task(model)
    optimizer = torch.optim.AdamW([{'params': [parameter]} for parameter in model.parameters()])
    with pytest.raises(OptionError, match=r'--resume .*--no-resume-opt'):
        resume(task, str(saved), optimizer=optimizer)


@pytest.fixture
def folder(saver, tmp_path):
    """Writes files of a run: `make(name, epoch, age)` with `age` in seconds."""
    (tmp_path / 'newest').mkdir()

    def make(name, epoch, age=0, interrupted=False):
        path = tmp_path / 'newest' / name
        saver._recovery = {'interrupted': True} if interrupted else None
        saver._save(str(path), epoch)
        os.utime(path, (1e9 - age, 1e9 - age))
        return str(path)

    make.path = tmp_path / 'newest'
    return make


def test_the_newest_checkpoint_is_the_one_from_which_the_fewest_epochs_remain(folder):
    folder('checkpoint-1.pth.tar', 1, age=0)
    newest = folder('checkpoint-3.pth.tar', 3, age=50)
    folder('checkpoint-2.pth.tar', 2, age=10)
    assert find_newest(folder.path, finished_only=False) == newest


def test_of_several_names_for_one_epoch_the_latest_file_is_taken_and_last_before_others(folder):
    folder('checkpoint-3.pth.tar', 3, age=5)
    folder('model_best.pth.tar', 3, age=5)
    newest = folder('last.pth.tar', 3, age=5)
    assert find_newest(folder.path, finished_only=False) == newest
    newer = folder('checkpoint-3.pth.tar', 3, age=4)
    assert find_newest(folder.path, finished_only=False) == newer


def test_a_recovery_checkpoint_of_a_later_epoch_is_newer_unless_only_finished_ones_count(folder):
    finished = folder('last.pth.tar', 3, age=10)
    recovery = folder('recovery-4-20.pth.tar', 4, age=0, interrupted=True)
    assert find_newest(folder.path, finished_only=False) == recovery
    assert find_newest(folder.path, finished_only=True) == finished


@pytest.mark.parametrize('damage', ['truncated', 'weights only', 'code', 'temporary'])
def test_what_cannot_be_resumed_is_passed_over(folder, caplog, model, damage):
    good = folder('checkpoint-2.pth.tar', 2, age=10)
    bad = folder.path / 'last.pth.tar'
    if damage == 'truncated':
        folder('last.pth.tar', 9)
        os.truncate(bad, 10_000)
    elif damage == 'weights only':
        torch.save(model.state_dict(), bad)
    elif damage == 'code':
        torch.save({'epoch': 9, 'state_dict': Dangerous(folder.path / 'victim')}, bad)
    else:
        bad = folder.path / 'tmp.pth.tar'
        folder('tmp.pth.tar', 9)
        os.truncate(bad, 10_000)
    assert find_newest(folder.path, finished_only=False) == good
    assert (str(bad) in caplog.text) is (damage != 'temporary')  # which nobody looks at
    assert not (folder.path / 'victim').exists()


def test_without_checkpoints_there_is_nothing_to_resume(tmp_path):
    assert find_newest(tmp_path, finished_only=False) is None
    assert find_newest(tmp_path / 'gone', finished_only=False) is None


def test_a_checkpoint_of_timms_first_version_is_resumed_at_its_epoch(train, tmp_path):
    folder = train('--epochs', 3)
    checkpoint = read_checkpoint(folder / 'checkpoint-1.pth.tar')
    old = {key: checkpoint[key] for key in ('state_dict', 'optimizer', 'arch')}
    torch.save({**old, 'epoch': 2}, tmp_path / 'old.pth.tar')
    resumed = train('--epochs', 3, '--resume', tmp_path / 'old.pth.tar', experiment='resumed')
    assert [read_checkpoint(path)['epoch'] for path in resumed.glob('checkpoint-*.pth.tar')] == [2]
