"""Splits that are missing or mistyped: an error that names those there are, where timm reads the whole data folder."""

import os
import tarfile

import pytest
from PIL import Image
from timm.data import create_dataset as create_timm_dataset

import train as train_script
import validate
from regaug.data.datasets import create_dataset
from regaug.data.splits import check_splits
from regaug.errors import OptionError
from regaug.training import run as training_run
from tests.helpers.training import train_args, train_argv

pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files
NAMES = ['', 'torch/image_folder']


def make_tree(root, *splits, classes=('ape', 'bee')):
    """A folder with an image in each class of each split; without splits the folder holds the classes themselves."""
    for split in splits or ('',):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            Image.new('RGB', (8, 8)).save(folder / 'one.png')
    return root


def files_of(dataset):
    """Names of the image files that a data set reads."""
    return sorted(str(sample[0]) for sample in getattr(dataset, 'reader', dataset).samples)


def run_args(root, *options):
    return train_args('--dataset', '', '--data-dir', root, *options)


# --- one split ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    ('there', 'asked'),
    [
        (('train', 'val'), 'validatoin'),
        (('train', 'test'), 'validation'),
        (('test',), 'val'),
        (('val',), 'train'),
        (('training_set', 'holdout'), 'train'),
    ],
)
def test_a_split_that_is_not_there_is_an_error_that_names_those_there_are(tmp_path, name, there, asked):
    make_tree(tmp_path, *there)
    with pytest.raises(OptionError) as caught:
        create_dataset(name, str(tmp_path), asked, option='--val-split')
    assert str(caught.value) == (
        f'--val-split {asked}: there is no such folder in {tmp_path}, there are {", ".join(sorted(there))}.'
    )


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('asked', ['train', 'training', 'val', 'valid', 'validation', 'eval', 'holdout', ''])
def test_splits_that_are_there_are_found_as_timm_finds_them(tmp_path, name, asked):
    root = make_tree(tmp_path, 'training', 'valid', 'holdout') if asked else make_tree(tmp_path)
    found = files_of(create_dataset(name, str(root), asked))
    assert found == files_of(create_timm_dataset(name, root=str(root), split=asked))
    assert len(found) == 2


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('asked', ['validation', 'train', 'val'])
def test_a_folder_whose_sub_folders_are_the_classes_is_the_split_itself(tmp_path, name, asked):
    root = make_tree(tmp_path, classes=('ape', 'bee', 'exam'))
    assert len(files_of(create_dataset(name, str(root), asked))) == 3


def test_classes_beside_a_split_are_not_taken_for_the_split(tmp_path):
    make_tree(make_tree(tmp_path), 'val')
    with pytest.raises(OptionError, match=r'--split train: there is no such folder in .*, there are ape, bee, val'):
        create_dataset('', str(tmp_path), 'train')


def test_a_slice_of_a_folder_is_an_error(tmp_path):
    with pytest.raises(OptionError, match=r'--split val\[:9\]: folders are read whole'):
        create_dataset('', str(make_tree(tmp_path, 'train', 'val')), 'val[:9]')


@pytest.mark.parametrize('name', ['torch/cifar10', 'torch/MNIST', 'torch/qmnist'])
@pytest.mark.parametrize('split', ['trian', 'validatoin', ''])
def test_torchvisions_sets_of_two_splits_take_no_other_name_for_the_test_images(tmp_path, name, split):
    with pytest.raises(OptionError, match=rf'--split {split}: --dataset {name} has the splits train and test'):
        create_dataset(name, str(tmp_path), split)


# --- .tar files ---------------------------------------------------------------------------------------------------


def pack(folder, path, *names):
    """A .tar file of some folders in a folder."""
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, 'w') as archive:
        for name in names:
            archive.add(folder / name, arcname=name)
    return str(path)


def test_a_tar_file_of_several_splits_is_an_error_unless_it_is_asked_for_as_a_whole(tmp_path):
    path = pack(make_tree(tmp_path / 'data', 'train', 'val'), tmp_path / 'all.tar', 'train', 'val')
    with pytest.raises(OptionError, match=rf'--split validation: timm reads {path} as a whole, and there is train'):
        create_dataset('', path, 'validation')
    assert len(create_dataset('', path, '')) == 4


def test_a_tar_file_of_the_training_split_is_not_evaluated(tmp_path):
    path = pack(make_tree(tmp_path / 'data', 'train'), tmp_path / 'train.tar', 'train')
    with pytest.raises(OptionError, match='there is train in it'):
        create_dataset('', path, 'val')
    assert len(create_dataset('', path, 'training')) == 2


