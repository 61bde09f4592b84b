"""UADA: the direction of each sample's step, its worst candidate, the traces of scoring, all against brute force."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regaug.augment.operators import OPERATORS
from regaug.augment.parameters import GROUPS
from tests.helpers.training import assert_equal
from tests.helpers.uada import (
    CASES,
    FIELD,
    HEIGHT,
    HIGH,
    WIDTH,
    Meter,
    Noting,
    augment,
    make_batch,
    make_uada,
    moved_by_hand,
    one_sample,
    row_of,
    sign_of,
    small_model,
)

# --- brute force --------------------------------------------------------------------------------------------------


PASSES = {'random': 5, 'epsilon 4, random': 5, 'policy': 3, 'flip': 2, 'flip, descend': 2, 'crop and cutout': 5}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.few(5)
def test_passes_candidates_and_choice_equal_those_of_each_sample_alone(case):
    model = small_model()
    uada = make_uada(model, frozen=True, **CASES[case])
    input, target = make_batch()
    chosen, labels, metrics = uada(input, target, (3, 0, 0))
    alone = copy.deepcopy(model).eval()
    expected = [one_sample(uada, alone, input, target, index) for index in range(len(input))]
    assert metrics['uada_passes'] == len(uada.scorer.passes) == PASSES.get(case, 8)
    for number, (images, losses) in enumerate(uada.scorer.passes):
        assert_equal(images, torch.cat([scored[number][0] for scored, _, _ in expected]))
        by_hand = torch.tensor([scored[number][1] for scored, _, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(losses, by_hand, rtol=0, atol=1e-9)
    assert_equal(chosen, torch.cat([candidates[index][0] for _, candidates, index in expected]))
    assert_equal(labels, target)
    gains = [candidates[index][1] - candidates[0][1] for _, candidates, index in expected]
    assert float(metrics['uada_gain']) == pytest.approx(np.mean(gains), abs=1e-9)
    assert len({index for _, _, index in expected}) > 1  # not the same candidate for all


@pytest.mark.parametrize('step', ['ascend', 'descend', 'random'])
def test_with_batch_statistics_choices_equal_those_of_fresh_copies_of_the_model(step):
    """Every pass, whole batch by whole batch, by a copy of the model that trains as usual."""
    model = small_model()
    uada = make_uada(model, step=step)
    input, target = make_batch()
    chosen, _, metrics = uada(input, target, (3, 0, 0))
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
        tosses = {group: steps[group].abs().tolist() if group == 'flip' else ones for group in GROUPS}
        pairs = [candidate(group, tosses[group]) for group in GROUPS]
        scored += [pair[0] for pair in pairs]
        candidates += [pair[1] for pair in pairs]
    else:
        probes = [candidate(group, ones) for group in GROUPS]
        assert any((as_scored[1] != own[1]).any() for as_scored, own in probes)  # where a bound holds the probe back
        scored += [as_scored for as_scored, _ in probes]
        rescored = []
        for group, (_, (_, losses)) in zip(GROUPS, probes, strict=True):
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
    assert float(metrics['uada_gain']) == pytest.approx(gain.mean().item(), abs=1e-9)
    assert len(set(index.tolist())) > 2


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize(('step', 'sign'), [('ascend', 1), ('random', 1), ('descend', -1)])
def test_no_sample_trains_on_less_than_its_base(step, sign, frozen):
    """For `descend` on no more."""
    uada = make_uada(small_model(), step=step, frozen=frozen)
    gains = []
    for update in range(6):
        input, target = make_batch(seed=update)
        chosen, _, metrics = uada(input, target, (update, 0, 0))
        _, base_losses = uada.scorer.passes[0]
        images, losses = (torch.stack(parts) for parts in zip(*uada.scorer.passes))
        found = (images == chosen).flatten(2).all(dim=2)
        assert found.any(dim=0).all()  # whatever is trained on was scored
        own = torch.where(found, sign * losses, -torch.inf).amax(dim=0)
        assert (own >= sign * base_losses).all()
        gains.append(sign * float(metrics['uada_gain']))
        uada.scorer.passes.clear()
    assert min(gains) > 0


# --- directions ---------------------------------------------------------------------------------------------------


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
    chosen, _, metrics = uada(input, target, (0, 0, 0))

    base, steps = uada.augmentation.base, uada.augmentation.steps['policy']
    expected, moved, held_back = base.levels.clone(), 0, 0
    for index, slot in enumerate(slots):
        if steps[index, slot] == 0:  # it was the turn of the other operator
            continue
        brighter = 1 if base.signs[index, slot] > 0 else -1
        rises = 1 if target[index] == 1 else -1
        level = int(base.levels[index, slot])
        if level == min(max(level + int(steps[index, slot]), 0), 9):  # at a bound, without a difference to follow
            held_back += 1
            continue
        expected[index, slot] = min(max(level + uphill * epsilon * brighter * rises, 0), 9)
        moved += int(expected[index, slot] != level)
    assert_equal(chosen, augment(uada, input, replace(base, levels=expected)))
    assert float(metrics['uada_moved']) == pytest.approx(moved / count)
    assert 50 < moved < 140 and held_back > 3
    assert uphill * float(metrics['uada_gain']) > 0


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
    chosen, _, metrics = uada(input, target, (0, 0, 0))

    down, right = uada.augmentation.steps['crop'].sign().T
    rises = 2 * target - 1
    expected = torch.stack([-rises * uphill, -rises * uphill * down * right], dim=1)  # the pixel moves the other way
    assert_equal(chosen, augment(uada, input, replace(uada.augmentation.base, offsets=offsets + epsilon * expected)))
    assert float(metrics['uada_moved']) == 1
    assert uphill * float(metrics['uada_gain']) > 0.01 * epsilon


@pytest.mark.parametrize(('step', 'uphill'), [('ascend', 1), ('descend', -1)])
def test_a_coordinate_that_a_bound_holds_back_follows_the_difference_that_the_other_makes(step, uphill):
    """As in the released code: by the sign of its own step, which would have led out of the range."""
    count, padding = 300, 4
    model = Meter(lambda input: (input[:, 0] * torch.arange(WIDTH)).sum(dim=(1, 2)))  # of columns alone
    uada = make_uada(model, ['crop'], step=step, augmentation={**PLAIN, 'padding': padding})
    offsets = torch.stack([torch.randint(2, (count,)) * 2 * padding, torch.randint(2, 7, (count,))], dim=1)
    uada.augmentation.given = lambda drawn: replace(drawn, offsets=offsets)
    input = torch.zeros(count, 3, HEIGHT, WIDTH)
    input[:, :, 8, 12] = 1
    uada(input, torch.ones(count, dtype=torch.int64), (0, 0, 0))
    [candidate] = uada.augmentation.applied[-1:]
    rows, kinds = offsets[:, 0], set()
    for index, (down, right) in enumerate(uada.augmentation.steps['crop'].tolist()):
        uphill_column = -uphill  # the pixel moves the other way
        follows = uphill_column * right  # +1 where the candidate is the probe, -1 where it is opposite
        row = min(max(int(rows[index]) + follows * down, 0), 2 * padding)
        assert candidate.offsets[index].tolist() == [row, int(offsets[index, 1]) + uphill_column]
        kinds.add((int(rows[index]), down, row))
    assert kinds == {(0, -1, 0), (0, -1, 1), (0, 1, 1), (0, 1, 0), (8, 1, 8), (8, 1, 7), (8, -1, 7), (8, -1, 8)}


def test_a_probe_that_a_bound_holds_back_is_the_base_whatever_its_pass_says():
    """Batch statistics give the same image another loss in the probe's pass; no step follows from that."""
    brightness = OPERATORS.index('brightness')
    uada = make_uada(small_model(), ['policy'])
    uada.augmentation.given = lambda drawn: replace(
        drawn, types=torch.full((64, 2), brightness), levels=torch.randint(2, (64, 2)) * 9
    )
    input, target = make_batch(64)
    uada(input, target, (0, 0, 0))
    base, steps = uada.augmentation.base.levels, uada.augmentation.steps['policy']
    held_back = (base + steps).clamp(0, 9).eq(base).all(dim=1)
    assert 10 < held_back.sum() < 54
    losses = [losses for _, losses in uada.scorer.passes]
    assert (losses[1] != losses[0])[held_back].all()
    _, probe, candidate = uada.augmentation.applied
    assert_equal(probe.levels[held_back], base[held_back])
    assert_equal(candidate.levels[held_back], base[held_back])
    assert (candidate.levels != base).any()


