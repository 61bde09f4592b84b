"""GradAug's parts: draws, transforms, the soft-label loss, cost."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from regaug.methods.subnetworks import Draw, draw_widths, sizes_for, soft_label_loss, transform
from tests.helpers.training import make_gradaug

# Draws


def test_a_single_subnetwork_has_a_uniform_width():
    rng = random.Random(1)
    widths = [width for _ in range(4000) for width in draw_widths(rng, 1, 0.6)]
    counts, _ = np.histogram(widths, bins=8, range=(0.6, 1.0))
    assert counts.sum() == len(widths) == 4000
    assert counts.min() > 500 - 100
    assert counts.max() < 500 + 100


@pytest.mark.parametrize('count', [2, 3, 5])
def test_several_subnetworks_follow_the_sandwich_rule(count):
    rng = random.Random(1)
    draws = [draw_widths(rng, count, 0.6) for _ in range(2000)]
    for widths in draws:
        assert len(widths) == count
        assert widths == sorted(widths, reverse=True)
        assert widths[-1] == 0.6
        assert widths[0] <= 1.0
    others = [width for widths in draws for width in widths[:-1]]
    assert np.mean(others) == pytest.approx(0.8, abs=0.01)
    assert np.std(others) == pytest.approx(0.4 / 12**0.5, abs=0.005)


def test_widths_for_compilation_come_from_the_given_ones_alone():
    gradaug = make_gradaug(num_widths=4, min_width=0.6)
    drawn = {round(draw.width, 6) for update in range(200) for draw in gradaug.draw(update, 32)}
    assert drawn == {0.6, 0.7, 0.8, 0.9}


def test_draws_depend_on_seed_and_update_alone():
    gradaug = make_gradaug(transforms=('scale', 'rotate', 'crop', 'flip'))
    first = [gradaug.draw(update, 224) for update in range(5)]
    torch.manual_seed(99)
    random.seed(99)
    again = make_gradaug(transforms=('scale', 'rotate', 'crop', 'flip'))
    assert [again.draw(update, 224) for update in reversed(range(5))] == first[::-1]
    assert len({str(draws) for draws in first}) == 5
    assert make_gradaug(seed=43, transforms=('scale', 'rotate', 'crop', 'flip')).draw(0, 224) != first[0]


def test_draws_are_these_numbers_on_every_machine():
    draws = make_gradaug(min_width=0.9, transforms=('scale', 'rotate')).draw(7, 224)
    assert [round(draw.width, 6) for draw in draws] == [0.921809, 0.901051, 0.9]
    assert [(draw.size, draw.quarter_turns) for draw in draws] == [(224, 0), (128, 2), (224, 0)]


def test_sizes_and_turns_are_drawn_evenly_and_for_each_subnetwork_anew():
    gradaug = make_gradaug(transforms=('rotate', 'scale', 'flip'))
    updates = [gradaug.draw(update, 224) for update in range(1000)]
    draws = [draw for update in updates for draw in update]
    for values, choices in (
        ([draw.size for draw in draws], [224, 192, 160, 128]),
        ([draw.quarter_turns for draw in draws], [0, 1, 2, 3]),
        ([draw.flip for draw in draws], [False, True]),
    ):
        assert set(values) == set(choices)
        for choice in choices:
            assert values.count(choice) == pytest.approx(3000 / len(choices), rel=0.12)
    assert sum(len({draw.size for draw in update}) > 1 for update in updates) > 800


@pytest.mark.parametrize(
    ('size', 'expected'),
    [
        (224, [224, 192, 160, 128]),
        (256, [256, 224, 192, 160]),
        (160, [160, 128, 96]),
        (32, [32, 28, 24, 20]),
        (64, [64, 56, 44, 36]),
        (8, [8, 4]),
        (4, [4]),
    ],
)
def test_default_sizes(size, expected):
    assert sizes_for(size) == expected


# Transforms


def resize_matrix(size, target):
    """Linear interpolation with aligned corners as a matrix [target, size]."""
    matrix = torch.zeros(target, size, dtype=torch.float64)
    for row in range(target):
        place = row * (size - 1) / (target - 1)
        left = min(int(place), size - 2)
        matrix[row, left] = 1 - (place - left)
        matrix[row, left + 1] = place - left
    return matrix


def scaled(images, height, width):
    return resize_matrix(images.shape[-2], height) @ images @ resize_matrix(images.shape[-1], width).T


def turned(images, times):
    for _ in range(times):
        images = images.transpose(-1, -2).flip(-2)  # counter-clockwise: columns become rows, the last one on top
    return images


@pytest.mark.parametrize(('height', 'width', 'size', 'expected'), [(32, 32, 20, (20, 20)), (24, 36, 16, (16, 24))])
def test_scale_interpolates_between_aligned_corners(height, width, size, expected):
    images = torch.randn(2, 3, height, width, dtype=torch.float64)
    result = transform(images, Draw(0.9, size), ['scale'])
    assert result.shape[-2:] == expected
    torch.testing.assert_close(result, scaled(images, *expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(
        result, F.interpolate(images, expected, mode='bilinear', align_corners=True), rtol=0, atol=0
    )
    corners = (..., slice(None, None, result.shape[-2] - 1), slice(None, None, result.shape[-1] - 1))
    assert torch.equal(result[corners], images[..., :: height - 1, :: width - 1])


def test_the_native_size_is_not_interpolated():
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(transform(images, Draw(0.9, 32), ['scale']), images)


@pytest.mark.parametrize('turns', range(4))
def test_rotate_turns_by_quarters(turns):
    images = torch.randn(2, 3, 16, 16)
    result = transform(images, Draw(0.9, 16, quarter_turns=turns), ['rotate'])
    assert torch.equal(result, turned(images, turns))
    assert np.array_equal(result, np.rot90(images.numpy(), turns, axes=(2, 3)))


@pytest.mark.parametrize(('top', 'left'), [(0.0, 0.0), (0.999, 0.999), (0.3, 0.8)])
def test_crop_is_a_part_of_the_image(top, left):
    images = torch.arange(2 * 3 * 12 * 12.0).reshape(2, 3, 12, 12)
    result = transform(images, Draw(0.9, 8, top=top, left=left), ['crop'])
    assert result.shape == (2, 3, 8, 8)
    first = int(result[0, 0, 0, 0])
    row, column = divmod(first, 12)
    assert torch.equal(result, images[..., row : row + 8, column : column + 8])
    if top in (0.0, 0.999):
        assert (row, column) == ((0, 0) if top == 0 else (4, 4))


def test_every_place_of_a_crop_is_as_likely():
    images = torch.arange(144.0).reshape(1, 1, 12, 12)
    gradaug = make_gradaug(transforms=('crop',), sizes=[8])
    draws = [draw for update in range(1000) for draw in gradaug.draw(update, 12)]
    places = [divmod(int(transform(images, draw, ['crop'])[0, 0, 0, 0]), 12) for draw in draws]
    for axis in (0, 1):
        counts = [sum(place[axis] == offset for place in places) for offset in range(5)]
        assert counts == [pytest.approx(3000 / 5, rel=0.15)] * 5


def test_flip_mirrors_left_and_right():
    images = torch.arange(8.0).reshape(1, 1, 2, 4)
    assert transform(images, Draw(0.9, 2, flip=True), ['flip']).tolist() == [[[[3, 2, 1, 0], [7, 6, 5, 4]]]]
    assert torch.equal(transform(images, Draw(0.9, 2, flip=False), ['flip']), images)


def test_transforms_run_in_the_given_order():
    images = torch.randn(2, 3, 12, 12, dtype=torch.float64)
    draw = Draw(0.9, 8, quarter_turns=1, top=0.0, left=0.999, flip=True)
    for names, expected in {
        ('rotate', 'scale'): scaled(turned(images, 1), 8, 8),
        ('rotate', 'crop'): turned(images, 1)[..., :8, 4:],
        ('crop', 'rotate'): turned(images[..., :8, 4:], 1),
        ('rotate', 'flip'): turned(images, 1).flip(-1),
        ('flip', 'rotate'): turned(images.flip(-1), 1),
        ('scale', 'crop'): scaled(images, 8, 8),
        ('crop', 'scale'): images[..., :8, 4:],
    }.items():
        torch.testing.assert_close(transform(images, draw, names), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize('names', [(), ('scale',), ('rotate',), ('crop',), ('flip',), ('rotate', 'scale', 'flip')])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(names, memory_format):
    images = torch.randn(2, 3, 16, 16).contiguous(memory_format=memory_format)
    result = transform(images, Draw(0.9, 12, quarter_turns=1, flip=True), names)
    assert result.is_contiguous(memory_format=memory_format)


# Soft-label loss


def test_soft_loss_is_the_mean_kullback_leibler_divergence():
    output, teacher = 3 * torch.randn(2, 6, 5, dtype=torch.float64)
    expected = 0.0
    for row, teacher_row in zip(output.tolist(), teacher.tolist(), strict=True):
        q, p = (np.exp(values) / np.exp(values).sum() for values in (row, teacher_row))
        expected += sum(p * (np.log(p) - np.log(q))) / 6
    for criterion in (nn.CrossEntropyLoss(), LabelSmoothingCrossEntropy(0.1), SoftTargetCrossEntropy()):
        assert soft_label_loss(output, teacher, criterion).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize('options', [{}, {'sum_classes': True}, {'target_threshold': 0.2}, {'pos_weight': 2.0}])
def test_soft_loss_under_binary_cross_entropy_takes_the_sigmoid_and_the_reduction(options):
    output, teacher = torch.randn(2, 6, 5)
    p, q = teacher.sigmoid(), output.sigmoid()
    losses = -(p * q.log() + (1 - p) * (1 - q).log())
    expected = losses.sum(1).mean() if options.get('sum_classes') else losses.mean()
    criterion = BinaryCrossEntropy(smoothing=0.1, **options)
    torch.testing.assert_close(soft_label_loss(output, teacher, criterion), expected)
    assert criterion.target_threshold == options.get('target_threshold')  # of the full network's own loss
    assert criterion.pos_weight == options.get('pos_weight')
    assert criterion.smoothing == 0.1


@pytest.mark.parametrize('criterion', [nn.CrossEntropyLoss(), BinaryCrossEntropy()])
def test_soft_loss_is_computed_in_float32_under_autocast(criterion):
    output, teacher = torch.randn(2, 6, 5).bfloat16()
    expected = soft_label_loss(output.float(), teacher.float(), criterion)
    with torch.autocast('cpu', torch.bfloat16):
        loss = soft_label_loss(output, teacher, criterion)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)


# Cost


def test_an_update_costs_268_percent_of_a_plain_one_at_the_papers_settings():
    cost = make_gradaug(min_width=0.9).expected_cost(lambda width: width**2, 224)
    assert cost == pytest.approx(2.68, abs=0.03)


def test_cost_counts_the_updates_without_subnetworks():
    full = make_gradaug(min_width=0.9, transforms=()).expected_cost(lambda width: 1.0, 224)
    assert full == 4.0
    with_as_many_unlabelled = make_gradaug(min_width=0.9, transforms=(), every=2).expected_cost(
        lambda width: 1.0, 224, unlabelled=2.0
    )
    assert with_as_many_unlabelled == pytest.approx(1 + (3 + 2 * 3 + 2 / 3) / 2)
    every_third = make_gradaug(min_width=0.9, transforms=(), every=3).expected_cost(lambda width: 1.0, 224)
    assert every_third == pytest.approx(2.0)
