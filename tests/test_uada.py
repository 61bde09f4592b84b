"""UADA: the direction of each sample's step, its worst candidate, the traces of scoring, all against brute force."""

import copy
import random
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from slimmable_oracle import make_generic
from torch import nn
from training_case import CLASSES, assert_equal, make_droppy_model, make_task

from regaug.augmentation import GROUPS, Augmentation, Parameters
from regaug.operators import OPERATORS
from regaug.scoring import Scorer
from regaug.uada import UADA

HEIGHT, WIDTH, PADDING = 16, 24, 2
FIELD = {'crop': 'offsets', 'flip': 'flips', 'policy': 'levels', 'cutout': 'boxes'}
HIGH = {'crop': [2 * PADDING] * 2, 'policy': [9, 9], 'cutout': [HEIGHT, HEIGHT, WIDTH, WIDTH]}


class Listening(Augmentation):
    """An augmentation that keeps what was drawn and what was applied; `given` parameters replace what is drawn."""

    given = None

    def draw(self, rng, input):
        drawn = super().draw(rng, input)
        self.base = drawn if self.given is None else self.given(drawn)
        self.applied = []
        return self.base

    def draw_steps(self, *args):
        self.steps = super().draw_steps(*args)
        return self.steps

    def apply(self, input, candidates, *args):
        self.applied += candidates
        return super().apply(input, candidates, *args)


class Noting(Scorer):
    """A scorer that keeps (images, losses) of each pass."""

    def __init__(self, task):
        super().__init__(task)
        self.passes = []

    def __call__(self, input, target):
        losses = super().__call__(input, target)
        self.passes.append((input.clone(), losses))
        return losses


def make_uada(model, groups=GROUPS, *, frozen=False, seed=7, dtype=torch.float64, augmentation=(), **kwargs):
    """UADA of a model; `frozen`: batch-norm keeps its statistics, so that samples do not depend on each other."""
    task = make_task(model)
    task.freeze_bn = frozen
    task.train()
    common = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), dtype=dtype, padding=PADDING, cutout_size=8)
    return UADA(Listening(groups, **{**common, **dict(augmentation)}), scorer=Noting(task), seed=seed, **kwargs)


def make_batch(size=16, seed=0, classes=CLASSES):
    """8-bit images [size, 3, 16, 24] as floats, labels [size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 6, generator=generator)
    fine = F.interpolate(coarse, (HEIGHT, WIDTH), mode='bilinear') + 0.05 * torch.rand(
        size, 3, HEIGHT, WIDTH, generator=generator
    )
    labels = torch.randint(classes, (size,), generator=generator)
    return fine.clamp(0, 1).mul(255).round().div(255), labels


def row_of(params, index):
    return Parameters(**{field.name: getattr(params, field.name)[index : index + 1] for field in fields(params)})


def tuple_of(params, index):
    """The parameters of one sample as numbers that can be compared."""
    return tuple(tuple(np.ravel(getattr(params, field.name)[index].numpy()).tolist()) for field in fields(params))


def augment(uada, input, params):
    [images] = Augmentation.apply(uada.augmentation, input, [params], {})
    return images


def small_model():
    """A network with batch-norm whose statistics and weights all matter, in float64."""
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2)]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    return make_generic(nn.Sequential(*layers)).double()


def sign_of(number):
    return int(number > 0) - int(number < 0)


# --- brute force --------------------------------------------------------------------------------------------------


def moved_by_hand(base, group, step, sign, size=1):
    """One sample's parameters with a group moved by `size` times `sign` along its step; a flip by sign 1."""
    values = getattr(base, FIELD[group])
    if group == 'flip':
        new = [bool(values[0]) != (sign > 0)]
    else:
        pairs = zip(values[0].tolist(), step[0].tolist(), HIGH[group], strict=True)
        new = [[min(max(value + size * sign * sign_of(part), 0), high) for value, part, high in pairs]]
    return replace(base, **{FIELD[group]: torch.tensor(new)})


