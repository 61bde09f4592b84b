"""The training loader through a run: rebuilt when a phase changes what it delivers, and only then."""

import gc
import random
import time
import warnings

import numpy as np
import pytest
import torch
from timm.data import IterableImageDataset
from torch import distributed

from regaug.data.loaders import TrainLoader
from regaug.training.phases import phase_at
from tests.helpers.data import (
    BYTES_CONFIG,
    child_processes,
    deliver,
    make_train_data,
    noise_set,
    shared_memory,
)
from tests.helpers.training import CPU

MIXED = ('--mixup', 1, '--cutmix', 1, '--mixup-off-epoch', 1, '--epochs', 2, '--warmup-epochs', 0, '--batch-size', 8)


def is_one_hot(target, smoothing):
    """Whether targets [N, K] are labels with smoothing and nothing mixed in."""
    classes = target.shape[1]
    off, on = smoothing / classes, 1 - smoothing + smoothing / classes
    expected = torch.full_like(target, off).scatter(1, target.argmax(dim=1, keepdim=True), on)
    return torch.allclose(target, expected, atol=1e-6)


# --- rebuilding ---------------------------------------------------------------------------------------------------


def test_loader_is_built_anew_only_when_its_options_change():
    train_data, args = make_train_data(noise_set(16), *MIXED, '--epochs', 6, '--mixup-off-epoch', 3, '--workers', 0)
    first = train_data.loader
    assert [train_data.use(phase_at(epoch, args)) for epoch in range(6)] == [False] * 3 + [True] + [False] * 2
    assert train_data.loader is not first


def test_going_back_to_an_earlier_phase_brings_back_what_it_delivers():
    train_data, args = make_train_data(noise_set(16), *MIXED, '--workers', 0)
    soft = [train_data.use(phase_at(epoch, args)) or not is_one_hot(deliver(train_data)[1], 0.1) for epoch in (0, 1, 0)]
    assert soft == [True, True, True]
    assert not is_one_hot(deliver(train_data)[1], 0.1)


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_mixup_off_epoch_switches_what_worker_processes_deliver(smoothing):
    train_data, args = make_train_data(noise_set(32), *MIXED, '--smoothing', smoothing, '--workers', 2)
    _, mixed = deliver(train_data)
    assert mixed.shape == (32, 4)
    assert not is_one_hot(mixed, smoothing)
    assert train_data.use(phase_at(1, args))
    for _ in range(2):
        images, unmixed = deliver(train_data)
        assert len(images) == 32
        assert is_one_hot(unmixed, smoothing)


def test_images_are_unmixed_after_mixup_off_epoch():
    train_data, args = make_train_data(
        noise_set(32), *MIXED, '--pad-crop', 1, '--hflip', 0, '--color-jitter', 0, '--workers', 2
    )
    # Halves of two images of noise have fewer large jumps than noise itself.
    roughness = []
    for epoch in (0, 1):
        train_data.use(phase_at(epoch, args))
        roughness.append(deliver(train_data)[0].diff(dim=-1).abs().mean().item())
    assert roughness[0] < 0.97 * roughness[1]


@pytest.mark.parametrize(
    'loading', [('--workers', 0), ('--workers', 0, '--no-prefetcher'), ('--workers', 2, '--no-prefetcher')]
)
def test_without_workers_or_prefetcher_the_switch_is_bit_identical_to_timms_flag(loading):
    def epochs(switch):
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(1)
        train_data, args = make_train_data(noise_set(32), *MIXED, '--epochs', 3, *loading, '--smoothing', 0.1)
        delivered = [deliver(train_data)]
        switch(train_data, args)
        return delivered + [deliver(train_data) for _ in range(2)]

    def ours(train_data, args):
        train_data.use(phase_at(1, args))

    def timms(train_data, args):
        (train_data.mixup_fn or train_data.loader).mixup_enabled = False

    for (images, targets), (timms_images, timms_targets) in zip(epochs(ours), epochs(timms), strict=True):
        assert torch.equal(images, timms_images)
        assert torch.equal(targets, timms_targets)
    assert is_one_hot(targets, 0.1)


