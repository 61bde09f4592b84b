"""Data sets by name and folder, the classes of training and evaluation data, mixing, evaluation loaders."""

import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import FastCollateMixup, Mixup
from timm.data.loader import fast_collate
from timm.data.naflex_mixup import NaFlexMixup

from regaug.data.datasets import check_classes, create_dataset, create_datasets
from regaug.data.loaders import create_eval_loader, create_mixup, mixing_active
from regaug.data.samples import Samples
from regaug.errors import OptionError
from regaug.training.phases import phase_at
from tests.helpers.data import BYTES_CONFIG, as_bytes, make_train_data, noise_images, noise_set
from tests.helpers.training import CPU, train_args

pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files


def make_folder(root, names, count=2):
    """One folder of `count` small images for each name."""
    for index, pixels in enumerate(noise_images(count * len(names), 8, 8)):
        path = root / names[index // count] / f'{index:03d}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


# --- folders ------------------------------------------------------------------------------------------------------


def test_folders_are_found_by_the_names_of_their_splits(image_folder):
    args = train_args('--dataset', '', '--data-dir', image_folder, '--train-split', 'train', '--val-split', 'val')
    train_set, eval_set = create_datasets(args, BYTES_CONFIG)
    assert (len(train_set), len(eval_set)) == (64, 16)
    assert isinstance(train_set, Samples)
    assert train_set.filename(0) == 'class0/000.png'
    assert [eval_set[index][1] for index in range(0, 16, 4)] == [0, 1, 2, 3]


def test_without_a_validation_split_there_is_no_evaluation_set(image_folder):
    args = train_args('--dataset', '', '--data-dir', image_folder, '--val-split', '')
    assert create_datasets(args, BYTES_CONFIG)[1] is None


@pytest.mark.parametrize(('channels', 'mode'), [(3, 'RGB'), (1, 'L')])
def test_images_have_as_many_channels_as_the_model(image_folder, channels, mode):
    args = train_args('--dataset', '', '--data-dir', image_folder, '--train-split', 'train', '--val-split', 'val')
    for dataset in create_datasets(args, {**BYTES_CONFIG, 'input_size': (channels, 32, 32)}):
        assert dataset[0][0].mode == mode


def test_an_image_mode_given_by_the_user_wins(image_folder):
    folder = ('--dataset', '', '--data-dir', image_folder, '--train-split', 'train', '--val-split', 'val')
    args = train_args(*folder, '--input-img-mode', 'YCbCr')
    assert [dataset[0][0].mode for dataset in create_datasets(args, BYTES_CONFIG)] == ['YCbCr', 'YCbCr']


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_a_missing_folder_is_an_error_that_names_it(tmp_path, name):
    with pytest.raises(OptionError, match=r'--data-dir .*/gone: there is no such folder'):
        create_dataset(name, str(tmp_path / 'gone'), 'train')


def test_no_folder_at_all_is_an_error():
    with pytest.raises(OptionError, match=r'--data-dir None'):
        create_dataset('', None, 'train')


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
@pytest.mark.parametrize('content', ['nothing', 'empty class', 'no images'])
def test_a_folder_without_images_is_an_error_that_names_folder_and_split(tmp_path, name, content):
    folder = tmp_path / 'data' / 'train'
    folder.mkdir(parents=True)
    if content != 'nothing':
        (folder / 'cat').mkdir()
    if content == 'no images':
        (folder / 'cat' / 'notes.txt').write_text('no image')
    with pytest.raises(OptionError, match=r"data, split 'train'") as caught:
        create_dataset(name, str(tmp_path / 'data'), 'train')
    assert repr(name) in str(caught.value)


def test_the_digits_need_no_folder_and_have_two_splits():
    assert len(create_dataset('regaug/digits', None, 'train', input_img_mode='L')) == 1437
    with pytest.raises(OptionError, match="'test'"):
        create_dataset('regaug/digits', None, 'test')


# --- classes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def animals(tmp_path):
    """Training images of three animals; evaluation images as each test needs them."""
    make_folder(tmp_path / 'train', ['ape', 'bee', 'cat'])
    return tmp_path


def check(folder, num_classes, *, given):
    sets = [create_dataset('', str(folder), split) for split in ('train', 'val')]
    check_classes(*map(Samples, sets), num_classes, given=given)


def test_classes_that_fit_are_accepted_without_a_word(animals, caplog):
    make_folder(animals / 'val', ['ape', 'bee', 'cat'])
    check(animals, 3, given=True)
    check(animals, 3, given=False)
    assert caplog.text == ''


@pytest.mark.parametrize('num_classes', [2, 4, 1000])
def test_a_number_of_classes_that_the_data_contradicts_is_an_error_with_both_numbers(animals, num_classes):
    make_folder(animals / 'val', ['ape', 'bee', 'cat'])
    with pytest.raises(OptionError, match=rf'--num-classes {num_classes}: .* 3 classes'):
        check(animals, num_classes, given=True)


def test_a_model_with_more_outputs_than_classes_is_warned_about_when_nobody_asked_for_it(animals, caplog):
    make_folder(animals / 'val', ['ape', 'bee', 'cat'])
    check(animals, 1000, given=False)
    assert '1000 outputs for 3 classes; --num-classes 3' in caplog.text
    with pytest.raises(OptionError, match=r'--num-classes 2: .* 3 classes'):
        check(animals, 2, given=False)


@pytest.mark.parametrize(
    ('names', 'conflict'),
    [(['ape', 'cat'], r"'cat' has index 1 there and 2 in training"), (['bee'], r"'bee' has index 0 there and 1 in")],
)
def test_an_evaluation_folder_that_lacks_a_class_is_an_error_where_indices_shift(animals, names, conflict):
    make_folder(animals / 'val', names)
    with pytest.raises(OptionError, match=conflict) as caught:
        check(animals, 3, given=True)
    assert '--val-split' in str(caught.value)
    assert '--class-map' in str(caught.value)


def test_an_evaluation_folder_that_lacks_the_last_class_is_accepted(animals, caplog):
    make_folder(animals / 'val', ['ape', 'bee'])
    check(animals, 3, given=True)
    assert caplog.text == ''


def test_a_class_that_is_only_in_the_evaluation_data_is_an_error(animals):
    make_folder(animals / 'val', ['ape', 'bee', 'cat', 'dog'])
    with pytest.raises(OptionError, match=r"--val-split.*'dog'"):
        check(animals, 3, given=True)


def test_a_class_map_settles_the_indices(animals):
    make_folder(animals / 'val', ['bee'])
    (animals / 'map.txt').write_text('ape\nbee\ncat\n')
    sets = [create_dataset('', str(animals), split, class_map=str(animals / 'map.txt')) for split in ('train', 'val')]
    check_classes(*map(Samples, sets), 3, given=True)
    assert sets[1][0][1] == 1


@pytest.mark.parametrize('place', ['.', 'train'])
def test_a_class_map_is_found_in_the_data_folder_and_in_the_folder_of_a_split(animals, place):
    make_folder(animals / 'val', ['bee'])
    (animals / place / 'map.txt').write_text('ape\nbee\ncat\n')
    args = train_args('--dataset', '', '--data-dir', animals, '--val-split', '', '--class-map', 'map.txt')
    assert [create_datasets(args, BYTES_CONFIG)[0][index][1] for index in range(6)] == [0, 0, 1, 1, 2, 2]


def test_classes_of_a_tar_file_and_of_torchvisions_folder_are_checked_too(animals):
    with tarfile.open(animals / 'train.tar', 'w') as archive:
        archive.add(animals / 'train', arcname='.')
    tar_set = create_dataset('', str(animals / 'train.tar'), '')
    torch_set = create_dataset('torch/image_folder', str(animals), 'train')
    for dataset in (tar_set, torch_set):
        with pytest.raises(OptionError, match=r'--num-classes 4: .* 3 classes'):
            check_classes(Samples(dataset), None, 4, given=True)


def test_a_data_set_that_knows_no_class_names_is_not_checked(caplog):
    check_classes(Samples(noise_set(4)), None, 1000, given=True)
    assert caplog.text == ''


# --- mixing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('line', 'active'),
    [
        ('', False),
        ('--mixup-prob 1', False),
        ('--mixup 0.2', True),
        ('--cutmix 1', True),
        ('--cutmix-minmax 0.2 0.8', True),
    ],
)
def test_mixing_is_active_when_an_alpha_or_a_range_is_given(line, active):
    args = train_args(*line.split())
    assert mixing_active(args) is active
    assert (create_mixup(phase_at(0, args), 4) != (None, None)) is active


