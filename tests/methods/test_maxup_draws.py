"""MaxUp's random draws: what they depend on, and what not."""

import itertools

import numpy as np
import torch

from regaug.augment.mix import CutMix
from regaug.methods.maxup import MaxUp
from tests.helpers.maxup import AUGMENTATIONS, candidates_of, selecting_task
from tests.helpers.training import assert_equal, make_batches, make_engine, make_model, selector_of, set_selector


def drawn(*, seed=42, key=(0, 0, 0), copies=3, name='cutmix and noise'):
    """The candidates for a seed and a key."""
    task = selecting_task(make_model(dtype=torch.float32), AUGMENTATIONS[name](), copies=copies, seed=seed)
    return candidates_of(task, *make_batches(1, size=6, dtype=torch.float32)[0], key)[0]


def test_draws_depend_on_seed_update_rank_and_micro_batch():
    first = drawn()
    for other in (
        drawn(seed=43),
        drawn(key=(1, 0, 0)),
        drawn(key=(0, 1, 0)),
        drawn(key=(0, 0, 1)),
        drawn(key=(0, 1, 1)),
        drawn(key=(1, 0, 1)),
    ):
        assert not any(torch.equal(one[1], two[1]) for one, two in itertools.product(first, other))


def test_draws_depend_on_nothing_else():
    first = drawn(key=(5, 1, 2))
    torch.manual_seed(99)
    np.random.seed(99)
    drawn(key=(4, 1, 2))
    assert_equal(drawn(key=(5, 1, 2)), first)


def test_draws_are_these_numbers_on_every_machine():
    augmentation = CutMix(alpha=1.0, prob=1.0, num_classes=4, smoothing=0.0)
    maxup = MaxUp([augmentation], num_copies=1, scorer=None, seed=42)
    _, labels, _ = maxup(torch.zeros(4, 3, 32, 32), torch.arange(4), (7, 0, 0))
    assert labels.tolist() == [
        [0.828125, 0.0, 0.0, 0.171875],
        [0.0, 1.0, 0.0, 0.0],
        [0.6064453125, 0.0, 0.3935546875, 0.0],
        [0.0, 0.0, 0.00390625, 0.99609375],
    ]


def test_updates_and_micro_batches_have_draws_of_their_own():
    """The engine numbers updates over the whole run and micro-batches within an update."""
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, AUGMENTATIONS['cutmix'](), copies=1)
    keys, selector = [], selector_of(task)

    def noting(input, target, key):
        keys.append(key)
        return selector(input, target, key)

    set_selector(task, noting)
    engine = make_engine(task, torch.optim.SGD(model.parameters(), lr=0.1), '--grad-accum-steps', 2)
    for epoch in (0, 1):
        engine.train_one_epoch(epoch, make_batches(5, dtype=torch.float32))
    assert keys == [(3 * epoch + batch // 2, 0, batch % 2) for epoch in (0, 1) for batch in range(5)]


def test_every_copy_pairs_the_samples_anew():
    candidates = drawn(name='cutmix', copies=6)
    assert all(not torch.equal(one[0], two[0]) for one, two in itertools.combinations(candidates, 2))
    assert all(not torch.equal(one[1], two[1]) for one, two in itertools.combinations(candidates, 2))
