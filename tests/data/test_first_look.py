"""A first look at the data before anything is trained: what cannot be read, links in a circle, pipes, downloads."""

import os
import shutil
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import train as train_script
from regaug.data.datasets import create_dataset
from regaug.data.folders import check_tree
from regaug.data.probe import check_samples
from regaug.errors import OptionError
from tests.helpers.data import noise_set
from tests.helpers.training import train_argv

pytest_plugins = ['tests.helpers.data_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


# --- a first look ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_a_folder_of_unreadable_images_is_an_error_with_the_reason(photos, caplog, name):
    for path in photos.glob('train/*/*.png'):
        path.write_bytes(b'')
    with pytest.raises(OptionError) as caught:
        check_samples(create_dataset(name, str(photos), 'train'), 3, '--data-dir photos')
    message = str(caught.value)
    assert message.startswith('--data-dir photos: none of the 6 images tried can be read, the last is ')
    assert '5.png (' in message
    assert 'cannot identify image file' in message
    assert caplog.text == ''


def test_one_readable_image_among_the_first_is_enough(photos):
    for path in sorted(photos.glob('train/*/*.png'))[:-1]:
        path.write_bytes(b'')
    check_samples(create_dataset('', str(photos), 'train'), 3, '--data-dir photos')


def test_the_first_look_draws_nothing_and_leaves_transforms_in_place(photos):
    dataset = create_dataset('', str(photos), 'train', transform=lambda image: torch.rand(3))
    state, transform = torch.get_rng_state(), dataset.transform
    check_samples(dataset, 3, '')
    assert torch.equal(torch.get_rng_state(), state)
    assert dataset.transform is transform


def test_the_first_look_leaves_no_tar_file_open_that_workers_would_share(photos):
    path = shutil.make_archive(str(photos.parent / 'packed'), 'tar', photos / 'train')
    dataset = create_dataset('', path, 'train')
    check_samples(dataset, 3, '')
    assert dataset.reader.tar_state.tf is None
    assert dataset.reader.cache_tarfiles
    labels = [int(label) for _, batch in DataLoader(with_tensors(dataset), num_workers=2) for label in batch]
    assert labels == [0, 0, 0, 1, 1, 1]


def with_tensors(dataset):
    dataset.transform = lambda image: torch.from_numpy(np.array(image))
    return dataset


def test_images_of_another_number_of_channels_are_an_error():
    with pytest.raises(
        OptionError, match=r'--data-dir x: the images have 3 channels, the model takes 1 \(--in-chans\)'
    ):
        check_samples(noise_set(4), 1, '--data-dir x')


@pytest.mark.parametrize(
    ('line', 'parts'),
    [
        ('--data-dir dead', ['--data-dir dead --train-split train: none of the 6 images tried can be read']),
        ('--in-chans 4', ['--in-chans 4', 'mode L have 1 channels, the model takes 4']),
        ('--in-chans 1 --input-img-mode RGB', ['--input-img-mode RGB', '3 channels, the model takes 1']),
        ('--input-size 1 32 32 --input-img-mode RGBA', ['--input-img-mode RGBA', '4 channels, the model takes 1']),
    ],
)
def test_train_refuses_data_that_cannot_be_trained_on(image_folder, photos, tmp_path, monkeypatch, line, parts):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos / 'train', 'dead/train')
    shutil.copytree(photos / 'train', 'dead/val')
    for path in (tmp_path / 'dead').glob('train/*/*.png'):
        path.write_bytes(b'')
    argv = [part for part in train_argv(image_folder, 'out') if part != '--input-size'][:-3]
    with pytest.raises(OptionError) as caught:
        train_script.main([*argv, '--img-size', '32', *line.split()])
    message = str(caught.value)
    assert '\n' not in message
    assert all(part in message for part in parts), message
    assert not (tmp_path / 'out').exists()


# --- folders --------------------------------------------------------------------------------------------------------


def test_a_link_back_into_its_own_folder_is_an_error_that_names_it(photos):
    (photos / 'train' / 'class0' / 'again').symlink_to('..')
    with pytest.raises(
        OptionError, match=rf'--data-dir {photos}/train: the link .*/class0/again leads back to .*/train'
    ):
        create_dataset('', str(photos), 'train')


def test_two_links_that_lead_to_one_another_are_an_error(photos, tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (photos / 'train' / 'out').symlink_to(tmp_path / 'elsewhere')
    (tmp_path / 'elsewhere' / 'in').symlink_to(photos / 'train')
    with pytest.raises(OptionError, match=r'the link .*/out/in leads back'):
        create_dataset('torch/image_folder', str(photos), 'train')


def test_links_that_lead_elsewhere_are_followed(photos, tmp_path):
    (photos / 'train' / 'class0').rename(tmp_path / 'stored')
    (photos / 'train' / 'class0').symlink_to(tmp_path / 'stored')
    (photos / 'train' / 'class2').symlink_to(tmp_path / 'stored')  # the same images as another class: no circle
    (photos / 'train' / 'itself').symlink_to('itself')
    (photos / 'train' / 'class1' / 'gone.png').symlink_to('nowhere')
    assert len(create_dataset('', str(photos), 'train')) == 10


def test_pipes_and_sockets_named_as_images_are_errors(photos, monkeypatch):
    os.mkfifo(photos / 'train' / 'class0' / 'pipe.txt')
    check_tree(str(photos), {'.png'})
    os.mkfifo(photos / 'train' / 'class0' / 'pipe.PNG')
    with pytest.raises(OptionError, match=r'the image .*/pipe\.PNG is no regular file'):
        create_dataset('', str(photos), 'train')
    (photos / 'train' / 'class0' / 'pipe.PNG').unlink()
    monkeypatch.chdir(photos)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind('train/class1/socket.png')
        (photos / 'train' / 'class0' / 'link.png').symlink_to('../class1/socket.png')
        with pytest.raises(OptionError, match=r'(socket|link)\.png is no regular file'):
            create_dataset('', str(photos), 'train')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every folder')
def test_a_folder_that_may_not_be_read_is_an_error(photos):
    (photos / 'train' / 'class1').chmod(0)
    with pytest.raises(OptionError, match=r'class1 cannot be read \(Permission denied\)'):
        create_dataset('', str(photos), 'train')


def test_a_folder_that_cannot_be_read_is_an_error(photos, monkeypatch):
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('class1'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(OptionError, match=r'class1 cannot be read \(Permission denied\)'):
        create_dataset('', str(photos), 'train')


# --- downloads ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['torch/cifar10', 'torch/mnist', 'torch/stl10'])
def test_a_download_without_a_network_is_one_line(tmp_path, monkeypatch, name):
    def fail(*args, **kwargs):
        raise urllib.error.URLError('Temporary failure\nin name resolution')

    monkeypatch.setattr(urllib.request, 'urlopen', fail)
    with pytest.raises(OptionError) as caught:
        create_dataset(name, str(tmp_path / 'new'), 'train', download=True)
    message = str(caught.value)
    assert message.startswith(f"--dataset '{name}' --data-dir {tmp_path}/new --dataset-download, split 'train': ")
    assert '\n' not in message
