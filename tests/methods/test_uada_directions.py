"""UADA: which way each parameter of a sample steps, and how far, where the loss's slope is known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from regaug.augment.operators import OPERATORS
from tests.helpers.training import assert_equal
from tests.helpers.uada import FIELD, HEIGHT, HIGH, WIDTH, Meter, augment, make_batch, make_uada, small_model

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
