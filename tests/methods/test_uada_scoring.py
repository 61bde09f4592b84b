"""UADA: the traces of scoring, what the draws depend on, the metrics for the log."""

import copy
import random
from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from regaug.augment.operators import OPERATORS
from regaug.augment.parameters import GROUPS
from tests.helpers.training import assert_equal, make_droppy_model, set_selector
from tests.helpers.uada import CASES, Meter, augment, make_batch, make_uada, one_sample, small_model

# --- no trace -----------------------------------------------------------------------------------------------------


def everything(model):
    """All of a model and of the process that a choice might change, copied."""
    return {
        'values': {name: value.clone() for name, value in model.state_dict().items()},
        'grad': {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        'modes': {name: part.training for name, part in model.named_modules()},
        'tracking': {name: getattr(part, 'track_running_stats', None) for name, part in model.named_modules()},
        'random': (torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2]),
        'python': random.getstate(),
        'grad_enabled': torch.is_grad_enabled(),
    }


@pytest.mark.parametrize('kwargs', [{}, {'step': 'random'}, {'step': 'descend'}, {'epsilon': 0}], ids=str)
def test_a_choice_leaves_model_gradients_random_states_and_batch_as_they_are(kwargs):
    model = make_droppy_model()
    uada = make_uada(model, dtype=torch.float32, **kwargs)
    for parameter in model.parameters():  # of an earlier micro-batch
        parameter.grad = torch.randn_like(parameter)
    input, target = make_batch()
    before, batch = everything(model), (input.clone(), target.clone())
    images, _, _ = uada(input, target, (3, 0, 0))
    assert_equal(everything(model), before)
    assert_equal((input, target), batch)
    assert not images.requires_grad
    again, _, _ = uada(input, target, (3, 0, 0))
    assert_equal(again, images)


def test_all_passes_see_the_dropout_of_the_training_pass():
    """A model of nothing but dropout: the losses of equal images are equal in every pass."""
    seen = []

    class Droppy(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, input):
            seen.append(self.drop(torch.ones(50)))
            return input.mean(dim=(2, 3))

    uada = make_uada(Droppy())
    set_selector(uada.scorer.task, uada)
    input, target = make_batch(classes=3)
    uada.scorer.task(input, target)
    assert len(seen) == 9
    assert_equal(seen[1:], [seen[0]] * 8)


# --- draws --------------------------------------------------------------------------------------------------------


def draws(key, *, seed=7, batch=0, noise=0, step='ascend'):
    """What is drawn for a batch, as numbers; `noise` is the state of the process, `batch` the images."""
    uada = make_uada(Meter(lambda input: input.mean(dim=(1, 2, 3))), seed=seed, step=step)
    torch.manual_seed(noise)
    np.random.seed(noise)
    random.seed(noise)
    uada(*make_batch(seed=batch, classes=2), key)
    base, steps = uada.augmentation.base, uada.augmentation.steps
    drawn = {field.name: getattr(base, field.name).tolist() for field in fields(base)}
    return drawn | {f'step of {group}': step.tolist() for group, step in steps.items()}


def test_draws_depend_on_nothing_but_seed_update_rank_and_micro_batch():
    first = draws((4, 1, 2))
    assert draws((4, 1, 2)) == first
    assert draws((4, 1, 2), batch=1, noise=1) == first
    assert draws((4, 1, 2), step='descend') == first
    at_random = draws((4, 1, 2), step='random')
    assert {name for name in first if at_random[name] != first[name]} == {'step of flip'}  # which is tossed there alone


@pytest.mark.parametrize(
    ('key', 'seed'), [((5, 1, 2), 7), ((4, 0, 2), 7), ((4, 1, 0), 7), ((4, 1, 2), 8), ((1, 4, 2), 7), ((4, 2, 1), 7)]
)
def test_draws_are_others_for_each_seed_update_rank_and_micro_batch(key, seed):
    first, other = draws((4, 1, 2)), draws(key, seed=seed)
    assert all(first[name] != other[name] for name in first)