@pytest.mark.parametrize(
    ('loading', 'kind', 'place'),
    [
        ((), FastCollateMixup, 0),
        (('--no-prefetcher',), Mixup, 1),
        (('--naflex-loader', '--model', 'naflexvit_base_patch16_gap'), NaFlexMixup, 1),
    ],
)
def test_mixing_is_done_where_timm_does_it(loading, kind, place):
    made = create_mixup(phase_at(0, train_args('--mixup', 0.3, '--cutmix', 0.7, *loading)), 4)
    assert type(made[place]) is kind
    assert made[1 - place] is None


@pytest.mark.parametrize('kind', [FastCollateMixup, Mixup])
def test_every_option_of_mixing_reaches_timm(kind):
    line = '--mixup 0.3 --cutmix 0.7 --mixup-prob 0.6 --mixup-switch-prob 0.4 --mixup-mode pair --smoothing 0.2'
    loading = ['--no-prefetcher'] if kind is Mixup else []
    made = next(filter(None, create_mixup(phase_at(0, train_args(*line.split(), *loading)), 4)))
    reference = kind(
        mixup_alpha=0.3, cutmix_alpha=0.7, prob=0.6, switch_prob=0.4, mode='pair', label_smoothing=0.2, num_classes=4
    )
    results = []
    for seed in range(8):
        for mix in (made, reference):
            np.random.seed(seed)
            if kind is FastCollateMixup:
                images = noise_images(4).transpose(0, 3, 1, 2)
                results.append(mix([(image, label) for label, image in enumerate(images)]))
            else:
                results.append(mix(torch.from_numpy(noise_images(4)).float(), torch.arange(4)))
    for ours, timms in zip(results[::2], results[1::2], strict=True):
        assert torch.equal(ours[0], timms[0])
        assert torch.equal(ours[1], timms[1])
    targets = torch.cat([target for _, target in results])
    assert targets.shape == (64, 4)
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(64))