def test_a_tar_file_of_classes_is_the_split_of_any_usual_name(tmp_path):
    path = pack(make_tree(tmp_path / 'data'), tmp_path / 'val.tar', 'ape', 'bee')
    assert len(create_dataset('', path, 'validation')) == 2
    with pytest.raises(OptionError, match=rf'--split validatoin: the .tar file {path} has no splits'):
        create_dataset('', path, 'validatoin')


def test_tar_files_in_the_data_folder_are_splits_by_their_file_names(tmp_path):
    root = tmp_path / 'packed'
    for split in ('train', 'val'):
        pack(make_tree(tmp_path / split), root / f'{split}.tar', 'ape', 'bee')
    assert len(create_dataset('', str(root), 'val.tar')) == 2
    with pytest.raises(OptionError, match=r'there are train.tar, val.tar'):
        create_dataset('', str(root), 'val')


# --- training and evaluation are apart ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('splits', 'train_split', 'val_split', 'shared'),
    [
        ((), 'train', 'validation', '.'),  # the data folder is that of the training images
        ((), '', 'val', '.'),
        (('train', 'val'), 'train', 'train', 'train'),
        (('train', 'val'), '', 'val', 'val'),
        (('train', 'val'), 'validation', 'valid', 'val'),
        (('train', 'val'), 'train', '.', 'train'),
    ],
)
def test_training_images_are_not_evaluated(tmp_path, splits, train_split, val_split, shared):
    args = run_args(make_tree(tmp_path, *splits), '--train-split', train_split, '--val-split', val_split)
    with pytest.raises(OptionError) as caught:
        check_splits(args)
    assert str(caught.value).startswith(f'--val-split {val_split}: ')
    assert f'those in {os.path.realpath(tmp_path / shared)};' in str(caught.value)


def test_a_link_to_the_training_images_is_not_evaluated(tmp_path):
    make_tree(tmp_path, 'train')
    (tmp_path / 'val').symlink_to('train')
    with pytest.raises(OptionError, match=r'--val-split val: .* --train-split .train.'):
        check_splits(run_args(tmp_path, '--train-split', 'train', '--val-split', 'val'))


def test_a_tar_file_is_not_both_trained_and_evaluated_on(tmp_path):
    path = pack(make_tree(tmp_path / 'data'), tmp_path / 'train.tar', 'ape', 'bee')
    with pytest.raises(OptionError, match=r'--val-split validation: evaluation would read images of --train-split'):
        check_splits(run_args(path))
    check_splits(run_args(path, '--val-split', ''))


def test_splits_that_are_apart_and_training_without_evaluation_are_accepted(tmp_path):
    root = make_tree(tmp_path / 'data', 'train', 'val', 'train_more')
    for train_split, val_split in (('train', 'val'), ('training', 'eval'), ('train', ''), ('train', 'train_more')):
        check_splits(run_args(root, '--train-split', train_split, '--val-split', val_split))
    check_splits(run_args(make_tree(tmp_path / 'flat'), '--val-split', ''))


# --- through the scripts ------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError('a model is built')

    monkeypatch.setattr(training_run, 'build_model', fail)
    monkeypatch.setattr(validate, 'build_model', fail)


@pytest.mark.parametrize(
    ('line', 'message'),
    [
        ('--val-split validatoin', r'--val-split validatoin: there is no such folder in .*, there are train, val\.'),
        ('--train-split trian', r'--train-split trian: there is no such folder in .*, there are train, val\.'),
        ('--val-split train', r'--val-split train: evaluation would read images of --train-split .train.'),
    ],
)
def test_train_refuses_before_a_model_is_built(image_folder, tmp_path, no_model, line, message):
    with pytest.raises(OptionError, match=message):
        train_script.main(train_argv(image_folder, tmp_path / 'out', *line.split()))
    assert not (tmp_path / 'out').exists()


def test_validate_refuses_before_a_model_is_built(image_folder, no_model, tmp_path):
    (tmp_path / 'weights.pth').touch()
    argv = ['--model', 'test_resnet', '--checkpoint', str(tmp_path / 'weights.pth'), '--device', 'cpu']
    with pytest.raises(OptionError, match=r'--split validatoin: there is no such folder in .*, there are train, val\.'):
        validate.main([str(image_folder), *argv, '--split', 'validatoin'])
    with pytest.raises(AssertionError, match='a model is built'):
        validate.main([str(image_folder / 'val'), *argv])
