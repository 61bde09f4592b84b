"""Epochs of any length: the same order of the images on every machine, rank by rank, and after a resume."""

import itertools

import numpy as np
import pytest
import torch

from regaug.data.subsets import RepeatedSamples
from regaug.errors import OptionError
from regaug.options import parse_train
from regaug.training.phases import phase_at
from tests.helpers.data import MemoryDataset, deliver, make_train_data
from tests.helpers.training import assert_same_training, read_summary

AS_THEY_ARE = ('--scale', 1, 1, '--ratio', 1, 1, '--hflip', 0, '--color-jitter', 0)
FIRST_EPOCHS = [[2, 1, 0, 5, 6, 3], [8, 4, 9, 7, 8, 2], [4, 0, 9, 7, 3, 1]]
SHORT = (*AS_THEY_ARE, '--batch-size', 4, '--updates-per-epoch', 3, '--epochs', 4, '--warmup-epochs', 0)


def epochs_of(count, num_samples=10, epoch_length=6, **kwargs):
    samples, found = RepeatedSamples(num_samples, epoch_length, seed=42, **kwargs), []
    for epoch in range(count):
        samples.set_epoch(epoch)
        found.append(list(samples))
    return found


def numbered_set(count):
    """Images that tell their number by their grey level."""
    return MemoryDataset([np.full((32, 32, 3), number, np.uint8) for number in range(count)], [0] * count)


def numbers(train_data):
    images, _ = deliver(train_data)
    return images[:, 0, 0, 0].round().long().tolist()


# --- the order ----------------------------------------------------------------------------------------------------


def test_order_is_the_committed_one():
    assert epochs_of(3) == FIRST_EPOCHS


@pytest.mark.parametrize(('num_samples', 'epoch_length'), [(10, 6), (10, 25), (3, 10), (7, 7), (1, 2)])
def test_every_pass_over_the_data_holds_each_sample_once(num_samples, epoch_length):
    row = list(itertools.chain(*epochs_of(2 * num_samples, num_samples, epoch_length)))
    passes = [row[start : start + num_samples] for start in range(0, len(row), num_samples)]
    assert all(sorted(one) == list(range(num_samples)) for one in passes)
    if num_samples > 5:
        assert len({tuple(one) for one in passes}) == len(passes)


@pytest.mark.parametrize('world_size', [2, 3])
def test_ranks_share_the_row_of_one_process(world_size):
    alone = epochs_of(4, epoch_length=6)
    ranks = [epochs_of(4, epoch_length=6 // world_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    for epoch in range(4):
        assert [index for turn in zip(*(rank[epoch] for rank in ranks), strict=True) for index in turn] == alone[epoch]


def test_order_depends_on_the_seed_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    assert epochs_of(3) == FIRST_EPOCHS
    assert list(RepeatedSamples(10, 6, seed=43)) != epochs_of(1)[0]


# --- the loader ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('loading', [('--workers', 0), ('--workers', 2), ('--workers', 0, '--no-prefetcher')])
def test_loader_delivers_the_row_epoch_by_epoch(loading):
    train_data, args = make_train_data(numbered_set(5), *SHORT, *loading)
    assert len(train_data.loader) == 3
    expected = epochs_of(3, num_samples=5, epoch_length=12)
    for epoch in (0, 1, 2, 1):  # persistent workers follow, also back
        train_data.set_epoch(epoch)
        assert numbers(train_data) == expected[epoch]
    assert not train_data.use(phase_at(3, args))


def test_accumulated_micro_batches_count_as_one_update():
    train_data, _ = make_train_data(numbered_set(50), *SHORT, '--grad-accum-steps', 2, '--workers', 0)
    assert len(train_data.loader) == 6


def test_epochs_may_also_be_shorter_than_the_data():
    train_data, _ = make_train_data(numbered_set(50), *SHORT, '--workers', 0)
    seen = []
    for epoch in range(4):
        train_data.set_epoch(epoch)
        seen += numbers(train_data)
    assert len(set(seen)) == len(seen) == 48


def test_two_ranks_deliver_what_one_process_does(monkeypatch):
    monkeypatch.setattr('torch.distributed.is_available', lambda: True)
    monkeypatch.setattr('torch.distributed.get_world_size', lambda: 2)
    options, ranks = (*SHORT, '--batch-size', 2, '--workers', 0), []
    for rank in range(2):
        monkeypatch.setattr('torch.distributed.get_rank', lambda rank=rank: rank)
        train_data, _ = make_train_data(numbered_set(5), *options, rank=rank, world_size=2)
        ranks.append([])
        for epoch in range(2):
            train_data.set_epoch(epoch)
            ranks[-1].append(numbers(train_data))
    for epoch, expected in enumerate(epochs_of(2, num_samples=5, epoch_length=12)):
        assert [index for turn in zip(*(rank[epoch] for rank in ranks), strict=True) for index in turn] == expected


# --- a run --------------------------------------------------------------------------------------------------------


def test_few_labels_train_in_epochs_of_a_sensible_length_and_resume_exactly(train, caplog):
    caplog.set_level('INFO')
    options = ('--labels-per-class', 2, '--updates-per-epoch', 5, '--batch-size', 4, '--exact-resume', '--epochs', 3)
    whole = train(*options, experiment='whole')
    assert len(read_summary(whole)) == 3
    assert any('4/5' in record.message for record in caplog.records)
    resumed = train(*options, '--resume', str(whole / 'checkpoint-1.pth.tar'), experiment='resumed')
    assert_same_training(resumed, whole, from_epoch=2)


@pytest.mark.parametrize(
    'options',
    [
        ['--updates-per-epoch', '0'],
        ['--updates-per-epoch', '5', '--train-img-sizes', '24', '32'],
        ['--updates-per-epoch', '5', '--use-multi-epochs-loader'],
        ['--updates-per-epoch', '5', '--dataset', 'wds/x', '--data-dir', '/nowhere'],
    ],
)
def test_epoch_lengths_that_cannot_be_are_refused_before_anything_is_built(options, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: name)  # as if webdataset were installed
    with pytest.raises(OptionError, match=f'--updates-per-epoch {options[1]}: .+'):
        parse_train(['--dataset', 'regaug/digits', '--device', 'cpu', *options])