def test_a_switch_without_prefetcher_keeps_loader_and_workers():
    train_data, args = make_train_data(noise_set(16), *MIXED, '--workers', 2, '--no-prefetcher')
    deliver(train_data)
    loader, workers = train_data.loader, child_processes()
    assert not train_data.use(phase_at(1, args))
    deliver(train_data)
    assert train_data.loader is loader
    assert child_processes() == workers


# --- what is left behind ------------------------------------------------------------------------------------------


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_old_workers_end_at_a_rebuild_and_leave_no_shared_memory():
    before, memory = child_processes(), shared_memory()
    train_data, args = make_train_data(noise_set(64), *MIXED, '--workers', 2)
    deliver(train_data)
    first = child_processes() - before
    assert len(first) == 2
    train_data.use(phase_at(1, args))
    assert wait_until(lambda: not first & child_processes())
    deliver(train_data)
    second = child_processes() - before
    assert len(second) == 2
    train_data.loader = None
    assert wait_until(lambda: child_processes() == before)
    assert shared_memory() == memory


def test_many_rebuilds_leave_no_more_behind_than_one():
    before, memory = child_processes(), shared_memory()
    train_data, args = make_train_data(noise_set(32), *MIXED, '--workers', 1)
    for epoch in (0, 1) * 2:
        train_data.use(phase_at(epoch, args))
        deliver(train_data)
        assert len(child_processes() - before) == 1
    train_data.loader = None
    assert wait_until(lambda: child_processes() == before)
    assert shared_memory() == memory


def test_workers_end_at_a_rebuild_in_the_middle_of_an_epoch():
    before, memory = child_processes(), shared_memory()
    train_data, args = make_train_data(noise_set(64), *MIXED, '--workers', 2)
    next(iter(train_data.loader))
    first = child_processes() - before
    train_data.use(phase_at(1, args))
    gc.collect()
    assert wait_until(lambda: not first & child_processes())
    assert is_one_hot(deliver(train_data)[1], 0.1)
    train_data.loader = None
    assert wait_until(lambda: shared_memory() == memory)


# --- epochs -------------------------------------------------------------------------------------------------------


@pytest.fixture
def group_of_one(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def distributed_data(dataset, *options):
    """A `TrainLoader` as one rank of several has it."""
    train_data, _ = make_train_data(dataset, *options, '--workers', 0, '--smoothing', 0, classes=len(dataset))
    train_data.use(train_data.phase.with_options(distributed=True))
    return train_data


def numbered_set(count):
    dataset = noise_set(count)
    dataset.labels = list(range(count))
    return dataset


@pytest.mark.parametrize('epoch', [0, 1, 5])
def test_the_epoch_reaches_the_sampler_of_a_distributed_run(group_of_one, epoch):
    train_data = distributed_data(numbered_set(12), '--batch-size', 4)
    train_data.set_epoch(epoch)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch))  # the sampler's own seed is 0
    assert torch.equal(deliver(train_data)[1], order)


@pytest.mark.parametrize('epoch', [0, 5])
def test_the_epoch_reaches_the_sampler_of_a_loader_that_lasts(group_of_one, epoch):
    train_data = distributed_data(numbered_set(12), '--batch-size', 4)
    train_data.use(train_data.phase.with_options(use_multi_epochs_loader=True))
    for following in (epoch, epoch + 1):
        train_data.set_epoch(following)
        order = torch.randperm(12, generator=torch.Generator().manual_seed(following))
        assert torch.equal(deliver(train_data)[1], order)


