"""Checkpoints are whole or not there, are told apart by what is wrong with them, and are found again."""

import argparse
import errno
import hashlib
import os
import pickle
import shutil

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.utils import CheckpointSaver
from training_case import make_model, make_task, read_checkpoint, train_argv

import train as train_script
from regaug import checkpoints
from regaug.checkpoints import Saver, check_weights, find_newest, load_weights, next_epoch, resume
from regaug.errors import OptionError


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')


def half_written(state, path, **kwargs):
    """Stands where `torch.save` stands on a disk that is full in the middle of it."""
    torch.serialization.save(state, path)
    os.truncate(path, os.path.getsize(path) // 2)
    no_space()


def hashes(folder):
    """{name: hash of the content} of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.fixture
def model():
    return make_model('test_resnet', torch.float32)


@pytest.fixture
def make_saver(tmp_path, model):
    def make_saver(max_history=2, **kwargs):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        args = argparse.Namespace(model='test_resnet', epochs=5)
        folder = str(tmp_path / 'run')
        os.makedirs(folder, exist_ok=True)
        return Saver(
            model, optimizer, args, checkpoint_dir=folder, recovery_dir=folder, max_history=max_history, **kwargs
        )

    return make_saver


# --- writing ------------------------------------------------------------------------------------------------------


def test_files_and_their_content_are_timms(make_saver, model, tmp_path):
    saver = make_saver()
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


def test_a_checkpoint_loads_in_plain_timm(make_saver, model, tmp_path):
    make_saver().save_checkpoint(0, 1.0)
    path = str(tmp_path / 'run' / 'last.pth.tar')
    loaded = timm.create_model('test_resnet', num_classes=4, checkpoint_path=path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


@pytest.mark.parametrize('kind', ['checkpoint', 'recovery'])
def test_a_disk_that_is_full_in_the_middle_of_saving_leaves_earlier_checkpoints_intact(
    make_saver, tmp_path, monkeypatch, kind
):
    saver = make_saver()
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
    assert 'No space left' in message


@pytest.mark.parametrize('name', ['checkpoint-1.pth.tar', 'model_best.pth.tar'])
def test_a_disk_that_is_full_while_a_checkpoint_is_copied_leaves_no_half_copy(make_saver, tmp_path, monkeypatch, name):
    saver = make_saver()
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


def test_a_final_name_never_stands_for_a_file_that_is_being_written(make_saver, tmp_path, monkeypatch):
    saver = make_saver()
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


def test_without_hard_links_checkpoints_are_copied(make_saver, tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'link', no_space)
    saver = make_saver()
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


def test_with_hard_links_an_epoch_takes_the_room_of_one_file(make_saver, tmp_path):
    make_saver().save_checkpoint(0, 1.0)
    assert len(list((tmp_path / 'run').iterdir())) == 3
    assert len({path.stat().st_ino for path in (tmp_path / 'run').iterdir()}) == 1


def test_recovery_checkpoints_are_marked_and_others_are_not(make_saver, tmp_path):
    saver = make_saver()
    saver.save_checkpoint(0, 1.0)
    path = saver.save_recovery(1, 7)
    saver.save_checkpoint(1, 2.0)
    assert path == str(tmp_path / 'run' / 'recovery-1-7.pth.tar')
    marked = {file.name: read_checkpoint(file)['saver'].get('interrupted') for file in (tmp_path / 'run').iterdir()}
    assert marked.pop('recovery-1-7.pth.tar') is True
    assert set(marked.values()) == {None}


def test_two_recovery_checkpoints_are_kept(make_saver, tmp_path):
    saver = make_saver()
    for update in (1, 2, 3):
        saver.save_recovery(0, update)
    assert sorted(hashes(tmp_path / 'run')) == ['recovery-0-2.pth.tar', 'recovery-0-3.pth.tar']


# --- reading ------------------------------------------------------------------------------------------------------


class Dangerous:
    """Runs a command when it is unpickled by a careless program."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.fixture
def saved(make_saver, tmp_path):
    """Path of a whole training checkpoint."""
    make_saver().save_checkpoint(3, 1.0)
    return tmp_path / 'run' / 'last.pth.tar'


@pytest.mark.parametrize('mmap', [False, True])
def test_a_missing_file_is_named(tmp_path, mmap):
    with pytest.raises(OptionError, match=r'--resume .*/gone\.pth: there is no such file'):
        checkpoints.read_checkpoint(tmp_path / 'gone.pth', '--resume', mmap=mmap)


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('share', [0, 1e-5, 0.01, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_is_called_truncated(saved, tmp_path, mmap, share):
    path = tmp_path / 'short.pth.tar'
    path.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(OptionError, match=r'--resume .*/short\.pth\.tar: truncated, or no checkpoint') as caught:
        checkpoints.read_checkpoint(path, '--resume', mmap=mmap)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('mmap', [False, True])
def test_a_whole_file_is_read(saved, mmap):
    checkpoint = checkpoints.read_checkpoint(saved, '--resume', mmap=mmap)
    assert (checkpoint['epoch'], checkpoint['args'].model) == (3, 'test_resnet')


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('zipped', [False, True])
def test_code_in_a_foreign_file_is_refused_and_never_run(tmp_path, mmap, zipped):
    path, victim = tmp_path / 'foreign.pth', tmp_path / 'victim'
    torch.save({'state_dict': Dangerous(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(OptionError, match=r'--initial-checkpoint .*foreign\.pth'):
        checkpoints.read_checkpoint(path, '--initial-checkpoint', mmap=mmap)
    assert not victim.exists()


@pytest.mark.parametrize(
    'content',
    [
        b'not a checkpoint',
        b'PK\x03\x04 not a checkpoint either',
        pickle.dumps({'a': 1}, protocol=2),
        b'\x89HDF\r\n\x1a\n' + b'0' * 99,
    ],
    ids=['text', 'broken zip', 'bare pickle', 'another format'],
)
@pytest.mark.parametrize('mmap', [False, True])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path, content, mmap):
    path = tmp_path / 'other.pth'
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r'--resume .*other\.pth: truncated, or no checkpoint'):
        checkpoints.read_checkpoint(path, '--resume', mmap=mmap)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(OptionError, match='--resume'):
        checkpoints.read_checkpoint(tmp_path, '--resume')


@pytest.mark.parametrize(('value', 'kind'), [([1, 2], 'list'), (torch.zeros(3), 'Tensor')])
def test_something_else_than_a_dict_is_refused(tmp_path, value, kind):
    torch.save(value, tmp_path / 'other.pth')
    with pytest.raises(OptionError, match=f'holds a {kind}, not a dict of weights'):
        checkpoints.read_checkpoint(tmp_path / 'other.pth', '--resume')


@pytest.mark.parametrize('mmap', [False, True])
def test_files_of_pytorchs_old_format_are_read(model, tmp_path, mmap):
    path = tmp_path / 'old.pth'
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    assert list(checkpoints.read_checkpoint(path, '--resume', mmap=mmap)) == list(model.state_dict())


# --- comparing ----------------------------------------------------------------------------------------------------


def test_weights_that_fit_are_accepted(model):
    assert check_weights(model.state_dict(), model, '--resume', 'x.pth') is None


def test_differences_are_summed_up_by_kind_with_examples(model):
    weights = dict(model.state_dict())
    names = list(weights)
    for name in names[:5]:
        del weights[name]
    weights['extra.weight'] = torch.zeros(1)
    weights['fc.weight'] = torch.zeros(9, 9)
    with pytest.raises(OptionError) as caught:
        check_weights(weights, model, '--resume', 'x.pth')
    message = str(caught.value)
    assert message.startswith('--resume x.pth: does not fit ResNet: ')
    assert f'5 missing ({", ".join(names[:3])}, ...)' in message
    assert '1 unexpected (extra.weight)' in message
    assert f'1 of another shape (fc.weight (9, 9) for {tuple(model.fc.weight.shape)})' in message


@pytest.mark.parametrize('suffix', ['.pth', '.pth.tar', '.safetensors'])
def test_weights_are_loaded_from_every_kind_of_file(model, tmp_path, suffix):
    path = tmp_path / f'weights{suffix}'
    if suffix == '.safetensors':
        safetensors.torch.save_file(model.state_dict(), path)
    else:
        torch.save({'state_dict': model.state_dict()}, path)
    other = timm.create_model('test_resnet', num_classes=4)
    load_weights(other, path, use_ema=False, option='--checkpoint')
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())


def test_weights_of_the_old_format_are_loaded(model, tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    other = timm.create_model('test_resnet', num_classes=4)
    load_weights(other, path, use_ema=False, option='--checkpoint')
    assert torch.equal(other.fc.weight, model.fc.weight)


@pytest.mark.parametrize('use_ema', [False, True])
def test_the_moving_average_is_taken_on_demand(model, tmp_path, use_ema):
    average = {name: value + 1 for name, value in model.state_dict().items()}
    torch.save({'state_dict': model.state_dict(), 'state_dict_ema': average}, tmp_path / 'both.pth')
    other = timm.create_model('test_resnet', num_classes=4)
    load_weights(other, tmp_path / 'both.pth', use_ema=use_ema, option='--checkpoint')
    assert torch.equal(other.fc.weight, model.fc.weight + use_ema)


def write_bad(kind, model, path):
    """Write a file of weights that is wrong in some way."""
    state = model.state_dict()
    if kind == 'other model':
        state = timm.create_model('test_vit', num_classes=4).state_dict()
    if kind == 'other head':
        state = timm.create_model('test_resnet', num_classes=7).state_dict()
    if path.suffix == '.safetensors':
        safetensors.torch.save_file(state, path)
    elif kind == 'code':
        torch.save({'state_dict': Dangerous(path.parent / 'victim')}, path)
    else:
        torch.save(state, path)
    if kind == 'truncated':
        os.truncate(path, path.stat().st_size // 2)
    if kind == 'empty':
        os.truncate(path, 0)
    if kind == 'text':
        path.write_text('weights')
    if kind == 'missing':
        path.unlink()


BAD_FILES = [
    *((kind, '.pth') for kind in ('missing', 'empty', 'truncated', 'text', 'code', 'other model', 'other head')),
    *((kind, '.pth.tar') for kind in ('truncated', 'text', 'other model')),
    *((kind, '.ckpt') for kind in ('empty', 'truncated', 'text', 'code', 'other model')),
    *((kind, '.safetensors') for kind in ('missing', 'empty', 'truncated', 'text', 'other model', 'other head')),
]


@pytest.mark.parametrize(('kind', 'suffix'), BAD_FILES)
def test_weights_that_cannot_be_used_are_refused_by_option_and_file(model, tmp_path, kind, suffix):
    path = tmp_path / f'weights{suffix}'
    write_bad(kind, model, path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(OptionError) as caught:
        load_weights(model, path, use_ema=True, option='--checkpoint')
    message = str(caught.value)
    assert message.startswith(f'--checkpoint {path}: ')
    assert '\n' not in message
    if kind.startswith('other'):
        assert 'does not fit ResNet: ' in message
        assert ('conv1.0.weight' if kind == 'other model' else 'fc.weight') in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not (tmp_path / 'victim').exists()


@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')
@pytest.mark.parametrize(('kind', 'suffix'), [pair for pair in BAD_FILES if pair[0] != 'missing'])
def test_train_refuses_an_initial_checkpoint_that_cannot_be_used(image_folder, tmp_path, kind, suffix):
    path = tmp_path / f'weights{suffix}'
    write_bad(kind, make_model('test_resnet', torch.float32), path)
    with pytest.raises(OptionError) as caught:
        train_script.main(train_argv(image_folder, tmp_path / 'out', '--initial-checkpoint', path))
    message = str(caught.value)
    assert message.startswith(f'--initial-checkpoint {path}: ')
    assert '\n' not in message
    if kind.startswith('other'):
        assert 'does not fit ResNet: ' in message
        assert ('conv1.0.weight' if kind == 'other model' else 'fc.weight') in message
    assert not (tmp_path / 'out').exists()
    assert not (tmp_path / 'victim').exists()


def test_an_initial_checkpoint_of_the_old_format_starts_a_run(train, model, tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    folder = train('--initial-checkpoint', path, '--epochs', 1, '--lr', 1e-9)
    trained = read_checkpoint(folder / 'last.pth.tar')['state_dict']
    torch.testing.assert_close(trained['fc.weight'], model.fc.weight.detach(), atol=1e-6, rtol=0)


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
    assert next_epoch(checkpoint) == expected


@pytest.mark.parametrize(
    ('args', 'expected'), [(argparse.Namespace(epochs=8), 0), (argparse.Namespace(epochs=0), 8), (None, 0)]
)
def test_a_refinement_starts_with_its_first_epoch_unless_it_was_one(args, expected):
    assert next_epoch({'epoch': 7, 'version': 2, 'args': args}, refine_only=True).epoch == expected


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
def folder(make_saver, tmp_path):
    """Writes files of a run: `make(name, epoch, age)` with `age` in seconds."""
    saver = make_saver()
    (tmp_path / 'newest').mkdir()

    def make(name, epoch, age=0, interrupted=False):
        path = tmp_path / 'newest' / name
        saver._interrupted = interrupted
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
    assert (str(bad) in caplog.text) is (damage != 'weights only')
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


def test_checkpoints_are_never_read_by_running_code(image_folder, tmp_path):
    path = tmp_path / 'foreign.pth.tar'
    torch.save({'epoch': 1, 'state_dict': Dangerous(tmp_path / 'victim')}, path)
    with pytest.raises(OptionError, match=r'--resume .*foreign'):
        train_script.main(train_argv(image_folder, tmp_path / 'out', '--resume', path))
    assert not (tmp_path / 'victim').exists()


def test_numpy_weights_of_a_model_that_cannot_read_them_are_refused(model, tmp_path):
    np.savez(tmp_path / 'weights.npz', a=np.zeros(3))
    with pytest.raises(OptionError, match=r'--checkpoint .*weights\.npz: ResNet cannot read NumPy'):
        load_weights(model, tmp_path / 'weights.npz', use_ema=False, option='--checkpoint')
