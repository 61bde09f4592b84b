"""Augmentation operators: equal to Pillow's, whatever the batch, its memory format and its device.

The photographs come with scikit-learn. The environment variable REGAUG_PHOTOGRAPHS may name a folder of more of them.
"""

import os
import platform
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment
from torchvision.transforms import functional

from regaug.augment import operators
from regaug.augment.operators import LEVELLESS, NUM_LEVELS, OPERATORS, apply_operators, flip, magnitudes, shift_crop

SHEARS = ('shear_x', 'shear_y')
FACTORS = ('color', 'contrast', 'sharpness', 'brightness')
SIGNED = (*SHEARS, 'translate_x', 'translate_y', 'rotate', *FACTORS)
LEVELS = tuple(range(NUM_LEVELS))

# Of an operator's results: by how many grey levels and in which share of the values they may differ from Pillow's.
EXACT = (0, 0)
TOLERANCE = dict.fromkeys(OPERATORS, EXACT)  # translation by k + 1/2 pixels, which these sizes do not have, may differ
TOLERANCE |= dict.fromkeys(SHEARS, (1, 1e-3))  # single precision where Pillow has double, before it truncates
TOLERANCE['rotate'] = (255, 1e-4)  # the last digit of a cosine may choose another nearest pixel
if platform.machine() not in ('x86_64', 'AMD64'):
    TOLERANCE |= dict.fromkeys(FACTORS, (1, 0.15))  # compilers fuse Pillow's product and sum, which truncates elsewhere


# Pillow


def paper_magnitude(name, level, sign):
    """The paper's ranges as tables of ten values, between which fractional levels interpolate."""
    ends = {
        **dict.fromkeys(SHEARS, (0, 0.3)),
        **dict.fromkeys(('translate_x', 'translate_y'), (0, 150 / 331)),
        **dict.fromkeys(FACTORS, (0, 0.9)),
        'rotate': (0, 30),
        'posterize': (8, 4),
        'solarize': (256, 0),
    }.get(name, (0, 0))
    value = np.interp(level, LEVELS, np.linspace(*ends, NUM_LEVELS))
    if name == 'posterize':
        return int(np.round(value))
    return 1 + sign * value if name in FACTORS else sign * value if name in SIGNED else value


def timm_magnitude(name, level, sign):
    """What timm's RandAugment makes of a level, its random sign replaced by ours."""
    timm_names = {
        'shear_x': 'ShearX',
        'shear_y': 'ShearY',
        'translate_x': 'TranslateXRel',
        'translate_y': 'TranslateYRel',
        'rotate': 'Rotate',
        **{operator: f'{operator.capitalize()}Increasing' for operator in (*FACTORS, 'posterize', 'solarize')},
    }
    if name in LEVELLESS:
        return 0
    [value] = auto_augment.LEVEL_TO_ARG[timm_names[name]](level, {})
    if name in FACTORS:
        return 1 + sign * abs(value - 1)
    return sign * abs(value) if name in SIGNED else value


MAGNITUDE = {'paper': paper_magnitude, 'timm': timm_magnitude}


def pillow(name, image, amount):
    """An operator as Pillow's own functions have it."""
    width, height = image.size
    fill = (128,) * len(image.getbands()) if image.mode == 'RGB' else 128
    nearest, bicubic = Image.Resampling.NEAREST, Image.Resampling.BICUBIC

    def affine(resample, *matrix):
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    match name:
        case 'shear_x':
            return affine(bicubic, 1, amount, 0, 0, 1, 0)
        case 'shear_y':
            return affine(bicubic, 1, 0, 0, amount, 1, 0)
        case 'translate_x':
            return affine(nearest, 1, 0, amount * width, 0, 1, 0)
        case 'translate_y':
            return affine(nearest, 1, 0, 0, 0, 1, amount * height)
        case 'rotate':
            return image.rotate(amount, nearest, fillcolor=fill)
        case 'posterize' | 'solarize':
            return getattr(ImageOps, name)(image, amount)
        case 'autocontrast' | 'equalize':
            return getattr(ImageOps, name)(image)
        case 'identity':
            return image
    return getattr(ImageEnhance, name.capitalize())(image).enhance(amount)


# Images


def as_array(image):
    """8-bit values [H, W, C] of a Pillow image, or of a tensor [C, H, W] on the grid k / 255."""
    if isinstance(image, torch.Tensor):
        return np.round(image.permute(1, 2, 0).cpu().numpy() * 255).astype(np.uint8)
    array = np.asarray(image)
    return array[..., None] if array.ndim == 2 else array


