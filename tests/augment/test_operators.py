"""Augmentation operators: equal to Pillow's, whatever the batch, its memory format and its device."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from PIL import Image

from regaug.augment import operators
from regaug.augment.operators import LEVELLESS, NUM_LEVELS, OPERATORS, apply_operators, flip, magnitudes, shift_crop
from tests.helpers.operators import (
    EXACT,
    FACTORS,
    LEVELS,
    MAGNITUDE,
    SIGNED,
    TOLERANCE,
    apply_to_one,
    as_array,
    as_tensor,
    assert_agree,
    paper_magnitude,
    pillow,
    random_draws,
)

pytest_plugins = ['tests.helpers.operators']


# Levels


@pytest.mark.parametrize('ranges', ['paper', 'timm'])
@pytest.mark.parametrize('name', OPERATORS)
def test_magnitudes_are_those_of_the_paper_and_of_timm(name, ranges):
    levels, signs = np.array([(level, sign) for level in LEVELS for sign in (1, -1)]).T
    types = torch.full((len(levels),), OPERATORS.index(name))
    values = magnitudes(types, torch.tensor(levels).float(), torch.tensor(signs), ranges)
    expected = [MAGNITUDE[ranges](name, level, sign) for level, sign in zip(levels, signs)]
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-14, atol=1e-14)


def test_ranges_end_at_these_numbers():
    types, down = torch.arange(len(OPERATORS)), -torch.ones(len(OPERATORS))
    low, high = (magnitudes(types, torch.full_like(down, level), down, 'paper').tolist() for level in (0, 9))
    ends = {name: list(pair) for name, *pair in zip(OPERATORS, low, high)}
    assert ends == {
        'shear_x': [0, pytest.approx(-0.3)],
        'shear_y': [0, pytest.approx(-0.3)],
        'translate_x': [0, pytest.approx(-0.453172)],
        'translate_y': [0, pytest.approx(-0.453172)],
        'rotate': [0, pytest.approx(-30)],
        **{name: [1, pytest.approx(0.1)] for name in FACTORS},
        'posterize': [8, 4],
        'solarize': [256, 0],
        **{name: [0, 0] for name in LEVELLESS},
    }


@pytest.mark.parametrize('ranges', ['paper', 'timm'])
def test_level_zero_changes_nothing(batch, ranges):
    for name in SIGNED:
        types = torch.full((len(batch),), OPERATORS.index(name))
        signs = torch.tensor([1, -1]).repeat(len(batch) // 2)
        assert torch.equal(apply_operators(batch, types, torch.zeros(len(batch)), signs, ranges=ranges), batch), name


def test_any_number_type_gives_the_same(batch):
    types, levels, signs = random_draws(len(batch))
    expected = apply_operators(batch, types, levels, signs)
    for dtype in (torch.float32, torch.float64, torch.int8, torch.int32):
        assert torch.equal(apply_operators(batch, types, levels.to(dtype), signs.to(dtype)), expected)


# Agreement with Pillow


@pytest.mark.parametrize('ranges', ['paper', 'timm'])
@pytest.mark.parametrize('name', OPERATORS)
def test_operator_equals_pillow_at_all_levels_and_signs(photographs, name, ranges):
    levels, signs = zip(*[(level, sign) for level in LEVELS for sign in (1, -1)])
    amounts = [MAGNITUDE[ranges](name, level, sign) for level, sign in zip(levels, signs)]
    results, expected = [], []
    for image in photographs:
        results.append(apply_to_one(name, image, levels, signs, ranges).ravel())
        expected.append(np.stack([as_array(pillow(name, image, amount)) for amount in amounts]).ravel())
    assert_agree(name, np.concatenate(results), np.concatenate(expected))


@pytest.mark.parametrize('name', OPERATORS)
def test_levels_between_whole_numbers_equal_pillow_between_the_magnitudes(photographs, name):
    levels, signs = zip(*[(level, sign) for level in (0.3, 2.75, 4.6, 6.5, 8.9) for sign in (1, -1)])
    amounts = [paper_magnitude(name, level, sign) for level, sign in zip(levels, signs)]
    results, expected = [], []
    for image in photographs[:4]:
        results.append(apply_to_one(name, image, levels, signs).ravel())
        expected.append(np.stack([as_array(pillow(name, image, amount)) for amount in amounts]).ravel())
    assert_agree(name, np.concatenate(results), np.concatenate(expected))


@pytest.mark.parametrize('name', OPERATORS)
@pytest.mark.parametrize('size', [(1, 1), (2, 2), (2, 9), (9, 2), (3, 3)])
def test_tiny_and_even_and_two_tone_images_equal_pillows(name, size):
    even = Image.new('RGB', size, (200, 17, 255))
    two_tone = even.copy()
    two_tone.putpixel((0, 0), (100, 18, 0))
    dark = Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3))
    for image in (even, two_tone, dark, dark.convert('L')):
        results = apply_to_one(name, image, LEVELS, [1] * NUM_LEVELS)
        expected = np.stack([as_array(pillow(name, image, paper_magnitude(name, level, 1))) for level in LEVELS])
        differences = np.abs(results.astype(int) - expected.astype(int))
        assert differences.max() <= TOLERANCE[name][0]
        assert name == 'rotate' or differences.mean() <= 0.02  # the tolerated share of so few values is none


def test_colour_of_a_grey_image_stays_as_it_is(photographs):
    image = next(image for image in photographs if image.mode == 'L')
    results = apply_to_one('color', image, LEVELS, [-1] * NUM_LEVELS)
    assert (results == as_array(image)).all()


def test_two_operators_in_a_row_equal_pillows_two(photographs):
    """All pairs: the second one takes what the first one gave; exactly so where none of them is a shear."""
    firsts, seconds = np.divmod(np.arange(len(OPERATORS) ** 2), len(OPERATORS))
    off = total = 0
    for seed, image in enumerate(photographs[:4] + photographs[-4:]):
        draws = [random_draws(len(firsts), seed=2 * seed + order)[1:] for order in (0, 1)]
        results = as_tensor(image).expand(len(firsts), -1, -1, -1)
        for types, (levels, signs) in zip((firsts, seconds), draws):
            results = apply_operators(results, torch.from_numpy(types), levels, signs)
        for index, result in enumerate(results):
            expected = image
            names = [OPERATORS[types[index]] for types in (firsts, seconds)]
            for name, (levels, signs) in zip(names, draws):
                expected = pillow(name, expected, paper_magnitude(name, levels[index].item(), signs[index].item()))
            differing = np.count_nonzero(as_array(result) != as_array(expected))
            assert differing == 0 or any(TOLERANCE[name] != EXACT for name in names), names
            off += differing
            total += result.numel()
    print(f'{off} of {total} values differ')
    assert off <= 2e-3 * total


# The table


def invert(pixels, amounts):
    return 255 - pixels * amounts[:, None, None, None].float()


def test_the_table_may_have_its_rows_in_any_order_and_a_new_operator_is_one_row(batch, monkeypatch):
    types, levels, signs = random_draws(len(batch))
    expected = apply_operators(batch, types, levels, signs)
    table = [*operators.TABLE, operators.Operator('invert', invert, paper=operators.Range(1, 0))]
    table = [table[position] for position in np.random.default_rng(3).permutation(len(table))]
    names = tuple(row.name for row in table)
    families, ranks = operators.group(table)
    for name, value in {'TABLE': tuple(table), 'OPERATORS': names, '_FAMILIES': families, '_RANKS': ranks}.items():
        monkeypatch.setattr(operators, name, value)
    moved = torch.tensor([names.index(OPERATORS[kind]) for kind in types])
    assert not torch.equal(moved, types)
    assert torch.equal(apply_operators(batch, moved, levels, signs), expected)
    moved[::2] = names.index('invert')
    results = apply_operators(batch, moved, levels, signs)
    assert torch.equal(results[1::2], expected[1::2])
    assert torch.equal(results[::2], (255 - (batch[::2] * 255).round()) / 255)


def test_types_are_these_numbers():
    """They are what is drawn: another order would be another run."""
    order = 'shear_x shear_y translate_x translate_y rotate color contrast sharpness brightness'
    assert tuple(f'{order} posterize solarize autocontrast equalize identity'.split()) == OPERATORS


# Batches


@pytest.mark.parametrize('ranges', ['paper', 'timm'])
def test_a_batch_gives_what_its_samples_give_one_at_a_time(batch, ranges):
    types, levels, signs = random_draws(len(batch))
    results = apply_operators(batch, types, levels, signs, ranges=ranges)
    for index in range(len(batch)):
        one = slice(index, index + 1)
        alone = apply_operators(batch[one], types[one], levels[one], signs[one], ranges=ranges)
        assert torch.equal(results[one], alone), OPERATORS[types[index]]


@pytest.mark.parametrize('name', OPERATORS)
def test_a_batch_without_one_of_the_operators_gives_the_same_for_the_others(batch, name):
    types, levels, signs = random_draws(len(batch))
    rest = torch.tensor([index for index, kind in enumerate(types) if OPERATORS[kind] != name])
    results = apply_operators(batch, types, levels, signs)[rest]
    assert torch.equal(apply_operators(batch[rest], types[rest], levels[rest], signs[rest]), results)


@pytest.mark.parametrize('channels', [1, 3])
def test_results_do_not_depend_on_the_memory_format_and_have_the_inputs(batch, channels):
    images = batch[:, :channels].contiguous()
    draws = random_draws(len(batch))
    expected = apply_operators(images, *draws)
    assert expected.is_contiguous()
    channels_last = images.contiguous(memory_format=torch.channels_last)
    results = apply_operators(channels_last, *draws)
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(results, expected)
    inside_others = torch.zeros(len(images), channels + 2, 30, 80)[:, 1:-1, 2:26, ::2].copy_(images)
    assert torch.equal(apply_operators(inside_others, *draws), expected)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_input_is_left_as_it_is_and_shares_no_memory_with_the_result(batch, memory_format):
    images = batch.contiguous(memory_format=memory_format)
    before = images.clone()
    identity = torch.full((len(images),), OPERATORS.index('identity'))
    types, levels, signs = random_draws(len(images))
    offsets, flags = torch.zeros(len(images), 2, dtype=torch.int64), torch.zeros(len(images), dtype=torch.bool)
    for results in (
        apply_operators(images, types, levels, signs),
        apply_operators(images, identity, levels, signs),
        shift_crop(images, offsets, 0, 'constant'),
        flip(images, flags),
    ):
        results.zero_()
        assert torch.equal(images, before)


def test_results_are_grey_levels_over_255(batch):
    results = apply_operators(batch, *random_draws(len(batch)))
    assert torch.equal(results, (results * 255).round() / 255)
    assert results.min() >= 0
    assert results.max() <= 1


def test_rounding_errors_of_the_input_do_not_matter(batch):
    types, levels, signs = random_draws(len(batch))
    types[types == OPERATORS.index('identity')] = OPERATORS.index('equalize')
    noisy = (batch + torch.empty_like(batch).uniform_(-1e-4, 1e-4)).clamp(0, 1)
    assert not torch.equal(noisy, batch)
    assert torch.equal(apply_operators(noisy, types, levels, signs), apply_operators(batch, types, levels, signs))


def test_no_value_of_a_device_is_read():
    """On the device `meta` there are no values: what needs one, as a mask as index or `item` do, raises."""
    images = torch.empty(64, 3, 16, 20, device='meta')
    types, levels, signs = random_draws(64)
    for place in ('cpu', 'meta'):
        draws = (types, levels.to(place), signs.to(place))
        assert apply_operators(images, *draws).shape == images.shape
        assert shift_crop(images, torch.zeros(64, 2, dtype=torch.int64, device=place), 2, 'reflect').is_meta
        assert flip(images, torch.zeros(64, dtype=torch.bool, device=place)).is_meta


# CUDA


@contextmanager
def forbid_waiting():
    """CUDA raises inside where the program would wait for it."""
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode('default')


@pytest.mark.gpu
@pytest.mark.parametrize('place', ['cpu', 'cuda'])
def test_cuda_gives_what_the_cpu_gives_and_is_not_waited_for(batch, place):
    images = batch.repeat(4, 1, 1, 1)
    types, levels, signs = random_draws(len(images))
    offsets, flags = torch.randint(0, 7, (len(images), 2)), torch.rand(len(images)) < 0.5
    on_cuda = images.cuda()
    draws, offsets_there, flags_there = (levels.to(place), signs.to(place)), offsets.to(place), flags.to(place)
    with forbid_waiting():
        results = apply_operators(on_cuda, types, *draws)
        crops = shift_crop(on_cuda, offsets_there, 3, 'reflect')
        flipped = flip(on_cuda, flags_there)
    expected = apply_operators(images, types, levels, signs)
    for index, name in enumerate(OPERATORS):
        chosen = types == index
        there, here = (np.stack([as_array(image) for image in each[chosen]]) for each in (results.cpu(), expected))
        assert_agree(name, there, here)
    assert torch.equal(crops.cpu(), shift_crop(images, offsets, 3, 'reflect'))
    assert torch.equal(flipped.cpu(), flip(images, flags))
