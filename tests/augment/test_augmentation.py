"""Augmentation with parameters as data: their draws and steps, and images equal to those of Pillow and torchvision."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import functional

from regaug.augment.operators import LEVELLESS, OPERATORS
from regaug.augment.parameters import BASE, GROUPS, Augmentation, Parameters
from tests.helpers.training import assert_equal

HEIGHT, WIDTH = 24, 40  # not square: rows and columns cannot be taken for each other
MANY = 20_000
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
FIELD = {'crop': 'offsets', 'flip': 'flips', 'policy': 'levels', 'cutout': 'boxes'}
SIGNED = ('shear_x', 'shear_y', 'translate_x', 'translate_y', 'rotate', 'color', 'contrast', 'sharpness', 'brightness')


def make_augmentation(groups=GROUPS, *, channels=3, **kwargs):
    return Augmentation(groups, **{'mean': MEAN[:channels], 'std': STD[:channels], 'cutout_size': 10, **kwargs})


def augment(augmentation, images, *candidates):
    """Normalised images of candidates that are augmented together, the first of which is the base."""
    names = dict(zip((BASE, *augmentation.groups), candidates))
    results, _ = augmentation.apply(images, names)
    assert list(results) == list(names) and len(names) == len(candidates)
    return list(results.values())


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


def test_samples_without_policy_and_cutout_stay_so_however_they_move(images):
    augmentation = make_augmentation(['policy', 'cutout'], intensity=0.0)
    rng = np.random.default_rng(1)
    base = augmentation.draw(rng, images)
    expected = (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    for delta in (1, 3):
        steps = augmentation.draw_steps(rng, base, delta)
        for sign in (1, -1):
            moved = [augmentation.move(base, group, sign * step) for group, step in steps.items()]
            for result in augment(augmentation, images, base, *moved):
                assert_equal(result, expected)


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


# --- images -------------------------------------------------------------------------------------------------------


def make_images(count, channels=3, seed=4):
    """8-bit images [count, channels, 24, 40] as floats: coloured waves and some noise, of different ranges."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    frequency, phase = rng.uniform(-0.4, 0.4, (2, count, channels, 1, 1)), rng.uniform(0, 6, (count, channels, 1, 1))
    waves = np.sin(frequency[0] * rows + frequency[1] * columns + phase)
    middle, spread = rng.uniform(70, 180, (count, channels, 1, 1)), rng.uniform(20, 120, (count, 1, 1, 1))
    pixels = middle + spread * waves + rng.normal(0, 6, (count, channels, HEIGHT, WIDTH))
    return functional.convert_image_dtype(torch.from_numpy(pixels.clip(0, 255).astype(np.uint8)), torch.float32)


@pytest.fixture(scope='module')
def images():
    return make_images(140)


def paper_operator(name, image, level, sign):
    """An operator of AutoAugment on a Pillow image, with the paper's ranges over ten levels."""
    part = level / 9
    signed = sign * part
    fill = 128 if image.mode == 'L' else (128,) * 3
    width, height = image.size

    def affine(matrix, resample=Image.Resampling.NEAREST):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    operators = {
        'shear_x': lambda: affine((1, 0.3 * signed, 0, 0, 1, 0), Image.Resampling.BICUBIC),
        'shear_y': lambda: affine((1, 0, 0, 0.3 * signed, 1, 0), Image.Resampling.BICUBIC),
        'translate_x': lambda: affine((1, 0, signed * width * 150 / 331, 0, 1, 0)),
        'translate_y': lambda: affine((1, 0, 0, 0, 1, signed * height * 150 / 331)),
        'rotate': lambda: image.rotate(30 * signed, fillcolor=fill),
        'color': lambda: ImageEnhance.Color(image).enhance(1 + 0.9 * signed),
        'contrast': lambda: ImageEnhance.Contrast(image).enhance(1 + 0.9 * signed),
        'sharpness': lambda: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * signed),
        'brightness': lambda: ImageEnhance.Brightness(image).enhance(1 + 0.9 * signed),
        'posterize': lambda: ImageOps.posterize(image, [8, 8, 7, 7, 6, 6, 5, 5, 4, 4][level]),
        'solarize': lambda: ImageOps.solarize(image, 256 - 256 * part),
        'autocontrast': lambda: ImageOps.autocontrast(image),
        'equalize': lambda: ImageOps.equalize(image),
        'identity': lambda: image,
    }
    return operators[name]()