def test_the_epoch_reaches_the_sampler_of_repeated_augmentation(group_of_one):
    train_data = distributed_data(numbered_set(300), '--batch-size', 4)
    train_data.use(train_data.phase.with_options(aug_repeats=3))
    orders = {}
    for epoch in (0, 4, 0):
        train_data.set_epoch(epoch)
        orders.setdefault(epoch, []).append(list(train_data.loader.sampler))
    assert orders[0][0] == orders[0][1] != orders[4][0]
    reference = torch.randperm(300, generator=torch.Generator().manual_seed(4)).repeat_interleave(3)
    assert orders[4][0] == reference[: len(orders[4][0])].tolist()


def test_the_epoch_reaches_a_stream():
    class Reader:
        epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

        def __len__(self):
            return 8

        def __iter__(self):
            return iter([dataset[index] for index in range(8)])

    dataset = noise_set(8)
    stream = IterableImageDataset(None, reader=Reader())
    train_data, _ = make_train_data(stream, '--batch-size', 4, '--workers', 0)
    for epoch in (3, 4):
        train_data.set_epoch(epoch)
    assert Reader.epochs == [3, 4]


# --- scheduled sizes ----------------------------------------------------------------------------------------------

SIZES = ('--train-img-sizes', 16, 24, 32, '--train-batch-sizes', 8, 6, 4, '--workers', 0)


def test_scheduled_batches_have_the_sizes_that_go_together():
    train_data, _ = make_train_data(noise_set(64), *SIZES, '--train-batches-per-epoch', 24)
    shapes = [tuple(input.shape) for input, _ in train_data.loader]
    assert len(shapes) == 24 == len(train_data.loader)
    assert set(shapes) == {(8, 3, 16, 16), (6, 3, 24, 24), (4, 3, 32, 32)}


def test_scheduled_batches_follow_their_probabilities():
    train_data, _ = make_train_data(
        noise_set(64), *SIZES, '--train-size-probs', 0, 1, 3, '--train-batches-per-epoch', 80
    )
    sides = [input.shape[-1] for input, _ in train_data.loader]
    assert sides.count(16) == 0
    assert 0.15 < sides.count(24) / 80 < 0.35


def test_the_schedule_of_sizes_changes_with_the_epoch_and_repeats_for_the_same_one():
    train_data, _ = make_train_data(noise_set(64), *SIZES, '--train-batches-per-epoch', 24)
    sides = {}
    for epoch in (0, 1, 0):
        train_data.set_epoch(epoch)
        sides.setdefault(epoch, []).append([input.shape[-1] for input, _ in train_data.loader])
    assert sides[0][0] == sides[0][1] != sides[1][0]


def test_progressive_sizes_grow_over_the_epochs():
    train_data, _ = make_train_data(
        noise_set(64), *SIZES, '--train-size-schedule', 'progressive', '--train-batches-per-epoch', 40, '--epochs', 4
    )
    means = []
    for epoch in range(4):
        train_data.set_epoch(epoch)
        means.append(sum(input.shape[-1] for input, _ in train_data.loader) / 40)
    assert means == sorted(means)
    assert means[0] < 22 < 26 < means[-1]


def test_scheduled_sizes_survive_the_end_of_mixing():
    train_data, args = make_train_data(
        noise_set(64), *MIXED, '--train-img-sizes', 16, 32, '--train-batches-per-epoch', 8, '--workers', 2
    )
    for epoch, mixed in ((0, True), (1, False)):
        train_data.use(phase_at(epoch, args))
        train_data.set_epoch(epoch)
        batches = [(input.shape[-1], target) for input, target in train_data.loader]
        assert {side for side, _ in batches} == {16, 32}
        assert is_one_hot(torch.cat([target for _, target in batches]), 0.1) is not mixed


def test_a_loader_can_be_started_in_any_phase():
    _, args = make_train_data(noise_set(16), *MIXED, '--workers', 0)
    train_data = TrainLoader(noise_set(16), BYTES_CONFIG, device=CPU, img_dtype=torch.float32, num_classes=4)
    assert train_data.use(phase_at(1, args))
    assert is_one_hot(deliver(train_data)[1], 0.1)
