"""CIFAR, STL-10 and Tiny-ImageNet, read from small files in the formats in which they are published."""

import pickle

import numpy as np
import pytest
import torchvision
from PIL import Image

import train as train_script
from regaug.data.datasets import class_index, create_dataset, create_datasets
from regaug.data.subsets import sample_labels
from regaug.errors import OptionError
from tests.helpers.data import BYTES_CONFIG, noise_images
from tests.helpers.training import read_summary, train_args, train_argv

pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files
PER_FILE = 20


@pytest.fixture
def small_files(monkeypatch):
    """torchvision reads files whose check sums are not the published ones."""
    for dataset in (torchvision.datasets.CIFAR10, torchvision.datasets.STL10):
        monkeypatch.setattr(dataset, '_check_integrity', lambda self: True)
    monkeypatch.setattr('torchvision.datasets.cifar.check_integrity', lambda *args: True)


def write_cifar(root, kind):
    """`PER_FILE` images in each file of CIFAR-10 or CIFAR-100, with labels 0, 1, 0, 1, ..."""
    source = {'cifar10': torchvision.datasets.CIFAR10, 'cifar100': torchvision.datasets.CIFAR100}[kind]
    folder, key = root / source.base_folder, 'labels' if kind == 'cifar10' else 'fine_labels'
    folder.mkdir(parents=True)
    for number, (name, _) in enumerate([*source.train_list, *source.test_list]):
        images = noise_images(PER_FILE, seed=number).transpose(0, 3, 1, 2).reshape(PER_FILE, -1)
        content = {'data': images, key: [index % 2 for index in range(PER_FILE)]}
        (folder / name).write_bytes(pickle.dumps(content))
    names = {source.meta['key']: ['cat', 'dog']}
    (folder / source.meta['filename']).write_bytes(pickle.dumps(names))
    return root