def augment_one(image, params, index, *, groups, padding, pad_mode):
    """One image [C, H, W] augmented by Pillow and torchvision on 8 bits, then normalised: float64 [C, H, W]."""
    channels = len(image)
    image = functional.to_pil_image(image.mul(255).round().byte())
    if 'crop' in groups:
        top, left = params.offsets[index].tolist()
        image = functional.crop(functional.pad(image, padding, 0, pad_mode), top, left, HEIGHT, WIDTH)
    if 'flip' in groups and params.flips[index]:
        image = ImageOps.mirror(image)
    if 'policy' in groups:
        for slot in range(2):
            name = OPERATORS[params.types[index, slot]]
            image = paper_operator(name, image, int(params.levels[index, slot]), int(params.signs[index, slot]))
    if 'cutout' in groups:
        top, bottom, left, right = params.boxes[index].tolist()
        image.paste(0 if channels == 1 else (0, 0, 0), (left, top, right, bottom))
    pixels = np.asarray(image, dtype=np.float64).reshape(HEIGHT, WIDTH, channels) / 255
    return ((pixels - MEAN[:channels]) / STD[:channels]).transpose(2, 0, 1)


@pytest.mark.parametrize('channels', [3, 1])
@pytest.mark.parametrize('pad_mode', ['constant', 'reflect'])
@pytest.mark.parametrize('groups', [*[[group] for group in GROUPS], list(GROUPS)], ids='+'.join)
def test_a_batch_equals_its_samples_augmented_one_by_one_by_pillow(groups, pad_mode, channels):
    """Up to rounding; of a policy's values 2 in 1000 may differ, where a nearest pixel or a bicubic sum is a tie."""
    count = 280 if 'policy' in groups else 60
    images = make_images(count, channels)
    augmentation = make_augmentation(groups, channels=channels, pad_mode=pad_mode, padding=3)
    params = augmentation.draw(np.random.default_rng(7), images)
    [result] = augment(augmentation, images, params)
    how = dict(groups=groups, padding=3, pad_mode=pad_mode)
    expected = np.stack([augment_one(image, params, index, **how) for index, image in enumerate(images)])
    differ = np.abs(result.numpy() - expected) > 1e-5
    assert differ.mean() <= (2e-3 if 'policy' in groups else 0)
    assert differ.any(axis=(1, 2, 3)).mean() < 0.2  # most of the images are right everywhere
    plain = augment_one(images[0], params, 0, groups=[], padding=0, pad_mode=pad_mode)
    assert np.abs(plain - expected[0]).max() > 0.1 or groups == ['flip']  # there was something to agree on


def test_groups_act_in_the_order_crop_flip_policy_cutout():
    """One image by hand: a white column moved by the crop, mirrored, sent to black by the policy, and erased last."""
    image = torch.zeros(1, 3, HEIGHT, WIDTH)
    image[..., 5] = 1
    solarize, identity = OPERATORS.index('solarize'), OPERATORS.index('identity')
    params = Parameters(
        offsets=torch.tensor([[4, 6]]),  # two pixels to the left of the middle: the column comes to 3
        flips=torch.tensor([1]),  # and to 36
        types=torch.tensor([[solarize, identity]]),
        levels=torch.tensor([[9, 0]]),  # everything is inverted
        signs=torch.ones(1, 2, dtype=torch.int64),
        boxes=torch.tensor([[2, 9, 30, 33]]),
    )
    [result] = augment(make_augmentation(mean=(0.0,) * 3, std=(1.0,) * 3), image, params)
    expected = torch.ones(HEIGHT, WIDTH)
    expected[:, 36] = 0
    expected[2:9, 30:33] = 0
    assert_equal(result, expected.expand(1, 3, -1, -1).clone())


def test_operators_act_in_the_order_of_the_policy(images):
    """Solarising and then shifting leaves the fill grey as it is; the other way round it is inverted."""
    augmentation = make_augmentation(['policy'], mean=(0.0,) * 3, std=(1.0,) * 3)
    both = [OPERATORS.index(name) for name in ('solarize', 'translate_x')]
    params = augmentation.draw(np.random.default_rng(0), images[:1])
    params = replace(params, levels=torch.tensor([[9, 9]]), signs=torch.ones(1, 2, dtype=torch.int64))
    corners = []
    for types in (both, both[::-1]):
        [result] = augment(augmentation, images[:1], replace(params, types=torch.tensor([types])))
        corners.append(round(result[0, 0, 0, -1].item() * 255))
    assert corners == [128, 127]