@pytest.mark.parametrize('line', ['', '--no-prefetcher'])
def test_without_mixing_targets_are_class_indices(line):
    train_data, _ = make_train_data(noise_set(8), '--batch-size', 8, '--workers', 0, *line.split())
    _, target = next(iter(train_data.loader))
    assert (target.shape, target.dtype) == ((8,), torch.int64)


def test_collating_without_mixing_is_timms():
    train_data, _ = make_train_data(noise_set(8), '--batch-size', 8, '--workers', 0)
    assert train_data.loader.loader.collate_fn is fast_collate


# --- evaluation loader --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('loading', [(), ('--no-prefetcher',)])
def test_evaluation_images_come_whole_once_and_in_order(loading):
    dataset = noise_set(10)
    args = train_args('--batch-size', 4, '--validation-batch-size', 3, '--workers', 0, *loading)
    loader = create_eval_loader(args, Samples(dataset), BYTES_CONFIG, device=CPU, img_dtype=torch.float32)
    batches = list(loader)
    assert [len(target) for _, target in batches] == [3, 3, 3, 1]
    np.testing.assert_array_equal(as_bytes(torch.cat([input for input, _ in batches])), dataset.images)
    assert torch.cat([target for _, target in batches]).tolist() == dataset.labels.tolist()


@pytest.mark.parametrize(
    ('name', 'distributed', 'expected'),
    [('wds/x', True, 2), ('tfds/x', True, 2), ('wds/x', False, 5), ('torch/cifar10', True, 5)],
)
def test_readers_that_pad_every_workers_share_evaluate_with_two_workers_at_most(
    monkeypatch, name, distributed, expected
):
    monkeypatch.setattr('regaug.data.loaders.create_loader', lambda dataset, num_workers, **kwargs: num_workers)
    args = train_args('--workers', 5)
    args.dataset, args.distributed = name, distributed
    assert create_eval_loader(args, None, BYTES_CONFIG, device=CPU, img_dtype=torch.float32) == expected
