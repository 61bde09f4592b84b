"""The stream of unlabelled images: which ones come when, how they are transformed, whose labels are known."""

import numpy as np
import pytest
import torch

from regaug.data.subsets import stratified_subset
from regaug.data.unlabelled import UnlabelledData, create_unlabelled
from regaug.errors import OptionError
from regaug.methods.semi import GradAugSemi
from regaug.options import parse_train
from regaug.training.phases import phase_at
from tests.data.test_small_data import small_files as small_files
from tests.data.test_small_data import write_stl10
from tests.data.test_subsets import numbered_set
from tests.helpers.data import BYTES_CONFIG, child_processes, noise_set
from tests.helpers.training import CPU, train_args

pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files
PLAIN = ('--scale', 1, 1, '--ratio', 1, 1, '--hflip', 0, '--color-jitter', 0, '--workers', 0)
SHORT = ('--epochs', 3, '--warmup-epochs', 0)
DELIVERY = dict(device=CPU, img_dtype=torch.float32, num_classes=4)


def make_data(dataset, *options, batch_size=4, rank=0, world_size=1):
    """An `UnlabelledData` in its first phase, and the options."""
    args = train_args('--num-classes', 4, *PLAIN, *SHORT, *options, rank=rank, world_size=world_size)
    data = UnlabelledData(dataset, BYTES_CONFIG, batch_size=batch_size, **DELIVERY)
    data.use(phase_at(0, args))
    return data, args


def numbers(batch):
    return batch[0][:, 0, 0, 0].round().long().tolist()


@pytest.mark.parametrize('loading', [('--workers', 0), ('--workers', 2), ('--workers', 0, '--no-prefetcher')])
def test_what_comes_with_a_micro_batch_depends_on_its_number_alone(loading):
    data, _ = make_data(numbered_set(10), *loading)
    first = [numbers(data.next(number)) for number in range(7)]
    row = [number for batch in first for number in batch]
    assert sorted(row[:10]) == sorted(row[10:20]) == list(range(10))
    for start in (3, 0, 6):
        data.restart()
        assert [numbers(data.next(number)) for number in range(start, 7)] == first[start:]
    data.close()
    other, _ = make_data(numbered_set(10), *loading)
    assert numbers(other.next(4)) == first[4]
    other.close()


def test_workers_end_with_the_stream():
    before = child_processes()
    data, _ = make_data(numbered_set(10), '--workers', 2)
    data.next(0)
    assert len(child_processes() - before) == 2
    data.close()
    assert child_processes() == before


def test_ranks_share_the_stream_of_one_process(monkeypatch):
    alone, _ = make_data(numbered_set(10))
    monkeypatch.setattr('torch.distributed.is_available', lambda: True)
    monkeypatch.setattr('torch.distributed.get_world_size', lambda: 2)
    ranks = []
    for rank in range(2):
        monkeypatch.setattr('torch.distributed.get_rank', lambda rank=rank: rank)
        data, _ = make_data(numbered_set(10), batch_size=2, rank=rank, world_size=2)
        ranks.append(data)
    for number in range(3, 8):
        first, second = (numbers(data.next(number)) for data in ranks)
        assert [first[0], second[0], first[1], second[1]] == numbers(alone.next(number))


def test_images_are_never_mixed():
    for options in (('--cutmix', 1.0), ('--mixup', 1.0, '--no-prefetcher'), ('--cutmix-minmax', 0.2, 0.8)):
        data, _ = make_data(numbered_set(10), *options)
        images, labels = data.next(0)
        assert (images == images[:, :1, :1, :1]).all()
        assert labels.shape == (4,)


def test_images_follow_the_phases():
    options = ('--epochs', 1, '--refine-epochs', 1, '--reprob', 1.0, '--remode', 'const')
    data, args = make_data(noise_set(16), *options, batch_size=8)
    erased = (data.next(0)[0] == 0).all(dim=1).float().mean()
    data.use(phase_at(1, args))
    clean = (data.next(0)[0] == 0).all(dim=1).float().mean()
    assert erased > 0.02
    assert clean == 0


def test_a_phase_without_another_transform_keeps_the_stream():
    data, args = make_data(numbered_set(10), '--mixup', 1.0, '--mixup-off-epoch', 1)
    first = numbers(data.next(0))
    data.use(phase_at(1, args))
    assert numbers(data.next(1)) != first
    assert sorted(first + numbers(data.next(2))) != first


# --- where they come from -----------------------------------------------------------------------------------------


def created(*options):
    args = train_args('--gradaug', 2, *options)
    return create_unlabelled(args, BYTES_CONFIG)


