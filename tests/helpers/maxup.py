"""What the tests of MaxUp share: tasks, their candidates, and the losses of these by fresh copies of the model."""

import copy

import numpy as np
import pytest
import torch
from timm.loss import SoftTargetCrossEntropy

from regaug.augment.mix import CutMix, Cutout, GaussianNoise, Mixup
from regaug.methods.maxup import MaxUp
from regaug.methods.scoring import Scorer
from tests.helpers.training import CLASSES, make_task, selector_of, set_selector

LABELS = dict(num_classes=CLASSES, smoothing=0.1)
AUGMENTATIONS = {
    'cutmix': lambda: [CutMix(alpha=1.0, prob=1.0, **LABELS)],
    'mixup': lambda: [Mixup(alpha=1.0, prob=0.8, **LABELS)],
    'cutout': lambda: [Cutout(size=12)],
    'cutmix and noise': lambda: [CutMix(alpha=1.0, prob=1.0, **LABELS), GaussianNoise(sigma=torch.full((3,), 0.2))],
}


def selecting_task(model, augmentations, *, copies=4, criterion=None, seed=42, rank=0, freeze_bn=False, **kwargs):
    """A task whose input MaxUp chooses, as the engine has it when a phase has begun."""
    task = make_task(model, criterion or SoftTargetCrossEntropy(), rank=rank)
    task.freeze_bn = freeze_bn
    set_selector(task, MaxUp(augmentations, num_copies=copies, scorer=Scorer(task), seed=seed, **kwargs))
    return task.train()


def candidates_of(task, input, target, key):
    """The candidates that MaxUp scores for a key, as (input, target), and what it returns."""
    selector = selector_of(task)
    seen, scorer = [], selector.scorer

    def watching(input, target):
        seen.append((input.clone(), target.clone()))
        return scorer(input, target)

    watching.task = task
    watched = copy.copy(selector)
    watched.scorer = watching
    return seen, watched(input, target, key)


def losses_of(model, criterion, candidates):
    """Losses [m, B] of candidates, each scored by a fresh copy of the model from the same random state."""
    state, losses = torch.get_rng_state(), []
    for image, label in candidates:
        torch.set_rng_state(state)
        output = copy.deepcopy(model)(image).detach()
        losses.append(torch.stack([criterion(output[[row]], label[[row]]) for row in range(len(label))]))
    torch.set_rng_state(state)
    return torch.stack(losses)


def rows_of(candidates, numbers):
    """Row b of candidate numbers[b], for images and labels."""
    return [
        torch.stack([candidates[number][part][row] for row, number in enumerate(numbers.tolist())]) for part in (0, 1)
    ]


METRICS = [
    *('train_maxup_passes', 'train_maxup_chosen_loss', 'train_maxup_mean_loss'),
    *('train_maxup_share1', 'train_maxup_share2', 'train_maxup_share3', 'train_maxup_lambda'),
]


def assert_metrics_make_sense(row, passes=3):
    """An epoch's metrics: the shares of the copies, a chosen loss above the mean, lambda between 0 and 1."""
    values = {name: float(row[name]) for name in ('train_loss', *METRICS)}
    assert all(np.isfinite(value) for value in values.values()), values
    assert values['train_maxup_passes'] == passes
    assert sum(values[f'train_maxup_share{number}'] for number in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert values['train_maxup_chosen_loss'] > values['train_maxup_mean_loss'] > 0
    assert 0 < values['train_maxup_lambda'] <= 1