# --- metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', ['all', 'descend', 'random', 'epsilon 3', 'policy'])
@pytest.mark.few(1)
def test_metrics_equal_those_counted_sample_by_sample(case):
    model = small_model()
    uada = make_uada(model, frozen=True, **CASES[case])
    size = 48
    input, target = make_batch(size)
    _, _, metrics = uada(input, target, (2, 0, 0))
    groups = list(uada.augmentation.steps)
    moved = dict.fromkeys(groups, 0)
    operators, levels = dict.fromkeys(OPERATORS, 0), [0] * 10
    alone = copy.deepcopy(model).eval()
    for index in range(size):
        _, candidates, choice = one_sample(uada, alone, input, target, index)
        params = candidates[choice][2]
        for level in params.levels[0].tolist():
            levels[level] += 1
        if choice == 0:
            continue
        moved[groups[choice - 1]] += 1
        if groups[choice - 1] == 'policy':
            changed = params.levels[0] != uada.augmentation.base.levels[index]
            [slot] = changed.nonzero()[:, 0].tolist()
            operators[OPERATORS[params.types[0, slot]]] += 1
    total = sum(operators.values())
    assert total == moved['policy'] > 1
    expected = {'uada_moved': sum(moved.values()) / size}
    expected |= {f'uada_moved_{group}': count / size for group, count in moved.items()}
    expected |= {f'uada_operator/{name}': count / total for name, count in operators.items()}
    expected |= {f'uada_level/{level}': count / (2 * size) for level, count in enumerate(levels)}
    others = {name: float(value) for name, value in metrics.items() if name not in ('uada_passes', 'uada_gain')}
    assert others == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('kwargs', [{}, {'step': 'random'}, {'groups': ['policy', 'cutout']}], ids=str)
def test_shares_add_up(kwargs):
    uada = make_uada(small_model(), **kwargs)
    for update in range(3):
        _, _, metrics = uada(*make_batch(40, seed=update), (update, 0, 0))
        values = {name: float(value) for name, value in metrics.items()}
        groups = kwargs.get('groups', GROUPS)
        assert {name for name in values if name.startswith('uada_moved_')} == {f'uada_moved_{name}' for name in groups}
        assert sum(values[f'uada_moved_{name}'] for name in groups) == pytest.approx(values['uada_moved'], abs=1e-6)
        assert 0 < values['uada_moved'] <= 1
        for prefix, count in (('uada_operator/', 14), ('uada_level/', 10)):
            shares = [value for name, value in values.items() if name.startswith(prefix)]
            assert len(shares) == count
            assert sum(shares) == pytest.approx(1, abs=1e-6)


def test_without_a_policy_there_are_no_histograms():
    _, _, metrics = make_uada(small_model(), ['crop', 'flip'])(*make_batch(), (0, 0, 0))
    assert set(metrics) == {'uada_passes', 'uada_gain', 'uada_moved', 'uada_moved_crop', 'uada_moved_flip'}


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [3, 20])
def test_pictures_show_samples_as_drawn_and_as_trained_on_with_their_losses(size):
    uada = make_uada(small_model(), frozen=True)
    input, target = make_batch(size)
    uada(input, target, (1, 0, 0))
    assert uada.pictures() == []
    uada.keep_pictures = True
    chosen, _, _ = uada(input, target, (2, 0, 0))
    [(name, images, captions)] = uada.pictures()
    shown = min(size, 8)
    assert name == 'uada' and len(images) == len(captions) == 2 * shown
    assert_equal(images[1::2], chosen[:shown])
    assert_equal(images[::2], augment(uada, input, uada.augmentation.base)[:shown])
    uada.scorer.passes.clear()
    for batch, texts in ((images[::2], captions[::2]), (images[1::2], captions[1::2])):
        for loss, text in zip(uada.scorer(batch, target[:shown]).tolist(), texts):
            assert text == 'as it was drawn' or text.endswith(f'loss {loss:.2f}')
    moved = {text.split(':')[0] for text in captions[1::2]} - {'as it was drawn'}
    assert moved <= set(GROUPS) and moved
    same = [torch.equal(before, after) for before, after in zip(images[::2], images[1::2])]
    assert all(same[index] for index, text in enumerate(captions[1::2]) if text == 'as it was drawn')


def test_nothing_is_kept_unless_it_is_asked_for():
    uada = make_uada(small_model())
    images, _, _ = uada(*make_batch(), (1, 0, 0))
    uada.keep_pictures = True
    again, _, _ = uada(*make_batch(), (1, 0, 0))
    assert_equal(again, images)
    assert make_uada(small_model(), epsilon=0).pictures() == []