def as_tensor(image):
    return functional.to_tensor(image)


@pytest.fixture(scope='session')
def photographs():
    """Pillow images: of several sizes, in colour and grey, with the full range of grey levels and with a narrow one."""
    images = []
    for name in ('china.jpg', 'flower.jpg'):
        photograph = Image.fromarray(pytest.importorskip('sklearn.datasets').load_sample_image(name))
        for size in ((32, 32), (37, 53), (96, 64)):
            images.append(photograph.resize(size, Image.Resampling.BICUBIC))
        images.append(photograph.crop((200, 120, 264, 184)).point(lambda level: round(60 + 0.4 * level)))
    images += [image.convert('L') for image in images]
    if folder := os.environ.get('REGAUG_PHOTOGRAPHS'):
        files = sorted(path for path in Path(folder).rglob('*') if path.suffix.lower() in ('.jpeg', '.jpg', '.png'))
        assert files, folder
        images += [Image.open(file).convert('RGB') for file in files]
    return images


@pytest.fixture(scope='session')
def batch(photographs):
    """Crops [48, 3, 24, 40] of the photographs in colour, each another one."""
    wide = [image for image in photographs if image.mode == 'RGB' and image.width >= 64 and image.height >= 64]
    generator = np.random.default_rng(5)
    crops = []
    for index in range(48):
        image = wide[index % len(wide)]
        left, top = generator.integers(0, image.width - 40), generator.integers(0, image.height - 24)
        crops.append(as_tensor(image.crop((left, top, left + 40, top + 24))))
    return torch.stack(crops)


def random_draws(count, seed=1):
    """Types, levels and signs [count]; all operators occur in 14 or more."""
    generator = torch.Generator().manual_seed(seed)
    types = torch.randint(len(OPERATORS), (count,), generator=generator)
    types[: len(OPERATORS)] = torch.randperm(len(OPERATORS), generator=generator)
    levels = torch.randint(NUM_LEVELS, (count,), generator=generator)
    signs = torch.randint(2, (count,), generator=generator) * 2 - 1
    return types, levels, signs


def apply_to_one(name, image, levels, signs, ranges='paper'):
    """One operator with several levels and signs applied to a Pillow image: arrays [n, H, W, C]."""
    images = as_tensor(image).expand(len(levels), -1, -1, -1)
    types = torch.full((len(levels),), OPERATORS.index(name))
    results = apply_operators(images, types, torch.tensor(levels), torch.tensor(signs), ranges=ranges)
    return np.stack([as_array(result) for result in results])


def assert_agree(name, results, expected):
    """Two sets of 8-bit values agree within the operator's tolerance."""
    levels, share = TOLERANCE[name]
    differences = np.abs(results.astype(int) - expected.astype(int))
    counts = f'{np.count_nonzero(differences)} of {differences.size} values differ, by up to {differences.max()}'
    print(f'{name}: {counts}')
    assert differences.max() <= levels, counts
    assert np.count_nonzero(differences) <= share * differences.size, counts


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


# Crop and flip


@pytest.mark.parametrize('mode', ['constant', 'reflect'])
@pytest.mark.parametrize('channels', [1, 3])
def test_shift_crop_equals_torchvisions_pad_and_crop(batch, mode, channels):
    offsets = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    images = batch.repeat(2, 1, 1, 1)[: len(offsets), :channels]
    height, width = images.shape[-2:]
    padded = functional.pad(images, 3, padding_mode=mode)
    expected = torch.stack(
        [functional.crop(image, top, left, height, width) for image, (top, left) in zip(padded, offsets.tolist())]
    )
    assert torch.equal(shift_crop(images, offsets, 3, mode), expected)
    for dtype in (torch.int32, torch.int16, torch.uint8):
        assert torch.equal(shift_crop(images, offsets.to(dtype), 3, mode), expected)
    results = shift_crop(images.contiguous(memory_format=torch.channels_last), offsets, 3, mode)
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(results, expected)


def test_flip_turns_the_marked_images_from_left_to_right(batch):
    flags = torch.rand(len(batch)) < 0.5
    assert 0 < flags.sum() < len(batch)
    expected = torch.stack([functional.hflip(image) if flag else image for image, flag in zip(batch, flags)])
    assert torch.equal(flip(batch, flags), expected)
    results = flip(batch.contiguous(memory_format=torch.channels_last), flags)
    assert results.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(results, expected)


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