def test_timms_ranges_are_another_augmentation(images):
    results = []
    for ranges in ('paper', 'timm'):
        augmentation = make_augmentation(['policy'], ranges=ranges)
        [result] = augment(augmentation, images, augmentation.draw(np.random.default_rng(7), images))
        results.append(result)
    differ = (results[0] - results[1]).abs().flatten(1).amax(dim=1) > 1e-5
    assert 0.5 < differ.float().mean() < 0.99


def test_cutout_is_black_before_normalisation(images):
    augmentation = make_augmentation(['cutout'])
    params = augmentation.draw(np.random.default_rng(0), images)
    [result] = augment(augmentation, images, params)
    for sample, (top, bottom, left, right) in zip(result, params.boxes.tolist()):
        box = sample[:, max(top, 0) : bottom, max(left, 0) : right]
        assert box.numel() >= 3 * 25
        for channel, mean, std in zip(box, MEAN, STD):
            assert torch.equal(channel, torch.full_like(channel, (0 - np.float32(mean)) / np.float32(std)))


def candidates_of(augmentation, images):
    """A base and, for each group, what it becomes by a step."""
    rng = np.random.default_rng(8)
    base = augmentation.draw(rng, images)
    steps = augmentation.draw_steps(rng, base, 2)
    return [base, *(augmentation.move(base, group, step) for group, step in steps.items())]


@pytest.mark.parametrize('groups', [GROUPS, ['policy', 'cutout'], ['cutout'], ['flip', 'cutout']], ids='+'.join)
def test_candidates_augmented_together_equal_each_alone(groups, images):
    augmentation = make_augmentation(groups)
    candidates = candidates_of(augmentation, images)
    together = augment(augmentation, images, *candidates)
    alone = [image for params in candidates for image in augment(augmentation, images, params)]
    assert_equal(together, alone)
    assert len(together) == 1 + len(groups)
    for moved in together[1:]:
        assert not torch.equal(moved, together[0])


@pytest.mark.parametrize('groups', [GROUPS, ['crop', 'flip'], ['policy', 'cutout']], ids='+'.join)
def test_a_later_call_without_the_base_gives_what_each_candidate_gives_alone(groups, images):
    """The base's images before Cutout serve the next call, as between the probes and the moved parameters of a step."""
    augmentation = make_augmentation(groups)
    base, *moved = candidates_of(augmentation, images)
    _, before_cutout = augmentation.apply(images, {BASE: base})
    results, same = augmentation.apply(images, dict(zip(groups, moved)), before_cutout)
    assert same is before_cutout and list(results) == list(groups)
    assert_equal(list(results.values()), [image for params in moved for image in augment(augmentation, images, params)])


def test_a_moved_cutout_needs_no_operators(images, monkeypatch):
    augmentation = make_augmentation()
    candidates = dict(zip((BASE, *GROUPS), candidates_of(augmentation, images)))
    batches = []
    operate = augmentation.operate
    monkeypatch.setattr(
        augmentation, 'operate', lambda input, params: batches.append(len(params)) or operate(input, params)
    )
    _, before_cutout = augmentation.apply(images, candidates)
    augmentation.apply(images, {'cutout': candidates['cutout']}, before_cutout)
    assert batches == [4, 0]


@pytest.mark.parametrize('groups', [*[[group] for group in GROUPS], list(GROUPS)], ids='+'.join)
def test_the_input_is_never_edited_nor_handed_on(groups, images):
    augmentation, given = make_augmentation(groups), images.clone()
    for result in augment(augmentation, given, *candidates_of(augmentation, given)):
        assert_equal(given, images)
        result.zero_()
    assert_equal(given, images)


@pytest.mark.parametrize('groups', [*[[group] for group in GROUPS], list(GROUPS)], ids='+'.join)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_results_keep_the_memory_format_of_the_input_and_do_not_depend_on_it(groups, memory_format, images):
    augmentation = make_augmentation(groups)
    candidates = candidates_of(augmentation, images)
    expected = augment(augmentation, images, *candidates)
    results = augment(augmentation, images.contiguous(memory_format=memory_format), *candidates)
    assert_equal(results, expected)
    assert all(result.is_contiguous(memory_format=memory_format) for result in results)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_images_are_cast_after_they_are_normalised_in_float32(dtype, images):
    candidates = candidates_of(make_augmentation(), images)
    plain = augment(make_augmentation(), images, *candidates)
    for result, expected in zip(augment(make_augmentation(dtype=dtype), images, *candidates), plain, strict=True):
        assert result.dtype == dtype
        assert_equal(result, expected.to(dtype))