def test_labelled_images_are_among_those_of_the_same_folder(image_folder):
    common = ('--dataset', '', '--data-dir', image_folder, '--train-split', 'train')
    dataset, labels_known = created(*common, '--unlabeled-split', 'train', '--labels-per-class', 2)
    assert len(dataset) == 64
    assert labels_known
    labels = [dataset[index][1] for index in range(64)]
    names = {dataset.filename(index) for index in stratified_subset(np.array(labels), 2, 0)}
    assert names <= {dataset.filename(index) for index in range(64)}


def test_another_folder_has_no_known_labels(image_folder):
    common = ('--dataset', '', '--data-dir', image_folder, '--train-split', 'train')
    dataset, labels_known = created(*common, '--unlabeled-data-dir', image_folder / 'val')
    assert (len(dataset), labels_known) == (16, False)


def test_stl10_has_a_split_without_labels(small_files, tmp_path):
    common = ('--dataset', 'torch/stl10', '--data-dir', write_stl10(tmp_path / 'data'))
    assert [len(created(*common, '--unlabeled-split', split)[0]) for split in ('unlabeled', 'train+unlabeled')] == [
        20,
        40,
    ]
    assert [created(*common, '--unlabeled-split', split)[1] for split in ('train', 'unlabeled')] == [True, False]


def test_digits_are_unlabelled_images_of_other_data(image_folder):
    common = ('--dataset', '', '--data-dir', image_folder, '--train-split', 'train')
    dataset, labels_known = created(*common, '--unlabeled-dataset', 'regaug/digits')
    assert (len(dataset), labels_known) == (1437, False)


def test_a_folder_without_images_is_an_error(image_folder, tmp_path):
    (tmp_path / 'notes.txt').touch()
    common = ('--dataset', '', '--data-dir', image_folder, '--train-split', 'train')
    with pytest.raises(OptionError, match=r'--unlabeled-data-dir .* --unlabeled-split train: .*no such folder'):
        created(*common, '--unlabeled-data-dir', tmp_path)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--unlabeled-data-dir', '{empty}'], r'--unlabeled-data-dir .*: the folder is empty'),
        (['--unlabeled-data-dir', '/nowhere'], r'--unlabeled-data-dir /nowhere: there is no such folder'),
        (['--uratio', '0.01'], r'--uratio 0.01: gives no image in a batch of --batch-size 16'),
        (['--uratio', '-1'], r'--uratio -1.0: must not be negative'),
        (['--p-cutoff', '1'], r'--p-cutoff 1.0: must be at least 0 and below 1'),
        (['--p-cutoff', '-0.1'], r'--p-cutoff -0.1: must be at least 0 and below 1'),
        (['--gradaug', '0'], r'--unlabeled-split train: needs --gradaug'),
        (['--maxup', '2', '--maxup-aug', 'views', '--epochs', '9'], r'--unlabeled-split train: .*--maxup-aug views'),
        (['--kd-model-name', 'resnet10t.c3_in1k'], r'--kd-model-name'),
        (['--ulb-teacher', 'ema'], r'--ulb-teacher ema: needs --model-ema'),
        (['--ulb-teacher', 'ema', '--model-ema', '--model-ema-force-cpu'], r'--ulb-teacher ema: needs --model-ema'),
        (['--uada'], r'--unlabeled-split train: does not go with --uada'),
        (['--train-img-sizes', '24', '32'], r'--unlabeled-split train: does not go with --train-img-sizes'),
        (['--gradaug-average'], r'--unlabeled-split train: does not go with --gradaug-average'),
        (['--gradaug-targets', 'hard'], r'--unlabeled-split train: does not go with --gradaug-targets hard'),
        (['--unlabeled-dataset', 'wds/x'], r'--unlabeled-dataset wds/x: .*by index'),
    ],
)
def test_unlabelled_images_that_cannot_be_are_refused_before_anything_is_built(options, message, tmp_path):
    (tmp_path / 'empty').mkdir()
    options = [option.format(empty=tmp_path / 'empty') for option in options]
    argv = ['--dataset', 'regaug/digits', '--device', 'cpu', '--batch-size', '16', '--gradaug', '2']
    with pytest.raises(OptionError, match=message) as caught:
        parse_train([*argv, '--unlabeled-split', 'train', *options])
    assert '\n' not in str(caught.value)


def test_a_place_of_unlabelled_images_is_enough(image_folder):
    argv = ['--dataset', 'regaug/digits', '--device', 'cpu', '--gradaug', '2', '--train-split', 'train']
    assert parse_train([*argv, '--unlabeled-data-dir', str(image_folder)]).unlabeled_split == 'train'
    assert parse_train(argv).unlabeled_split is None


def test_workers_end_with_the_method():
    before = child_processes()
    data, _ = make_data(numbered_set(10), '--workers', 2)
    data.next(0)
    assert len(child_processes() - before) == 2
    GradAugSemi(data, input_size=(3, 32, 32)).close()
    assert child_processes() == before
