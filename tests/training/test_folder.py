"""One folder, one run: what may start there, what is removed, who is kept out, what is good enough to go on from."""

import os
import shutil
import subprocess
import sys
import zipfile
from datetime import datetime
from types import SimpleNamespace

import pytest
import torch

from regaug.errors import OptionError
from regaug.training import folder as folders
from regaug.training.resume import find_newest
from tests.helpers.checkpoints import create_saver
from tests.helpers.training import (
    assert_same_training,
    follow_log,
    make_model,
    read_checkpoint,
    read_summary,
)

EXACT = ('--exact-resume', '--sched', 'step', '--decay-epochs', 9)  # a schedule that knows no end
HOLD = """
import sys
from regaug.training.folder import lock
descriptor = lock(sys.argv[1], 'run')
print('held', flush=True)
sys.stdin.read()
"""


@pytest.fixture
def saver_of_folder(tmp_path):
    return create_saver(make_model('test_resnet', torch.float32), tmp_path)


def test_a_used_folder_is_refused_and_overwriting_leaves_nothing_of_the_old_run(train, caplog):
    folder = train('--epochs', 3)
    (folder / 'notes.txt').write_text('mine')
    with pytest.raises(OptionError, match=r'^--experiment run: .*run holds a run already .*--resume auto.*--overwrite'):
        train('--epochs', 1)
    assert len(read_summary(folder)) == 3
    train('--epochs', 1, '--overwrite')
    assert [row['epoch'] for row in read_summary(folder)] == ['0']
    names = {path.name for path in folder.iterdir()}
    assert names == {
        'args.yaml',
        'summary.csv',
        'notes.txt',
        'last.pth.tar',
        'model_best.pth.tar',
        'checkpoint-0.pth.tar',
    }
    log = follow_log(caplog)
    train('--epochs', 1, '--resume', 'auto')
    assert 'Nothing is left to train: 1 of 1 epochs are done' in log.text


def test_a_finished_run_is_resumed_without_touching_it(train, caplog, capsys):
    folder = train('--epochs', 2)
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    log = follow_log(caplog)
    capsys.readouterr()
    train('--epochs', 2, '--resume', 'auto')
    assert f'Nothing is left to train: 2 of 2 epochs are done in {folder}/last.pth.tar.' in log.text
    assert '--result' not in capsys.readouterr().out
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_going_on_from_an_old_checkpoint_beside_later_ones_is_refused_or_discards_them(train):
    folder = train(*EXACT, '--epochs', 3)
    reference = shutil.copytree(folder, folder.with_name('reference'))
    old = folder / 'checkpoint-0.pth.tar'
    with pytest.raises(OptionError, match=r'^--resume .*0\.pth\.tar: .* is of a later epoch'):
        train(*EXACT, '--epochs', 3, '--resume', old)
    train(*EXACT, '--epochs', 2, '--resume', old, '--overwrite')
    assert sorted(path.name for path in folder.glob('checkpoint-*')) == ['checkpoint-0.pth.tar', 'checkpoint-1.pth.tar']
    train(*EXACT, '--epochs', 3, '--resume', 'auto')
    assert_same_training(folder, reference)


def test_discarding_later_epochs_leaves_no_recovery_checkpoint_of_them_for_resume_auto(train, caplog):
    options = (*EXACT[1:], '--recovery-interval', 3, '--checkpoint-hist', 4)
    folder = train(*options, '--epochs', 3)
    assert {path.name for path in folder.glob('recovery-*')} == {'recovery-1-2.pth.tar', 'recovery-2-2.pth.tar'}
    (folder / 'checkpoint-1.pth.tar').unlink()
    (folder / 'checkpoint-2.pth.tar').unlink()
    first = ('--resume', folder / 'checkpoint-0.pth.tar')
    with pytest.raises(OptionError, match=r'(last|recovery-2-2|model_best)\.pth\.tar is of a later epoch; go on with'):
        train(*options, '--epochs', 3, *first)
    train(*options, '--epochs', 2, *first, '--overwrite', '--lr', 0.01)
    assert {path.name for path in folder.glob('recovery-*')} == {'recovery-1-2.pth.tar'}
    log = follow_log(caplog)
    train(*options, '--epochs', 2, '--resume', 'auto')
    assert f'2 of 2 epochs are done in {folder}/last.pth.tar' in log.text


@pytest.mark.parametrize('kind', ['temporary', 'damaged', 'not finite'])
def test_resume_auto_goes_on_beside_what_it_passes_over(train, kind):
    folder = train(*EXACT, '--epochs', 2)
    state = read_checkpoint(folder / 'last.pth.tar')
    state['epoch'] = 5
    if kind == 'not finite':
        state['state_dict']['fc.weight'][0, 0] = torch.nan
    names = {'temporary': 'tmp', 'damaged': 'recovery-5-1', 'not finite': 'checkpoint-5'}
    path = folder / f'{names[kind]}.pth.tar'
    torch.save(state, path)
    if kind == 'damaged':
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 255
        path.write_bytes(content)
    train(*EXACT, '--epochs', 3, '--resume', 'auto')
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1', '2']


def test_a_refinement_does_not_begin_in_the_folder_of_the_run_that_it_refines(train):
    folder = train(*EXACT, '--epochs', 2)
    refine = (*EXACT[:1], '--epochs', 0, '--refine-epochs', 2, '--lr', 0.1)
    for resume, ways in (
        ('auto', r'experiment\.$'),
        (folder / 'last.pth.tar', r'experiment, or --overwrite, which .*\.$'),
    ):
        with pytest.raises(OptionError, match=r'is of a later epoch; give another --' + ways):
            train(*refine, '--resume', resume)
    refined = train(*refine, '--resume', folder / 'last.pth.tar', experiment='refined')
    with pytest.raises(OptionError, match=r'is of a later epoch; go on with --resume auto, or give another'):
        train(*refine, '--resume', refined / 'checkpoint-0.pth.tar', experiment='refined')


