"""Boxes of CutMix: timm's for the same centres, lambda that equals the area really pasted."""

import itertools

import numpy as np
import pytest
import torch
from timm.data import mixup as timm_mixup

from regaug.augment import mix
from regaug.augment.mix import CutMix, Mixup
from tests.helpers.mix import LABELS, distance, images, rectangle, rng
from tests.helpers.training import assert_equal


def distance_to(sample, distribution):
    """Largest difference between the distribution function of a sample and a given one."""
    sample = np.sort(sample)
    steps = np.arange(len(sample) + 1) / len(sample)
    expected = distribution(sample)
    return max(np.abs(steps[1:] - expected).max(), np.abs(steps[:-1] - expected).max())


DISTRIBUTIONS = {  # of Beta(alpha, alpha)
    1.0: lambda x: x,
    0.5: lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)),
    2.0: lambda x: 3 * x**2 - 2 * x**3,
}


class Centres:
    """A generator whose integers are given."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, high, size):
        values = self.values.pop(0)
        assert values.shape == size and values.max() < high
        return values


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (24, 40), (7, 5)])
def test_boxes_are_timms_for_the_same_centres_and_lambda(height, width):
    for share in (0.0, 0.013, 0.3, 0.5, 0.77, 0.99, 1.0):
        np.random.seed(4)
        rows, columns = np.random.randint(0, height, size=50), np.random.randint(0, width, size=50)
        np.random.seed(4)
        expected = np.stack(timm_mixup.rand_bbox((3, height, width), share, count=50), axis=1)
        boxes = mix.draw_boxes(Centres(rows, columns), np.full(50, share), height, width)
        assert np.array_equal(boxes, expected)


def test_each_share_of_a_batch_makes_the_box_that_it_makes_alone():
    lam, rows, columns = rng(1).random((3, 4)), rng(2).integers(24, size=(3, 4)), rng(3).integers(40, size=(3, 4))
    boxes = mix.draw_boxes(Centres(rows, columns), lam, 24, 40)
    assert boxes.shape == (3, 4, 4)
    for place in itertools.product(range(3), range(4)):
        alone = mix.draw_boxes(Centres(rows[place][None], columns[place][None]), lam[place][None], 24, 40)
        assert np.array_equal(boxes[place], alone[0])


def test_centres_are_uniform():
    """A share that leaves out one pixel puts it at the centre."""
    boxes = mix.draw_boxes(rng(), np.full(160_000, 1 - (1 / 16 + 1e-9) ** 2), 16, 16)
    assert (boxes[:, 1] - boxes[:, 0] == 1).all() and (boxes[:, 3] - boxes[:, 2] == 1).all()
    counts, *_ = np.histogram2d(boxes[:, 0], boxes[:, 2], bins=16, range=[(0, 16), (0, 16)])
    assert counts.min() > 625 - 5 * 25 and counts.max() < 625 + 5 * 25


def pasted(candidate, input):
    """Boxes that differ from the input, by sample: rectangles or None."""
    return [rectangle((one != other).all(dim=0).numpy()) for one, other in zip(candidate, input, strict=True)]


@pytest.mark.parametrize('minmax', [None, (0.25, 0.75)])
@pytest.mark.parametrize(('height', 'width'), [(16, 16), (12, 20)])
def test_every_copy_has_a_box_of_one_partner_and_its_area_as_lambda(minmax, height, width):
    input, target = images(height=height, width=width), torch.arange(8)
    copies = CutMix(alpha=1.0, prob=1.0, minmax=minmax, **LABELS).draw(rng(5), 6, input)
    found = set()
    for copy in copies:
        mixed, soft, lam = copy(input, target)
        assert mixed.shape == input.shape and soft.shape == (8, 8) and lam.shape == (8,)
        partners = set()
        for sample, box in enumerate(pasted(mixed, input)):
            if box is None:  # the sample is its own partner, or the box is empty
                continue
            top, bottom, left, right = box
            inside = mixed[sample, :, top:bottom, left:right]
            [partner] = [other for other in range(8) if torch.equal(input[other, :, top:bottom, left:right], inside)]
            own = torch.tensor(1 - (bottom - top) * (right - left) / (height * width), dtype=torch.float32)
            assert_equal(lam[sample], own)
            assert_equal(soft[sample], timm_mixup.mixup_target(target[[sample, partner]], 8, own, 0.1)[0])
            assert partner not in partners
            partners.add(partner)
            found.add((sample, partner, box))
    assert len({box for *_, box in found}) > 30
    assert len({(sample, partner) for sample, partner, _ in found}) > 20


@pytest.mark.parametrize('alpha', [1.0, 0.3, 3.0])
def test_lambda_is_distributed_as_timms_after_clipping(alpha):
    count = 8000
    copies = CutMix(alpha=alpha, prob=1.0, **LABELS).draw(rng(1), 4, torch.zeros(count // 4, 1, 64, 64))
    target = torch.zeros(count // 4, dtype=torch.long)
    lam = torch.cat([copy(torch.zeros(count // 4, 1, 64, 64), target)[2] for copy in copies]).numpy()
    timms = [timm_mixup.cutmix_bbox_and_lam((1, 64, 64), np.random.beta(alpha, alpha))[1] for _ in range(count)]
    assert distance(lam, np.array(timms)) < 1.95 * (2 / count) ** 0.5


def test_the_mean_lambda_is_that_of_uniform_draws_and_centres():
    """A side s covers s - s^2/4 of a line on average, and s^2 is uniform: the mean area is 1/2 - 1/5 + 1/48."""
    size = 200_000
    lam = mix.box_lam(mix.draw_boxes(rng(), rng(1).beta(1, 1, size=size), 1000, 1000), 1000, 1000)
    assert lam.mean() == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.003)


@pytest.mark.parametrize('alpha', DISTRIBUTIONS)
def test_mixup_lambda_follows_the_beta_distribution(alpha):
    count = 10_000
    copies = Mixup(alpha=alpha, prob=1.0, **LABELS).draw(rng(2), 4, torch.zeros(count // 4, 1, 1, 1))
    target = torch.zeros(count // 4, dtype=torch.long)
    lam = torch.cat([copy(torch.zeros(count // 4, 1, 1, 1), target)[2] for copy in copies]).double().numpy()
    assert distance_to(lam, DISTRIBUTIONS[alpha]) < 1.95 / count**0.5


def test_a_box_that_no_border_clips_leaves_the_share_that_was_drawn():
    count, side = 20_000, 1000
    lam = rng(3).random(count)
    centres = [np.full(count, side // 2)] * 2
    left = mix.box_lam(mix.draw_boxes(Centres(*centres), lam, side, side), side, side)
    assert np.abs(left - lam).max() < 2.1 / side  # sides are whole pixels


def test_sides_between_two_fractions_are_timms_and_are_never_clipped():
    height, width, minmax = 40, 20, (0.3, 0.7)
    boxes = mix.draw_boxes_between(rng(), (4, 5000), *minmax, height, width).reshape(-1, 4)
    np.random.seed(1)
    timms = timm_mixup.rand_bbox_minmax((3, height, width), minmax, count=20_000)
    for first, length in ((0, height), (2, width)):
        sides = boxes[:, first + 1] - boxes[:, first]
        assert sides.min() == 0.3 * length and sides.max() == 0.7 * length - 1  # timm's upper limit is exclusive
        assert boxes[:, first].min() == 0 and boxes[:, first + 1].max() == length
    ours = mix.box_lam(boxes, height, width)
    theirs = 1 - (timms[1] - timms[0]) * (timms[3] - timms[2]) / (height * width)
    assert distance(ours, theirs) < 1.95 * (2 / 20_000) ** 0.5
    assert distance(boxes[:, 0], timms[0]) < 1.95 * (2 / 20_000) ** 0.5
    assert distance(boxes[:, 2], timms[2]) < 1.95 * (2 / 20_000) ** 0.5


def test_two_equal_fractions_give_boxes_of_one_size():
    boxes = mix.draw_boxes_between(rng(), (100,), 0.5, 0.5, 32, 16)
    assert set(boxes[:, 1] - boxes[:, 0]) == {16} and set(boxes[:, 3] - boxes[:, 2]) == {8}
    assert boxes.min() == 0 and boxes[:, 1].max() == 32 and boxes[:, 3].max() == 16