def one_sample(uada, model, input, target, index):
    """The algorithm for one sample alone, in words of its own: images, losses of all passes, candidates, choice."""
    image, label = input[index : index + 1], target[index : index + 1]
    base = row_of(uada.augmentation.base, index)
    groups = list(uada.augmentation.steps)
    steps = {group: uada.augmentation.steps[group][index : index + 1] for group in groups}

    def score(params):
        with torch.no_grad():
            view = augment(uada, image, params)
            return view, F.cross_entropy(model(view), label).item(), params

    scored = [score(base)]
    candidates = [scored[0]]
    if uada.step == 'random':
        for group in groups:
            toss = int(steps[group]) if group == 'flip' else 1
            candidates.append(score(moved_by_hand(base, group, steps[group], toss, uada.epsilon)))
        scored = candidates
    else:
        probes = [score(moved_by_hand(base, group, steps[group], 1, uada.delta)) for group in groups]
        up = -1 if uada.step == 'descend' else 1
        for group, (_, loss, _) in zip(groups, probes, strict=True):
            direction = up * sign_of(loss - scored[0][1])
            candidates.append(score(moved_by_hand(base, group, steps[group], direction, uada.epsilon)))
        scored = [*scored, *probes, *(part for group, part in zip(groups, candidates[1:]) if group != 'flip')]
    losses = [loss for _, loss, _ in candidates]
    best = min if uada.step == 'descend' else max
    return scored, candidates, losses.index(best(losses))


CASES = {
    'all': {},
    'descend': {'step': 'descend'},
    'random': {'step': 'random'},
    'delta 2': {'delta': 2},
    'epsilon 3': {'epsilon': 3},
    'delta 3, epsilon 2, descend': {'delta': 3, 'epsilon': 2, 'step': 'descend'},
    'epsilon 4, random': {'epsilon': 4, 'step': 'random'},
    'policy': {'groups': ['policy']},
    'flip': {'groups': ['flip']},
    'flip, descend': {'groups': ['flip'], 'step': 'descend'},
    'crop and cutout': {'groups': ['crop', 'cutout']},
}
PASSES = {'random': 5, 'epsilon 4, random': 5, 'policy': 3, 'flip': 2, 'flip, descend': 2, 'crop and cutout': 5}


