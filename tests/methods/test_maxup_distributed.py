"""MaxUp in two processes that train together: gradients, draws, choices."""

import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from regaug.augment.mix import CutMix, GaussianNoise
from regaug.methods.maxup import MaxUp
from regaug.methods.scoring import Scorer
from tests.helpers.ranks import RANKS, run_on_ranks
from tests.helpers.training import (
    CLASSES,
    assert_close,
    assert_equal,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_model,
    make_task,
    set_selector,
    sum_of,
)

CASES = {'one micro-batch': 1, 'two micro-batches': 2}


def train_rank(case, rank, world_size=1):
    """An epoch of 4 batches, the same on all ranks; what was chosen, and the gradients of each update."""
    torch.manual_seed(1)
    model = make_model()
    task = make_task(model, SoftTargetCrossEntropy(), rank=rank)
    augmentations = [
        CutMix(alpha=1.0, prob=1.0, num_classes=CLASSES, smoothing=0.1),
        GaussianNoise(sigma=torch.full((3,), 0.1)),
    ]
    selector = MaxUp(augmentations, num_copies=3, scorer=Scorer(task), seed=42)
    chosen = []

    def noting(input, target, key):
        chosen.append(selector(input, target, key))
        return chosen[-1]

    set_selector(task, noting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    options = ['--grad-accum-steps', CASES[case]]
    engine = make_engine(task, optimizer, *options, rank=rank, world_size=world_size)
    if world_size > 1:
        task.prepare_distributed(device_ids=None)
    metrics = engine.train_one_epoch(0, make_batches(4, seed=9))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    return {
        'gradients': seen,
        'metrics': dict(metrics),
        'chosen': [(input, target) for input, target, _ in chosen],
        'buffers': buffers,
    }


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What both ranks saw, by rank."""
    return run_on_ranks(tmp_path_factory.mktemp('ranks'), train_rank, CASES)


@pytest.mark.parametrize('case', CASES)
def test_gradients_are_the_mean_of_single_processes(case, ranks):
    alone = [train_rank(case, rank) for rank in range(RANKS)]
    assert len(alone[0]['gradients']) == 4 / CASES[case]
    for update, single in enumerate(zip(*(run['gradients'] for run in alone), strict=True)):
        mean = {name: value / RANKS for name, value in sum_of(*single).items()}
        for rank in range(RANKS):
            assert_close(ranks[rank][case]['gradients'][update], mean)
        with pytest.raises(AssertionError):
            assert_close(single[0], mean, tolerance=1e-2)
    mean = {name: (alone[0]['metrics'][name] + alone[1]['metrics'][name]) / 2 for name in alone[0]['metrics']}
    for rank in range(RANKS):
        assert ranks[rank][case]['metrics'] == pytest.approx(mean, rel=1e-5)
        assert_equal(ranks[rank][case]['chosen'], alone[rank]['chosen'])


@pytest.mark.parametrize('case', CASES)
def test_ranks_draw_different_augmentations_of_the_same_images(case, ranks):
    first, second = (ranks[rank][case]['chosen'] for rank in range(RANKS))
    assert len(first) == 4
    for (image, label), (other_image, other_label) in zip(first, second, strict=True):
        assert not (image == other_image).flatten(1).all(dim=1).any()
        assert not torch.equal(label, other_label)
