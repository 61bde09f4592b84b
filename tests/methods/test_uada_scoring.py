"""UADA: the traces of scoring, reuse of scores, what the draws depend on, the figures for the log."""

import copy
import random
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn

from regaug.augment.operators import OPERATORS
from regaug.augment.parameters import GROUPS
from tests.helpers.training import assert_equal, make_droppy_model
from tests.helpers.uada import CASES, Meter, make_batch, make_uada, one_sample, small_model, tuple_of

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


@pytest.mark.parametrize(
    'kwargs', [{}, {'step': 'random'}, {'step': 'descend'}, {'reuse': True}, {'epsilon': 0}], ids=str
)
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
    uada.scorer.task.selector = uada
    input, target = make_batch(classes=3)
    uada.scorer.task(input, target)
    assert len(seen) == 9
    assert_equal(seen[1:], [seen[0]] * 8)


# --- reuse --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', CASES)
def test_reuse_chooses_as_the_exact_way_where_samples_do_not_depend_on_each_other(case):
    chosen, figures = [], []
    for reuse in (False, True):
        torch.manual_seed(5)
        uada = make_uada(small_model(), frozen=True, reuse=reuse, **CASES[case])
        results = [uada(*make_batch(64, seed=update), (update, 0, 0)) for update in range(4)]
        chosen.append(torch.cat([images for images, _, _ in results]))
        figures.append([{name: float(value) for name, value in result[2].items()} for result in results])
    assert_equal(chosen[1], chosen[0])
    for one, other in zip(*figures, strict=True):
        assert other.pop('uada_agreement', 1.0) == 1.0
        fewer = one.pop('uada_passes') - other.pop('uada_passes')
        assert fewer > 0 or case.startswith('flip')  # a flip is always something new
        assert other == pytest.approx(one, abs=1e-9)


@pytest.mark.parametrize('case', ['all', 'descend', 'random', 'delta 2', 'epsilon 3', 'epsilon 4, random'])
def test_reuse_scores_each_set_of_parameters_of_a_sample_once(case):
    """As many rows as there are different parameters, sample by sample, and some to fill up a quarter of a batch."""
    size = 64
    uada = make_uada(small_model(), frozen=True, reuse=True, **CASES[case])
    input, target = make_batch(size)
    _, _, figures = uada(input, target, (1, 0, 0))
    groups = uada.augmentation.steps
    candidates = list(uada.augmentation.applied)
    assert len(candidates) == (5 if 'random' in case else 1 + 4 + 3)
    assert len(groups) == 4
    different = sum(len({tuple_of(params, index) for params in candidates}) for index in range(size))
    rows = sum(len(images) for images, _ in uada.scorer.passes)
    assert 0 <= rows - different < 2 * size // 4
    assert different < len(candidates) * size
    assert float(figures['uada_passes']) == pytest.approx(rows / size)


@pytest.mark.parametrize('size', [1, 2, 7, 16])
@pytest.mark.parametrize('case', ['all', 'random', 'policy', 'flip', 'crop and cutout', 'epsilon 3'])
def test_batches_of_reuse_come_in_few_sizes_quarters_of_a_whole_one(case, size):
    uada = make_uada(small_model(), frozen=True, reuse=True, **CASES[case])
    for update in range(1, 9):
        input, target = make_batch(size, seed=update)
        _, _, figures = uada(input, target, (update, 0, 0))
        sizes = [len(images) for images, _ in uada.scorer.passes]
        assert sizes[0] == size
        assert all(0 < count <= size and count % max(size // 4, min(size, 8)) == 0 for count in sizes), sizes
        assert float(figures['uada_passes']) == pytest.approx(sum(sizes) / size)
        uada.scorer.passes.clear()


def test_reuse_without_anything_new_scores_the_base_alone():
    """Policies without levels have nothing to move."""
    uada = make_uada(small_model(), ['policy'], reuse=True)
    equalize, autocontrast = OPERATORS.index('equalize'), OPERATORS.index('autocontrast')
    uada.augmentation.given = lambda drawn: replace(drawn, types=torch.tensor([[equalize, autocontrast]] * 16))
    input, target = make_batch()
    images, _, figures = uada(input, target, (1, 0, 0))
    assert [len(rows) for rows, _ in uada.scorer.passes] == [16]
    assert_equal(images, uada.scorer.passes[0][0])
    assert float(figures['uada_passes']) == 1
    assert float(figures['uada_gain']) == float(figures['uada_moved']) == 0


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
    assert draws((4, 1, 2), step='random') == draws((4, 1, 2), step='descend') == first


@pytest.mark.parametrize(
    ('key', 'seed'), [((5, 1, 2), 7), ((4, 0, 2), 7), ((4, 1, 0), 7), ((4, 1, 2), 8), ((1, 4, 2), 7), ((4, 2, 1), 7)]
)
def test_draws_are_others_for_each_seed_update_rank_and_micro_batch(key, seed):
    first, other = draws((4, 1, 2)), draws(key, seed=seed)
    assert all(first[name] != other[name] for name in first)


# --- figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case', ['all', 'descend', 'random', 'epsilon 3', 'policy'])
def test_figures_equal_those_counted_sample_by_sample(case):
    model = small_model()
    uada = make_uada(model, frozen=True, **CASES[case])
    size = 48
    input, target = make_batch(size)
    _, _, figures = uada(input, target, (2, 0, 0))
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
    others = {name: float(value) for name, value in figures.items() if name not in ('uada_passes', 'uada_gain')}
    assert others == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize('kwargs', [{}, {'reuse': True}, {'step': 'random'}, {'groups': ['policy', 'cutout']}], ids=str)
def test_shares_add_up(kwargs):
    uada = make_uada(small_model(), **kwargs)
    for update in range(3):
        _, _, figures = uada(*make_batch(40, seed=update), (update, 0, 0))
        values = {name: float(value) for name, value in figures.items()}
        groups = kwargs.get('groups', GROUPS)
        assert {name for name in values if name.startswith('uada_moved_')} == {f'uada_moved_{name}' for name in groups}
        assert sum(values[f'uada_moved_{name}'] for name in groups) == pytest.approx(values['uada_moved'], abs=1e-6)
        assert 0 < values['uada_moved'] <= 1
        for prefix, count in (('uada_operator/', 14), ('uada_level/', 10)):
            shares = [value for name, value in values.items() if name.startswith(prefix)]
            assert len(shares) == count
            assert sum(shares) == pytest.approx(1, abs=1e-6)


def test_without_a_policy_there_are_no_histograms():
    _, _, figures = make_uada(small_model(), ['crop', 'flip'])(*make_batch(), (0, 0, 0))
    assert set(figures) == {'uada_passes', 'uada_gain', 'uada_moved', 'uada_moved_crop', 'uada_moved_flip'}


def test_reuse_is_compared_with_the_exact_choice_at_its_first_update_and_then_rarely():
    torch.manual_seed(5)
    uada = make_uada(small_model(), reuse=True)
    seen = [uada(*make_batch(), (update, 0, 0))[2].get('uada_agreement') for update in range(3)]
    assert 0 < float(seen[0]) <= 1
    assert seen[1:] == [None, None]