@pytest.mark.parametrize('case', CASES)
def test_passes_candidates_and_choice_equal_those_of_each_sample_alone(case):
    model = small_model()
    uada = make_uada(model, frozen=True, **CASES[case])
    input, target = make_batch()
    chosen, labels, figures = uada(input, target, (3, 0, 0))
    alone = copy.deepcopy(model).eval()
    expected = [one_sample(uada, alone, input, target, index) for index in range(len(input))]
    assert figures['uada_passes'] == len(uada.scorer.passes) == PASSES.get(case, 8)
    for number, (images, losses) in enumerate(uada.scorer.passes):
        assert_equal(images, torch.cat([scored[number][0] for scored, _, _ in expected]))
        by_hand = torch.tensor([scored[number][1] for scored, _, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(losses, by_hand, rtol=0, atol=1e-9)
    assert_equal(chosen, torch.cat([candidates[index][0] for _, candidates, index in expected]))
    assert_equal(labels, target)
    gains = [candidates[index][1] - candidates[0][1] for _, candidates, index in expected]
    assert float(figures['uada_gain']) == pytest.approx(np.mean(gains), abs=1e-9)
    assert len({index for _, _, index in expected}) > 1  # not the same candidate for all


@pytest.mark.parametrize('step', ['ascend', 'descend', 'random'])
def test_with_batch_statistics_choices_equal_those_of_fresh_copies_of_the_model(step):
    """Every pass, whole batch by whole batch, by a copy of the model that trains as usual."""
    model = small_model()
    uada = make_uada(model, step=step)
    input, target = make_batch()
    chosen, _, figures = uada(input, target, (3, 0, 0))
    base, steps = uada.augmentation.base, uada.augmentation.steps
    up = -1 if step == 'descend' else 1

    def score(params):
        images = augment(uada, input, params)
        return images, F.cross_entropy(copy.deepcopy(model).train()(images), target, reduction='none').detach()

    def moved(group, signs):
        parts = [
            moved_by_hand(row_of(base, index), group, steps[group][index : index + 1], sign)
            for index, sign in enumerate(signs)
        ]
        return replace(base, **{FIELD[group]: torch.cat([getattr(part, FIELD[group]) for part in parts])})

    def candidate(group, signs):
        """Images and losses; where a sample has not moved it is its base."""
        params = moved(group, signs)
        images, losses = score(params)
        unmoved = (getattr(params, FIELD[group]) == getattr(base, FIELD[group])).view(len(input), -1).all(dim=1)
        return (images, losses), (images, torch.where(unmoved, scored[0][1], losses))

    scored = [score(base)]
    candidates = list(scored)
    ones = [1] * len(input)
    if step == 'random':
        tosses = {group: steps[group].int().tolist() if group == 'flip' else ones for group in GROUPS}
        pairs = [candidate(group, tosses[group]) for group in GROUPS]
        scored += [pair[0] for pair in pairs]
        candidates += [pair[1] for pair in pairs]
    else:
        scored += [score(moved(group, ones)) for group in GROUPS]
        rescored = []
        for group, (_, losses) in zip(GROUPS, scored[1:], strict=True):
            signs = [up * sign_of(difference) for difference in (losses - scored[0][1]).tolist()]
            as_scored, as_chosen = candidate(group, signs)
            if group == 'flip':  # no pass of its own: the losses of the base and of the probe
                rising = torch.tensor(signs) > 0
                as_chosen = as_chosen[0], torch.where(rising, losses, candidates[0][1])
            else:
                rescored.append(as_scored)
            candidates.append(as_chosen)
        scored += rescored
    assert len(uada.scorer.passes) == len(scored) == (5 if step == 'random' else 8)
    for (images, losses), (by_hand, expected) in zip(uada.scorer.passes, scored, strict=True):
        assert_equal(images, by_hand)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-9)
    losses = torch.stack([losses for _, losses in candidates])
    index = (losses if step != 'descend' else -losses).argmax(dim=0)
    assert_equal(chosen, torch.stack([candidates[number][0][row] for row, number in enumerate(index.tolist())]))
    gain = losses.gather(0, index[None])[0] - losses[0]
    assert float(figures['uada_gain']) == pytest.approx(gain.mean().item(), abs=1e-9)
    assert len(set(index.tolist())) > 2


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize(('step', 'sign'), [('ascend', 1), ('random', 1), ('descend', -1)])
def test_no_sample_trains_on_less_than_its_base(step, sign, frozen):
    """For `descend` on no more."""
    uada = make_uada(small_model(), step=step, frozen=frozen)
    gains = []
    for update in range(6):
        input, target = make_batch(seed=update)
        chosen, _, figures = uada(input, target, (update, 0, 0))
        _, base_losses = uada.scorer.passes[0]
        images, losses = (torch.stack(parts) for parts in zip(*uada.scorer.passes))
        found = (images == chosen).flatten(2).all(dim=2)
        assert found.any(dim=0).all()  # whatever is trained on was scored
        own = torch.where(found, sign * losses, -torch.inf).amax(dim=0)
        assert (own >= sign * base_losses).all()
        gains.append(sign * float(figures['uada_gain']))
        uada.scorer.passes.clear()
    assert min(gains) > 0


# --- directions ---------------------------------------------------------------------------------------------------


class Meter(nn.Module):
    """Two classes; the logit of class 0 is a number measured in the image, with which the loss of class 1 rises."""

    def __init__(self, measure):
        super().__init__()
        self.measure = measure

    def forward(self, input):
        value = self.measure(input)
        return torch.stack([value, torch.zeros_like(value)], dim=1)


PLAIN = {'mean': (0.0,) * 3, 'std': (1.0,) * 3}


@pytest.mark.parametrize(('step', 'uphill'), [('ascend', 1), ('descend', -1)])
@pytest.mark.parametrize(('delta', 'epsilon'), [(1, 1), (2, 1), (1, 3)])
def test_levels_move_towards_brighter_images_where_the_loss_rises_with_brightness(delta, epsilon, step, uphill):
    """In dark images brightness rises or, with sign -1, falls with the level; the other operator has no levels."""
    count = 200
    brightness, identity = OPERATORS.index('brightness'), OPERATORS.index('identity')
    slots = np.random.default_rng(1).integers(2, size=count)

    def given(drawn):
        types = np.full((count, 2), identity)
        types[np.arange(count), slots] = brightness
        return replace(drawn, types=torch.from_numpy(types))

    model = Meter(lambda input: 5 * input.mean(dim=(1, 2, 3)))
    uada = make_uada(model, ['policy'], delta=delta, epsilon=epsilon, step=step, augmentation=PLAIN)
    uada.augmentation.given = given
    input = torch.randint(20, 100, (count, 3, HEIGHT, WIDTH)) / 255
    target = torch.randint(2, (count,))
    chosen, _, figures = uada(input, target, (0, 0, 0))

    base, steps = uada.augmentation.base, uada.augmentation.steps['policy']
    expected, moved = base.levels.clone(), 0
    for index, slot in enumerate(slots):
        if steps[index, slot] == 0:  # it was the turn of the other operator
            continue
        brighter = 1 if base.signs[index, slot] > 0 else -1
        rises = 1 if target[index] == 1 else -1
        level = int(base.levels[index, slot])
        expected[index, slot] = min(max(level + uphill * epsilon * brighter * rises, 0), 9)
        moved += int(expected[index, slot] != level)
    assert_equal(chosen, augment(uada, input, replace(base, levels=expected)))
    assert float(figures['uada_moved']) == pytest.approx(moved / count)
    assert 60 < moved < 140
    assert uphill * float(figures['uada_gain']) > 0


@pytest.mark.parametrize(('step', 'uphill'), [('ascend', 1), ('descend', -1)])
@pytest.mark.parametrize(('delta', 'epsilon'), [(1, 1), (3, 1), (1, 2)])
def test_crops_move_along_the_sign_of_the_difference_in_both_coordinates(delta, epsilon, step, uphill):
    """The loss is linear in the place of a white pixel; both coordinates follow the one difference of the probe."""
    count, padding = 200, 6
    places = torch.arange(HEIGHT * WIDTH, dtype=torch.float64).view(HEIGHT, WIDTH)
    row, column = places // WIDTH, places % WIDTH
    offsets = torch.randint(4, 9, (count, 2))  # of 0 to 12: no bound is near
    model = Meter(lambda input: (input[:, 0] * (0.05 * row + 0.001 * column)).sum(dim=(1, 2)))
    augmentation = {**PLAIN, 'padding': padding}
    uada = make_uada(model, ['crop'], delta=delta, epsilon=epsilon, step=step, augmentation=augmentation)
    uada.augmentation.given = lambda drawn: replace(drawn, offsets=offsets)
    input = torch.zeros(count, 3, HEIGHT, WIDTH)
    input[:, :, 8, 12] = 1
    target = torch.randint(2, (count,))
    chosen, _, figures = uada(input, target, (0, 0, 0))

    down, right = uada.augmentation.steps['crop'].sign().T
    rises = 2 * target - 1
    expected = torch.stack([-rises * uphill, -rises * uphill * down * right], dim=1)  # the pixel moves the other way
    assert_equal(chosen, augment(uada, input, replace(uada.augmentation.base, offsets=offsets + epsilon * expected)))
    assert float(figures['uada_moved']) == 1
    assert uphill * float(figures['uada_gain']) > 0.01 * epsilon


@pytest.mark.parametrize(('step', 'uphill'), [('ascend', 1), ('descend', -1)])
def test_images_are_flipped_where_that_raises_the_loss(step, uphill):
    count, half = 60, WIDTH // 2
    model = Meter(lambda input: 9 * (input[..., :half] - input[..., half:]).mean(dim=(1, 2, 3)))
    uada = make_uada(model, ['flip'], step=step, augmentation=PLAIN)
    input, target = make_batch(count, classes=2)
    chosen, _, figures = uada(input, target, (0, 0, 0))
    flips = uada.augmentation.base.flips
    lighter_left = (model.measure(input) > 0) != flips  # after the drawn flip
    rises = lighter_left != (target == 1)  # a flip takes away from a positive difference
    expected = flips ^ (rises if uphill > 0 else ~rises)
    assert_equal(chosen, augment(uada, input, replace(uada.augmentation.base, flips=expected)))
    assert float(figures['uada_moved']) == pytest.approx((expected != flips).float().mean().item())
    assert 0.2 < float(figures['uada_moved']) < 0.8


def test_what_changes_nothing_does_not_move():
    """Grey images: colour changes nothing, the difference is zero, and the sample keeps its parameters."""
    color = OPERATORS.index('color')
    uada = make_uada(small_model(), ['policy'], frozen=True)
    uada.augmentation.given = lambda drawn: replace(drawn, types=torch.full((16, 2), color))
    input, target = make_batch()
    input = input[:, :1].expand(-1, 3, -1, -1).clone()
    _, _, figures = uada(input, target, (0, 0, 0))
    assert_equal(uada.augmentation.applied[-1].levels, uada.augmentation.base.levels)
    assert float(figures['uada_moved']) == float(figures['uada_gain']) == 0


@pytest.mark.parametrize('reuse', [False, True])
@pytest.mark.parametrize(('delta', 'epsilon', 'step'), [(1, 1, 'ascend'), (3, 20, 'ascend'), (2, 7, 'random')])
def test_parameters_stay_in_their_ranges_over_many_updates(delta, epsilon, step, reuse):
    model = Meter(lambda input: input.mean(dim=(1, 2, 3)) + input[:, 0, 3, 5])
    uada = make_uada(model, delta=delta, epsilon=epsilon, step=step, reuse=reuse)
    reached = set()
    for update in range(40):
        input, target = make_batch(8, seed=update, classes=2)
        uada(input, target, (update, 0, 0))
        for params in uada.augmentation.applied:
            for group, high in HIGH.items():
                values = getattr(params, FIELD[group])
                assert (values >= 0).all() and (values <= torch.tensor(high)).all()
                assert_equal(params.types, uada.augmentation.base.types)
                assert_equal(params.signs, uada.augmentation.base.signs)
            reached |= set(params.levels.flatten().tolist())
    assert reached == set(range(10))


# --- no adaptation ------------------------------------------------------------------------------------------------


class Forbidden(nn.Module):
    def forward(self, input):
        raise AssertionError('the model was called')


@pytest.mark.parametrize('step', ['ascend', 'random', 'descend'])
def test_epsilon_0_trains_on_the_base_of_the_adaptive_run_without_a_pass(step):
    adaptive = make_uada(small_model(), step=step)
    plain = make_uada(Forbidden(), step=step, epsilon=0)
    for key in ((0, 0, 0), (5, 1, 2)):
        input, target = make_batch(seed=key[0])
        adaptive(input, target, key)
        images, labels, figures = plain(input, target, key)
        assert_equal(images, adaptive.scorer.passes[0][0])
        assert_equal(labels, target)
        assert figures == {'uada_passes': 0}
        adaptive.scorer.passes.clear()


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
        results = [uada(*make_batch(seed=update), (update, 0, 0)) for update in range(4)]
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
        assert all(0 < count <= size and count % max(size // 4, 1) == 0 for count in sizes), sizes
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