@pytest.mark.parametrize(('step', 'uphill'), [('ascend', 1), ('descend', -1)])
def test_images_are_flipped_where_that_raises_the_loss(step, uphill):
    count, half = 60, WIDTH // 2
    model = Meter(lambda input: 9 * (input[..., :half] - input[..., half:]).mean(dim=(1, 2, 3)))
    uada = make_uada(model, ['flip'], step=step, augmentation=PLAIN)
    input, target = make_batch(count, classes=2)
    chosen, _, metrics = uada(input, target, (0, 0, 0))
    flips = uada.augmentation.base.flips
    lighter_left = (model.measure(input) > 0) != flips.bool()  # after the drawn flip
    rises = lighter_left != (target == 1)  # a flip takes away from a positive difference
    expected = flips ^ (rises if uphill > 0 else ~rises).long()
    assert_equal(chosen, augment(uada, input, replace(uada.augmentation.base, flips=expected)))
    assert float(metrics['uada_moved']) == pytest.approx((expected != flips).float().mean().item())
    assert 0.2 < float(metrics['uada_moved']) < 0.8


def test_what_changes_nothing_does_not_move():
    """Grey images: colour changes nothing, the difference is zero, and the sample keeps its parameters."""
    color = OPERATORS.index('color')
    uada = make_uada(small_model(), ['policy'], frozen=True)
    uada.augmentation.given = lambda drawn: replace(drawn, types=torch.full((16, 2), color))
    input, target = make_batch()
    input = input[:, :1].expand(-1, 3, -1, -1).clone()
    _, _, metrics = uada(input, target, (0, 0, 0))
    assert_equal(uada.augmentation.applied[-1].levels, uada.augmentation.base.levels)
    assert float(metrics['uada_moved']) == float(metrics['uada_gain']) == 0


