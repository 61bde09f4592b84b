"""UADA in two processes that train together: gradients, draws, metrics."""

import copy

import pytest
import torch
from torch import nn

from regaug.augment.parameters import Augmentation
from regaug.methods.scoring import Scorer
from regaug.methods.uada import UADA
from tests.helpers.ranks import RANKS, run_on_ranks
from tests.helpers.training import (
    CLASSES,
    assert_close,
    assert_equal,
    gradients_at_updates,
    make_engine,
    make_model,
    make_task,
    selector_of,
    set_selector,
    sum_of,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


CASES = {'one micro-batch': 1, 'two micro-batches': 2}


def raw_batches(count=4, size=4):
    """The same batches for all ranks: images in [0, 1] with 8 bits, labels."""
    generator = torch.Generator().manual_seed(9)
    return [
        (
            torch.randint(256, (size, 3, 32, 32), generator=generator) / 255,
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def train_rank(case, rank, world_size=1):
    """An epoch of 4 batches; what was chosen, the gradients of each update, metrics and buffers."""
    torch.manual_seed(1)
    model = make_model()
    task = make_task(model, rank=rank)
    groups = ('crop', 'flip', 'policy', 'cutout')
    augmentation = Augmentation(groups, mean=MEAN, std=STD, dtype=torch.float64, cutout_size=8)
    selector = UADA(augmentation, scorer=Scorer(task), seed=42)
    chosen = []

    def noting(input, target, key):
        chosen.append((selector(input, target, key), key))
        return chosen[-1][0]

    set_selector(task, noting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    engine = make_engine(task, optimizer, '--grad-accum-steps', CASES[case], rank=rank, world_size=world_size)
    if world_size > 1:
        task.prepare_distributed(device_ids=None)
    metrics = engine.train_one_epoch(0, raw_batches())
    return {
        'gradients': seen,
        'metrics': dict(metrics),
        'chosen': [input for (input, _, _), _ in chosen],
        'keys': [key for _, key in chosen],
    }


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What both ranks saw, by rank."""
    return run_on_ranks(tmp_path_factory.mktemp('ranks'), train_rank, CASES)


@pytest.mark.few(1)
@pytest.mark.parametrize('case', CASES)
def test_gradients_and_metrics_are_the_mean_of_single_processes(case, ranks):
    alone = [train_rank(case, rank) for rank in range(RANKS)]
    assert len(alone[0]['gradients']) == 4 / CASES[case]
    for update, single in enumerate(zip(*(run['gradients'] for run in alone), strict=True)):
        mean = {name: value / RANKS for name, value in sum_of(*single).items()}
        for rank in range(RANKS):
            assert_close(ranks[rank][case]['gradients'][update], mean)
        with pytest.raises(AssertionError):
            assert_close(single[0], mean, tolerance=1e-2)  # the ranks' own gradients differ
    mean = {name: (alone[0]['metrics'][name] + alone[1]['metrics'][name]) / 2 for name in alone[0]['metrics']}
    for rank in range(RANKS):
        assert ranks[rank][case]['metrics'] == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert_equal(ranks[rank][case]['chosen'], alone[rank]['chosen'])


@pytest.mark.parametrize('case', CASES)
def test_ranks_and_micro_batches_draw_different_augmentations_of_the_same_images(case, ranks):
    first, second = (ranks[rank][case]['chosen'] for rank in range(RANKS))
    assert len(first) == 4
    for images, others in zip(first, second, strict=True):
        assert not (images == others).flatten(1).all(dim=1).any()
    keys = [tuple(key) for rank in range(RANKS) for key in ranks[rank][case]['keys']]
    assert len(set(keys)) == len(keys) == 8
    assert {rank for _, rank, _ in keys} == {0, 1}


def test_the_forward_of_the_task_trains_on_the_choice():
    """In any loop written for timm's tasks: `forward` alone gives loss and gradient of the chosen images."""
    torch.manual_seed(1)
    model = make_model()
    task = make_task(model)
    augmentation = Augmentation(('policy', 'cutout'), mean=MEAN, std=STD, dtype=torch.float64, cutout_size=8)
    set_selector(task, UADA(augmentation, scorer=Scorer(task), seed=42))
    [(input, target)] = raw_batches(1, size=8)
    chosen, _, _ = selector_of(task)(input, target, (0, 0, 0))
    expected = nn.functional.cross_entropy(copy.deepcopy(model)(chosen), target)
    torch.testing.assert_close(task(input, target)['loss'], expected)