def test_only_the_epochs_that_are_repeated_are_discarded(saver_of_folder, tmp_path):
    saver = saver_of_folder
    saver.save_checkpoint(0, 1.0)
    saver.save_recovery(1, 4)
    saver.save_checkpoint(1, 0.5)
    saver.save_recovery(2, 4)
    (tmp_path / 'checkpoint-9.pth.tar').write_bytes(b'broken')
    whole = {'checkpoint-1.pth.tar', 'last.pth.tar', 'recovery-2-4.pth.tar'}
    assert {path.name for path in folders.later_checkpoints(tmp_path, 1)} == whole
    begun = folders.later_checkpoints(tmp_path, 1, begun=True)
    assert {path.name for path in begun} == {*whole, 'recovery-1-4.pth.tar'}
    folders.check_newest(tmp_path, 2, '--resume x')  # recovery-2-4 holds no whole epoch that is later
    with pytest.raises(OptionError, match=r'is of a later epoch; give another --experiment\.$'):
        folders.check_newest(tmp_path, 0, '--resume last', auto=True, back=True)
    with pytest.raises(OptionError, match=r'; give another --experiment, or --overwrite, which removes it\.$'):
        folders.check_newest(tmp_path, 0, '--resume last', back=True)
    folders.clear(tmp_path, start_epoch=1, keep=tmp_path / 'checkpoint-0.pth.tar')
    left = {path.name for path in tmp_path.glob('*.pth.tar')}
    assert left == {'checkpoint-0.pth.tar', 'checkpoint-9.pth.tar', 'model_best.pth.tar'}


def test_a_second_run_in_the_same_folder_is_refused_until_the_first_one_is_gone(tmp_path):
    command = [sys.executable, '-c', HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == 'held\n'
        with pytest.raises(OptionError, match=rf'^--experiment run: {tmp_path} is in use .*\({first.pid} on '):
            folders.lock(tmp_path, 'run')
        first.kill()
        first.wait(30)
    os.close(folders.lock(tmp_path, 'run'))


def test_runs_without_a_name_that_begin_in_the_same_second_get_folders_of_their_own(train, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=lambda: datetime(2026, 1, 2, 3, 4, 5))
    monkeypatch.setattr('regaug.training.run.datetime', clock)
    for _ in range(2):
        train('--epochs', 1, '--experiment', '')
    names = ['20260102-030405-test_resnet-32', '20260102-030405-test_resnet-32-1']
    assert sorted(path.parent.name for path in tmp_path.rglob('last.pth.tar')) == names


@pytest.mark.parametrize('damage', ['flipped bit', 'not finite', 'not finite average', 'other types', 'temporary'])
@pytest.mark.few(1)
def test_resume_auto_falls_back_to_the_next_older_good_checkpoint(damage, train, caplog):
    folder = train('--epochs', 2, '--model-ema')
    newest = folder / 'last.pth.tar'
    for name in ('model_best.pth.tar', 'checkpoint-1.pth.tar'):
        (folder / name).unlink()
    state = read_checkpoint(newest)
    newest.unlink()
    if damage == 'not finite':
        state['state_dict']['fc.weight'][0, 0] = torch.nan
    elif damage == 'not finite average':
        state['state_dict_ema']['fc.bias'][0] = torch.inf
    elif damage == 'other types':
        state['epoch'] = 'one'
    bad = folder / ('tmp.pth.tar' if damage == 'temporary' else 'last.pth.tar')
    torch.save(state, bad)
    if damage == 'flipped bit':
        content = bytearray(bad.read_bytes())
        with zipfile.ZipFile(bad) as archive:
            largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        content[largest.header_offset + largest.file_size // 2] ^= 4
        bad.write_bytes(content)
    log = follow_log(caplog)
    assert find_newest(folder, finished_only=False) == str(folder / 'checkpoint-0.pth.tar')
    assert ('Skipped: --resume auto' in log.text) is (damage != 'temporary')


@pytest.mark.parametrize('kind', ['file as output', 'file as experiment', 'binary summary'])
def test_what_cannot_be_written_is_known_before_anything_is_built(kind, train, tmp_path, monkeypatch):
    options = ['--resume', 'auto'] if kind == 'binary summary' else []
    if kind == 'file as output':
        (tmp_path / 'taken').write_text('')
        options = ['--output', tmp_path / 'taken']
    elif kind == 'file as experiment':
        (tmp_path / 'run').write_text('')
    else:
        folder = train('--epochs', 1)
        (folder / 'summary.csv').write_bytes(bytes(range(256)))
    with pytest.raises(OptionError, match=r'^--(output|experiment) .*(is a file, not a folder|no readable summary)'):
        train(*options, '--epochs', 2)


def test_the_recovery_checkpoint_that_a_run_goes_on_from_is_not_discarded_with_its_epoch(train):
    folder = train('--epochs', 2, '--recovery-interval', 1, stop_after=1)
    recovery = max(folder.glob('recovery-0-*.pth.tar'), key=lambda path: path.stat().st_mtime)
    (folder / 'checkpoint-0.pth.tar').unlink()
    train('--epochs', 2, '--resume', recovery, '--overwrite')
    assert recovery.exists()
    assert (folder / 'checkpoint-1.pth.tar').exists()