@pytest.mark.parametrize(('delta', 'epsilon', 'step'), [(1, 1, 'ascend'), (3, 20, 'ascend'), (2, 7, 'random')])
def test_parameters_stay_in_their_ranges_over_many_updates(delta, epsilon, step):
    model = Meter(lambda input: input.mean(dim=(1, 2, 3)) + input[:, 0, 3, 5])
    uada = make_uada(model, delta=delta, epsilon=epsilon, step=step)
    reached = set()
    for update in range(40):
        input, target = make_batch(8, seed=update, classes=2)
        uada(input, target, (update, 0, 0))
        for params in uada.augmentation.applied:
            for group, high in HIGH.items():
                values = getattr(params, FIELD[group])
                assert (values >= 0).all() and (values <= high).all()
                assert_equal(params.types, uada.augmentation.base.types)
                assert_equal(params.signs, uada.augmentation.base.signs)
            reached |= set(params.levels.flatten().tolist())
    assert reached == set(range(10))


# --- losses that are no numbers -----------------------------------------------------------------------------------


class Failing(Noting):
    """A scorer for which some losses, others in each pass, are no numbers; those of the last sample never are."""

    def __call__(self, input, target):
        losses = super().__call__(input, target)
        generator = torch.Generator().manual_seed(len(self.passes))
        failed = torch.rand(len(losses), generator=generator) < 0.4
        failed[-1] = True
        losses[failed] = torch.nan
        return losses


@pytest.mark.parametrize('step', ['ascend', 'descend', 'random'])
def test_a_loss_that_is_no_number_is_never_taken_while_there_is_another(step):
    uada = make_uada(small_model(), frozen=True, step=step)
    uada.scorer = Failing(uada.scorer.task)
    input, target = make_batch(80)
    chosen, _, _ = uada(input, target, (3, 0, 0))
    base, *others = uada.augmentation.applied
    scored = [losses for _, losses in uada.scorer.passes]
    moved = dict(zip(GROUPS, others)) if step == 'random' else dict(zip(('crop', 'policy', 'cutout'), others[4:]))
    rescored = dict(zip(moved, scored[1:] if step == 'random' else scored[5:]))
    images, losses = [uada.scorer.passes[0][0]], [scored[0]]
    for group in GROUPS:
        if group in moved:
            same = (getattr(moved[group], FIELD[group]) == getattr(base, FIELD[group])).view(80, -1).all(dim=1)
            params, own = moved[group], rescored[group]
        else:
            flips = (
                scored[2] < scored[0] if step == 'descend' else scored[2] > scored[0]
            )  # false where one is no number
            same, params, own = ~flips, replace(base, flips=base.flips ^ flips.long()), scored[2]
        images.append(augment(uada, input, params))
        losses.append(torch.where(same, scored[0], own))
    sign, found = -1 if step == 'descend' else 1, set()
    for sample in range(80):
        values = [sign * loss[sample].item() for loss in losses]
        numbers = [number for number, value in enumerate(values) if value == value]
        expected = max(numbers, key=values.__getitem__) if numbers else 0
        assert torch.equal(chosen[sample], images[expected][sample])
        found.add((bool(numbers), values[0] == values[0], expected > 0))
    assert {(False, False, False), (True, True, True), (True, True, False)} <= found
    assert (True, False, True) in found or step != 'random'  # where the base is none, only a coin moves anything


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
        images, labels, metrics = plain(input, target, key)
        assert_equal(images, adaptive.scorer.passes[0][0])
        assert_equal(labels, target)
        assert metrics == {'uada_passes': 0}
        adaptive.scorer.passes.clear()
