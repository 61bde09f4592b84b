"""What the tests of MaxUp share: its candidates, and their losses by fresh copies of the model."""

import copy

import torch

from tests.helpers.training import CLASSES, selector_of

LABELS = dict(num_classes=CLASSES, smoothing=0.1)


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
