"""Augmentation operators as Pillow has them, and images to compare by.

The photographs come with scikit-learn. The environment variable REGAUG_PHOTOGRAPHS may name a folder of more of them.
"""

import os
import platform
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import auto_augment
from torchvision.transforms import functional

from regaug.augment.operators import LEVELLESS, NUM_LEVELS, OPERATORS, apply_operators

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
