"""Files of weights are read whole and without running code, or refused by option, file and reason."""

import os
import pickle

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

import train as train_script
from regaug import files
from regaug.errors import OptionError
from regaug.files import check_weights, load_weights
from tests.helpers.checkpoints import Dangerous, create_saver
from tests.helpers.training import make_model, read_checkpoint, train_argv


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


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('mmap', [False, True])
def test_a_missing_file_is_named(tmp_path, mmap):
    with pytest.raises(OptionError, match=r'--resume .*/gone\.pth: there is no such file'):
        files.read_checkpoint(tmp_path / 'gone.pth', '--resume', mmap=mmap)


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('share', [0, 1e-5, 0.01, 0.5, 0.9, 0.999])
def test_a_file_cut_off_anywhere_is_called_truncated(saved, tmp_path, mmap, share):
    path = tmp_path / 'short.pth.tar'
    path.write_bytes(saved.read_bytes()[: int(share * saved.stat().st_size)])
    with pytest.raises(OptionError, match=r'--resume .*/short\.pth\.tar: truncated, or no checkpoint') as caught:
        files.read_checkpoint(path, '--resume', mmap=mmap)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize('mmap', [False, True])
def test_a_whole_file_is_read(saved, mmap):
    checkpoint = files.read_checkpoint(saved, '--resume', mmap=mmap)
    assert (checkpoint['epoch'], checkpoint['args'].model) == (3, 'test_resnet')


@pytest.mark.parametrize('mmap', [False, True])
@pytest.mark.parametrize('zipped', [False, True])
def test_code_in_a_foreign_file_is_refused_and_never_run(tmp_path, mmap, zipped):
    path, victim = tmp_path / 'foreign.pth', tmp_path / 'victim'
    torch.save({'state_dict': Dangerous(victim)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(OptionError, match=r'--initial-checkpoint .*foreign\.pth'):
        files.read_checkpoint(path, '--initial-checkpoint', mmap=mmap)
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
        files.read_checkpoint(path, '--resume', mmap=mmap)


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(OptionError, match='--resume'):
        files.read_checkpoint(tmp_path, '--resume')


@pytest.mark.parametrize(('value', 'kind'), [([1, 2], 'list'), (torch.zeros(3), 'Tensor')])
def test_something_else_than_a_dict_is_refused(tmp_path, value, kind):
    torch.save(value, tmp_path / 'other.pth')
    with pytest.raises(OptionError, match=f'holds a {kind}, not a dict of weights'):
        files.read_checkpoint(tmp_path / 'other.pth', '--resume')


@pytest.mark.parametrize('mmap', [False, True])
def test_files_of_pytorchs_old_format_are_read(model, tmp_path, mmap):
    path = tmp_path / 'old.pth'
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    assert list(files.read_checkpoint(path, '--resume', mmap=mmap)) == list(model.state_dict())


# --- comparing ----------------------------------------------------------------------------------------------------


def test_weights_that_fit_are_accepted(model):
    assert check_weights(model.state_dict(), model, '--resume', 'x.pth') is None


@pytest.mark.parametrize('bias, hint', [(7, True), (9, False)])
def test_a_forgotten_number_of_classes_is_told(model, bias, hint):
    weights = {
        **model.state_dict(),
        'fc.weight': torch.zeros(7, model.fc.in_features),
        'fc.bias': torch.zeros(bias),
    }
    with pytest.raises(OptionError, match=r'does not fit ResNet: 2 of another shape') as caught:
        check_weights(weights, model, '--checkpoint', 'x.pth')
    assert str(caught.value).endswith(' With --num-classes 7 it would.') == hint
    weights = {**model.state_dict(), 'fc.weight': torch.zeros(7, 5), 'fc.bias': torch.zeros(7)}
    with pytest.raises(OptionError) as caught:
        check_weights(weights, model, '--checkpoint', 'x.pth')
    assert '--num-classes' not in str(caught.value)


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
    assert '--num-classes' not in message


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


def test_a_moving_average_that_is_asked_for_and_not_there_is_told(model, tmp_path, caplog):
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'plain.pth')
    for use_ema, count in ((False, 0), (True, 1)):
        load_weights(model, tmp_path / 'plain.pth', use_ema=use_ema, option='--checkpoint')
        told = f'--checkpoint {tmp_path}/plain.pth: it has no moving average, its plain weights are taken.'
        assert caplog.messages == [told] * count


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
@pytest.mark.parametrize(
    ('kind', 'suffix'), [('truncated', '.pth'), ('code', '.ckpt'), ('other model', '.safetensors')]
)
def test_train_refuses_an_initial_checkpoint_that_cannot_be_used(image_folder, tmp_path, kind, suffix):
    path = tmp_path / f'weights{suffix}'
    write_bad(kind, make_model('test_resnet', torch.float32), path)
    with pytest.raises(OptionError) as caught:
        train_script.main(train_argv(image_folder, tmp_path / 'out', '--initial-checkpoint', path))
    message = str(caught.value)
    assert message.startswith(f'--initial-checkpoint {path}: ')
    assert '\n' not in message
    if kind == 'other model':
        assert 'does not fit ResNet: ' in message
        assert 'conv1.0.weight' in message
    assert not (tmp_path / 'out').exists()
    assert not (tmp_path / 'victim').exists()


def test_an_initial_checkpoint_of_the_old_format_starts_a_run(train, model, tmp_path):
    path = tmp_path / 'old.pth'
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    folder = train('--initial-checkpoint', path, '--epochs', 1, '--lr', 1e-9)
    trained = read_checkpoint(folder / 'last.pth.tar')['state_dict']
    torch.testing.assert_close(trained['fc.weight'], model.fc.weight.detach(), atol=1e-6, rtol=0)


def test_numpy_weights_of_a_model_that_cannot_read_them_are_refused(model, tmp_path):
    np.savez(tmp_path / 'weights.npz', a=np.zeros(3))
    with pytest.raises(OptionError, match=r'--checkpoint .*weights\.npz: ResNet cannot read NumPy'):
        load_weights(model, tmp_path / 'weights.npz', use_ema=False, option='--checkpoint')