def write_stl10(root):
    folder = root / 'stl10_binary'
    folder.mkdir(parents=True)
    for name, seed in (('train', 1), ('test', 2), ('unlabeled', 3)):
        # Files hold each colour column by column.
        noise_images(PER_FILE, 96, 96, seed=seed).transpose(0, 3, 2, 1).tofile(folder / f'{name}_X.bin')
        if name != 'unlabeled':
            np.tile([1, 2], PER_FILE // 2).astype(np.uint8).tofile(folder / f'{name}_y.bin')
    (folder / 'class_names.txt').write_text('airplane\nbird\n')
    return root


def write_tiny_imagenet(root):
    classes = ['n02000000', 'n01000000', 'n03000000']
    root.mkdir()
    (root / 'wnids.txt').write_text('\n'.join(classes) + '\n')
    (root / 'words.txt').write_text('n01000000\tgoldfish\n')
    for number, name in enumerate(classes):
        folder = root / 'train' / name / 'images'
        folder.mkdir(parents=True)
        (root / 'train' / name / f'{name}_boxes.txt').write_text('')
        for index, pixels in enumerate(noise_images(8, 64, 64, seed=number)):
            Image.fromarray(pixels).save(folder / f'{name}_{index}.JPEG')
    (root / 'val' / 'images').mkdir(parents=True)
    rows = []
    for index, pixels in enumerate(noise_images(6, 64, 64, seed=9)):
        Image.fromarray(pixels).save(root / 'val' / 'images' / f'val_{index}.JPEG')
        rows.append(f'val_{index}.JPEG\t{classes[index % 3]}\t0\t0\t62\t62\n')
    (root / 'val' / 'val_annotations.txt').write_text(''.join(rows))
    return root


# --- what is read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('kind', 'files'), [('cifar10', 5), ('cifar100', 1)])
def test_cifar_is_read_by_split(small_files, tmp_path, kind, files):
    write_cifar(tmp_path / 'data', kind)
    args = train_args('--dataset', f'torch/{kind}', '--data-dir', tmp_path / 'data')
    train_set, eval_set = create_datasets(args, BYTES_CONFIG)
    assert (len(train_set), len(eval_set)) == (files * PER_FILE, PER_FILE)
    np.testing.assert_array_equal(np.asarray(train_set[3][0]), noise_images(PER_FILE, seed=0)[3])
    assert class_index(train_set) == {'cat': 0, 'dog': 1}


@pytest.mark.parametrize(
    ('split', 'seed', 'labels'),
    [('train', 1, [0, 1]), ('validation', 2, [0, 1]), ('test', 2, [0, 1]), ('unlabeled', 3, [-1, -1])],
)
def test_stl10_is_read_by_split(small_files, tmp_path, split, seed, labels):
    dataset = create_dataset('torch/stl10', str(write_stl10(tmp_path / 'data')), split)
    np.testing.assert_array_equal(np.asarray(dataset[5][0]), noise_images(PER_FILE, 96, 96, seed=seed)[5])
    dataset.data = None  # labels are read without images
    assert sample_labels(dataset).tolist() == labels * (PER_FILE // 2)
    assert class_index(dataset) == {'airplane': 0, 'bird': 1}


def test_an_unknown_split_of_stl10_is_an_error(small_files, tmp_path):
    with pytest.raises(OptionError, match=r"'torch/stl10'.*split 'extra'"):
        create_dataset('torch/stl10', str(write_stl10(tmp_path / 'data')), 'extra')


def test_tiny_imagenet_is_read_as_it_is_unpacked(tmp_path):
    root = write_tiny_imagenet(tmp_path / 'tiny')
    args = train_args('--dataset', '', '--data-dir', root)
    train_set, eval_set = create_datasets(args, BYTES_CONFIG)
    assert class_index(train_set) == class_index(eval_set) == {'n01000000': 0, 'n02000000': 1, 'n03000000': 2}
    assert [train_set[index][1] for index in range(0, 24, 8)] == [0, 1, 2]
    assert train_set.filename(9) == 'train/n02000000/images/n02000000_1.JPEG'
    assert [eval_set[index][1] for index in range(6)] == [1, 0, 2, 1, 0, 2]
    with Image.open(root / 'val' / 'images' / 'val_4.JPEG') as image:
        np.testing.assert_array_equal(np.asarray(eval_set[4][0]), np.asarray(image))
    assert sample_labels(train_set.dataset).tolist() == [0] * 8 + [1] * 8 + [2] * 8


def test_a_split_of_tiny_imagenet_without_labels_is_an_error(tmp_path):
    root = write_tiny_imagenet(tmp_path / 'tiny')
    with pytest.raises(OptionError, match="'test' of Tiny-ImageNet"):
        create_dataset('', str(root), 'test')


def test_tiny_imagenet_without_images_is_an_error(tmp_path):
    root = write_tiny_imagenet(tmp_path / 'tiny')
    for path in root.glob('train/*/images/*.JPEG'):
        path.unlink()
    with pytest.raises(OptionError, match=r'no image in .*train'):
        create_dataset('', str(root), 'train')


# --- with every method --------------------------------------------------------------------------------------------

METHODS = {
    'gradaug': ['--gradaug', 2, '--gradaug-min-width', 0.5],
    'maxup': ['--maxup', 2, '--maxup-warmup-epochs', 0, '--maxup-aug', 'cutout', '--cutout-size', 8],
    'views': ['--maxup', 2, '--maxup-warmup-epochs', 0, '--maxup-aug', 'views', '--aa', 'tv-cifar10'],
    'uada': ['--uada', '--uada-groups', 'crop', 'flip', 'policy', 'cutout', '--pad-crop', 4],
    'manifold': ['--manifold-mixup', 1.0],
    'refine': ['--mixup', 1.0, '--aa', 'trivial', '--refine-epochs', 1],
    'few labels': ['--labels-per-class', 2, '--updates-per-epoch', 2, '--batch-size', 4],
}


PAIRS = [(data, method) for data in ('torch/stl10', 'tiny-imagenet') for method in METHODS]
PAIRS += [('torch/cifar10', 'uada'), ('torch/cifar10', 'gradaug'), ('torch/cifar100', 'few labels')]


@pytest.mark.parametrize(('data', 'method'), PAIRS)
@pytest.mark.few(5)
def test_data_set_works_with_the_method(small_files, tmp_path, data, method):
    kind = data.removeprefix('torch/')
    root = tmp_path / 'data'
    if kind == 'stl10':
        write_stl10(root)
    elif kind == 'tiny-imagenet':
        write_tiny_imagenet(root)
    else:
        write_cifar(root, kind)
    name, classes = (data, 2) if data.startswith('torch/') else ('', 3)
    options = ['--dataset', name, '--val-split', 'validation', '--num-classes', classes, '--epochs', 1]
    argv = train_argv(root, tmp_path, *options, *METHODS[method])
    assert train_script.main([*argv, '--experiment', 'run']) == 0
    assert float(read_summary(tmp_path / 'run')[-1]['train_loss']) > 0
