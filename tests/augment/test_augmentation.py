"""Augmentation with parameters as data: their draws, steps and moves."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from regaug.augment.operators import LEVELLESS, OPERATORS
from regaug.augment.parameters import GROUPS
from tests.helpers.augmentation import HEIGHT, WIDTH, augment, make_augmentation
from tests.helpers.training import assert_equal

MANY = 20_000
FIELD = {'crop': 'offsets', 'flip': 'flips', 'policy': 'levels', 'cutout': 'boxes'}
SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'color', 'contrast', 'sharpness', 'brightness')


def blank(count=MANY):
    """Images of the usual size without memory of their own, for what looks at the size only."""
    return torch.zeros(1, 3, 1, 1).expand(count, 3, HEIGHT, WIDTH)


def draw_many(seed=0, **kwargs):
    """`Parameters` of many samples as arrays by name."""
    params = make_augmentation(**kwargs).draw(np.random.default_rng(seed), blank())
    return {field.name: getattr(params, field.name).numpy() for field in fields(params)}


def assert_uniform(values, expected):
    """Each of the expected values is drawn about as often, and no other one."""
    found, counts = np.unique(values, axis=0, return_counts=True)
    assert sorted(map(tuple, np.atleast_2d(found.T).T.tolist())) == sorted(expected)
    mean = len(values) / len(expected)
    assert np.abs(counts - mean).max() < 5 * np.sqrt(mean)


# --- draws --------------------------------------------------------------------------------------------------------


def test_two_operators_are_drawn_from_all_14_with_replacement():
    assert len(OPERATORS) == 14
    assert_uniform(draw_many()['types'], [(one, other) for one in range(14) for other in range(14)])


def test_levels_are_drawn_from_0_to_9_and_signs_from_both_for_each_operator():
    drawn = draw_many()
    assert_uniform(drawn['levels'], [(one, other) for one in range(10) for other in range(10)])
    assert_uniform(drawn['signs'], [(-1, -1), (-1, 1), (1, -1), (1, 1)])


@pytest.mark.parametrize('padding', [1, 4])
def test_crops_are_drawn_from_all_places_in_the_padded_image(padding):
    places = range(2 * padding + 1)
    assert_uniform(draw_many(padding=padding)['offsets'], [(row, column) for row in places for column in places])


@pytest.mark.parametrize('prob', [0.0, 0.3, 1.0])
def test_flips_have_their_probability(prob):
    assert draw_many(flip_prob=prob)['flips'].mean() == pytest.approx(prob, abs=0.015 if 0 < prob < 1 else 0)


@pytest.mark.parametrize('size', [10, 5, 30])
def test_cutout_is_a_square_around_any_pixel_that_begins_anywhere_and_ends_within_the_image(size):
    boxes = draw_many(cutout_size=size)['boxes']
    for edges, length in ((boxes[:, :2], HEIGHT), (boxes[:, 2:], WIDTH)):
        squares = [(centre - size // 2, min(centre - size // 2 + size, length)) for centre in range(length)]
        expected = sorted(set(squares))
        found, counts = np.unique(edges, axis=0, return_counts=True)
        assert list(map(tuple, found.tolist())) == expected
        assert np.abs(counts / MANY - 1 / length).max() < 5 * np.sqrt(1 / length / MANY)
    by_row, by_column = boxes[:, 0] > np.median(boxes[:, 0]), boxes[:, 2] > np.median(boxes[:, 2])
    assert abs(np.corrcoef(by_row, by_column)[0, 1]) < 0.05


def test_parameters_of_different_kinds_are_independent():
    drawn = draw_many()
    columns = np.column_stack([drawn[name].reshape(MANY, -1) for name in ('offsets', 'flips', 'types', 'levels')])
    columns = np.column_stack([columns, drawn['signs'], drawn['boxes'][:, ::2]]).astype(float)
    correlation = np.corrcoef(columns, rowvar=False)
    assert np.abs(correlation - np.eye(len(correlation))).max() < 0.04


@pytest.mark.parametrize('intensity', [0.0, 0.3, 1.0])
def test_intensity_is_the_share_of_the_samples_that_get_a_policy_and_a_cutout(intensity):
    drawn = draw_many(intensity=intensity)
    erased = (drawn['boxes'][:, 1] > drawn['boxes'][:, 0]) & (drawn['boxes'][:, 3] > drawn['boxes'][:, 2])
    with_policy = (drawn['types'] != OPERATORS.index('identity')).any(axis=1)
    tolerance = 0.015 if 0 < intensity < 1 else 0
    assert erased.mean() == pytest.approx(intensity, abs=tolerance)
    assert with_policy.mean() == pytest.approx(intensity * (1 - 1 / 14**2), abs=0.015 if intensity else 0)
    assert not (with_policy & ~erased).any()
    if intensity:
        assert_uniform(drawn['types'][erased], [(one, other) for one in range(14) for other in range(14)])


def test_intensity_leaves_crop_and_flip():
    weak, strong = draw_many(intensity=0.0), draw_many(intensity=1.0)
    places = [(row, column) for row in range(9) for column in range(9)]
    for drawn in (weak, strong):
        assert_uniform(drawn['offsets'], places)
        assert drawn['flips'].mean() == pytest.approx(0.5, abs=0.015)


def test_draws_are_those_of_the_generator_alone():
    one, same, other = draw_many(seed=5), draw_many(seed=5), draw_many(seed=6)
    for name in one:
        assert np.array_equal(one[name], same[name])
        assert not np.array_equal(one[name], other[name])


# --- steps --------------------------------------------------------------------------------------------------------


def draw_steps(delta=1, count=MANY, toss_flips=False, **kwargs):
    """(base, steps, probe) as arrays: {group: values [B, ...]} each."""
    augmentation, rng, input = make_augmentation(**kwargs), np.random.default_rng(2), blank(count)
    base = augmentation.draw(rng, input)
    steps = augmentation.draw_steps(rng, base, delta, toss_flips=toss_flips)
    bases = {group: getattr(base, FIELD[group]).numpy() for group in steps} | {'types': base.types.numpy()}
    probes = {
        group: getattr(augmentation.move(base, group, step), FIELD[group]).numpy() for group, step in steps.items()
    }
    return bases, {group: step.numpy() for group, step in steps.items()}, probes


HIGH = {'crop': 8, 'policy': 9, 'flip': 1}  # of parameters that have bounds; the lower one is 0


@pytest.mark.parametrize('delta', [1, 2, 3])
@pytest.mark.parametrize('group', ['crop', 'policy', 'cutout'])
def test_probes_move_each_coordinate_up_or_down_by_delta_as_far_as_there_is_room(group, delta):
    base, steps, probes = draw_steps(delta)
    values, step = base[group], steps[group]
    moving = step != 0
    assert moving.all() == (group != 'policy')
    assert np.array_equal(np.abs(step[moving]), np.full(moving.sum(), delta))
    expected = values + step
    if group in HIGH:
        expected = expected.clip(0, HIGH[group])
        for bound, inwards in ((0, 1), (HIGH[group], -1)):  # a coin decides there, too
            at_bound = moving & (values == bound)
            assert (np.sign(step[at_bound]) == inwards).mean() == pytest.approx(0.5, abs=0.06)
            assert (probes[group] == values)[at_bound].mean() == pytest.approx(0.5, abs=0.06)
    assert (step[moving] > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert np.array_equal(probes[group], expected)


@pytest.mark.parametrize('group', ['crop', 'cutout'])
def test_coordinates_of_a_probe_are_tossed_one_by_one(group):
    base, steps, _ = draw_steps()
    combinations = np.unique(steps[group], axis=0, return_counts=True)[1]
    assert len(combinations) == 2 ** base[group].shape[1]
    assert np.abs(combinations / MANY - 1 / len(combinations)).max() < 0.02


def test_edges_of_a_cutout_move_out_of_the_image_which_cuts_what_lies_outside():
    """Black pixels are those of rows and columns between the edges, wherever these lie."""
    augmentation = make_augmentation(['cutout'], mean=(0.0,) * 3, std=(1.0,) * 3)
    images, rng = torch.ones(500, 3, HEIGHT, WIDTH), np.random.default_rng(9)
    base = augmentation.draw(rng, images)
    moved = augmentation.move(base, 'cutout', 4 * augmentation.draw_steps(rng, base, 1)['cutout'])
    [_, results] = augment(augmentation, images, base, moved)
    boxes = moved.boxes.numpy()
    assert (boxes[:, 0] < -5).any() and (boxes[:, 1] > HEIGHT).any()
    assert (boxes[:, 2] < -5).any() and (boxes[:, 3] > WIDTH).any()
    for result, (top, bottom, left, right) in zip(results, boxes.tolist()):
        expected = [
            [float(not (top <= row < bottom and left <= column < right)) for column in range(WIDTH)]
            for row in range(HEIGHT)
        ]
        assert_equal(result, torch.tensor(expected).expand(3, -1, -1).clone())


def test_one_operator_of_a_policy_moves_and_those_without_levels_stay():
    base, steps, _ = draw_steps()
    moves = steps['policy'] != 0
    without = np.isin(base['types'], [OPERATORS.index(name) for name in ('autocontrast', 'equalize', 'identity')])
    assert not (moves & without).any()
    assert not moves.all(axis=1).any()
    both = ~without.any(axis=1)
    assert moves[both].any(axis=1).all()
    assert moves[both, 0].mean() == pytest.approx(0.5, abs=0.02)
    one = without.sum(axis=1) == 1  # the other one is as likely to be the one that would move
    assert moves[one].any(axis=1).mean() == pytest.approx(0.5, abs=0.02)
    assert moves[one][~without[one]].mean() == pytest.approx(0.5, abs=0.02)
    assert set(LEVELLESS) == {'autocontrast', 'equalize', 'identity'}


def test_the_probe_of_a_flip_is_its_other_value():
    base, _, probes = draw_steps()
    assert np.array_equal(probes['flip'], 1 - base['flip'])


def test_a_coin_decides_about_the_flip_of_each_sample_where_it_is_tossed():
    base, steps, moved = draw_steps(toss_flips=True)
    flipped = base['flip'] != moved['flip']
    assert flipped.mean() == pytest.approx(0.5, abs=0.02)
    assert abs(np.corrcoef(base['flip'], flipped)[0, 1]) < 0.03
    _, others, _ = draw_steps()
    assert all(
        np.array_equal(steps[group], others[group]) for group in GROUPS if group != 'flip'
    )  # all else is drawn alike


# --- moves --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [1, 2, 5, 1000])
@pytest.mark.parametrize('group', GROUPS)
def test_moves_of_any_size_end_within_the_bounds_there_are_and_change_their_group_alone(group, size):
    augmentation, rng, input = make_augmentation(), np.random.default_rng(3), blank(500)
    base = augmentation.draw(rng, input)
    before = {field.name: getattr(base, field.name).clone() for field in fields(base)}
    values = before[FIELD[group]]
    step = torch.from_numpy(rng.integers(-size, size + 1, size=values.shape))
    expected = values.numpy() + step.numpy()
    if group in HIGH:
        expected = expected.clip(0, HIGH[group])
    moved = augmentation.move(base, group, step)
    assert np.array_equal(getattr(moved, FIELD[group]).numpy(), expected)
    assert getattr(moved, FIELD[group]).dtype == values.dtype
    for name, value in before.items():
        assert_equal(getattr(base, name), value)
        if name != FIELD[group]:
            assert_equal(getattr(moved, name), value)
    assert not torch.equal(getattr(moved, FIELD[group]), values)
