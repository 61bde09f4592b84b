"""Augmentations of batches: the mixtures of timm, the boxes of CutMix, what is drawn for whom, what is left alone."""

import itertools

import numpy as np
import pytest
import torch
from timm.data import Mixup as TimmMixup
from timm.data import mixup as timm_mixup
from training_case import assert_equal

from regaug import mix
from regaug.maxup import MaxUp
from regaug.mix import CutMix, Cutout, GaussianNoise, Mixup

SIDE = 16
LABELS = dict(num_classes=8, smoothing=0.1)


def images(count=8, channels=3, height=SIDE, width=SIDE, seed=3):
    """Images of noise: no pixel is like another, and none is zero."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, generator=generator)


def rng(seed=0):
    return np.random.default_rng(seed)


def distance(sample, others):
    """Largest difference between the distribution functions of two samples (Kolmogorov and Smirnov)."""
    points = np.concatenate([sample, others])
    below = [np.searchsorted(np.sort(values), points, side='right') / len(values) for values in (sample, others)]
    return np.abs(below[0] - below[1]).max()


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


def rectangle(mask):
    """Top, bottom, left and right of the pixels where a mask [H, W] is true, which fill the rectangle; or None."""
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    top, bottom, left, right = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
    assert mask[top:bottom, left:right].all()
    return top, bottom, left, right


# --- timm's mixtures ----------------------------------------------------------------------------------------------


def timms_mixture(monkeypatch, input, target, *, seed, **options):
    """What `timm.data.Mixup` makes of a batch by elements: (input, target, its boxes, its shares before boxes)."""
    boxes, shares = [], []
    boxes_and_shares, shares_of_elements = timm_mixup.cutmix_bbox_and_lam, TimmMixup._params_per_elem

    def keep_boxes(*args, **kwargs):
        box, share = boxes_and_shares(*args, **kwargs)
        boxes.append(box)
        return box, share

    def keep_shares(*args):
        share, use_cutmix = shares_of_elements(*args)
        shares.append(share.copy())
        return share, use_cutmix

    np.random.seed(seed)
    with monkeypatch.context() as patch:
        patch.setattr(timm_mixup, 'cutmix_bbox_and_lam', keep_boxes)
        patch.setattr(TimmMixup, '_params_per_elem', keep_shares)
        timm = TimmMixup(mode='elem', correct_lam=True, label_smoothing=0.1, num_classes=8, **options)
        mixed, soft = timm(input.clone(), target)
    return mixed, soft, np.array(boxes), shares[0]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_cutmix_is_timms_for_the_same_boxes_and_partners(seed, dtype, monkeypatch):
    input, target = images(height=24, width=16).to(dtype), torch.randint(8, (8,))
    expected, soft, boxes, _ = timms_mixture(
        monkeypatch, input, target, seed=seed, mixup_alpha=0.0, cutmix_alpha=1.0, prob=1.0
    )
    partners = torch.arange(8).flip(0)
    shares = torch.from_numpy(mix.area_shares(boxes, 24, 16)).float().to(dtype)  # as timm rounds them
    assert_equal(mix.cutmix(input, partners, torch.from_numpy(boxes)), expected)
    assert_equal(mix.mix_target(mix.soft_target(target, 8, 0.1), partners, shares), soft)
    assert len({tuple(box) for box in boxes}) > 4


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('prob', [1.0, 0.5])
def test_mixup_is_timms_for_the_same_shares_and_partners(seed, prob, monkeypatch):
    input, target = images(), torch.randint(8, (8,))
    expected, soft, _, shares = timms_mixture(monkeypatch, input, target, seed=seed, mixup_alpha=0.4, prob=prob)
    partners, shares = torch.arange(8).flip(0), torch.from_numpy(shares)
    assert_equal(mix.mixup(input, partners, shares), expected)
    assert_equal(mix.mix_target(mix.soft_target(target, 8, 0.1), partners, shares), soft)
    assert (shares == 1).any() if prob < 1 else not (shares == 1).any()


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_labels_are_smoothed_as_timm_smooths_them_and_soft_ones_are_kept(smoothing):
    target = torch.randint(8, (6,))
    soft = mix.soft_target(target, 8, smoothing)
    assert_equal(soft, timm_mixup.mixup_target(target, 8, lam=1.0, smoothing=smoothing))
    assert_equal(mix.soft_target(soft, 8, 0.7), soft)


def test_partners_may_be_any_permutation():
    """Every pair (sample, partner) is what timm makes of the two, whatever the other pairs are."""
    input, target = images(), torch.arange(8)
    partners = torch.tensor([3, 1, 0, 7, 6, 2, 4, 5])
    shares = torch.rand(8)
    blended = mix.mixup(input, partners, shares)
    soft = mix.mix_target(mix.soft_target(target, 8, 0.1), partners, shares)
    for sample, partner in enumerate(partners.tolist()):
        pair = input[[sample, partner]]
        share = shares[sample]
        assert_equal(blended[sample], (pair * share + pair.flip(0) * (1 - share))[0])
        assert_equal(soft[sample], timm_mixup.mixup_target(target[[sample, partner]], 8, share, 0.1)[0])


def test_an_own_share_of_one_keeps_the_image_bit_for_bit():
    input = images()
    input[2, 0, 0, 0] = -0.0
    input[3] = float('inf')  # infinity times zero is no number
    kept = mix.mixup(input, torch.arange(8).flip(0), torch.ones(8))
    assert_equal(kept.view(torch.int32), input.view(torch.int32))


# --- boxes --------------------------------------------------------------------------------------------------------


class Centres:
    """A generator whose integers are given."""

    def __init__(self, *values):
        self.values = list(values)

    def integers(self, high, size):
        values = self.values.pop(0)
        assert values.shape == size and values.max() < high
        return values


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (24, 40), (7, 5)])
def test_boxes_are_timms_for_the_same_centres_and_shares(height, width):
    for share in (0.0, 0.013, 0.3, 0.5, 0.77, 0.99, 1.0):
        np.random.seed(4)
        rows, columns = np.random.randint(0, height, size=50), np.random.randint(0, width, size=50)
        np.random.seed(4)
        expected = np.stack(timm_mixup.rand_bbox((3, height, width), share, count=50), axis=1)
        boxes = mix.draw_boxes(Centres(rows, columns), np.full(50, share), height, width)
        assert np.array_equal(boxes, expected)


def test_each_share_of_a_batch_makes_the_box_that_it_makes_alone():
    shares, rows, columns = rng(1).random((3, 4)), rng(2).integers(24, size=(3, 4)), rng(3).integers(40, size=(3, 4))
    boxes = mix.draw_boxes(Centres(rows, columns), shares, 24, 40)
    assert boxes.shape == (3, 4, 4)
    for place in itertools.product(range(3), range(4)):
        alone = mix.draw_boxes(Centres(rows[place][None], columns[place][None]), shares[place][None], 24, 40)
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
def test_every_copy_has_a_box_of_one_partner_and_its_area_as_share(minmax, height, width):
    input, target = images(height=height, width=width), torch.arange(8)
    copies = CutMix(alpha=1.0, prob=1.0, minmax=minmax, **LABELS).draw(rng(5), 6, input)
    found = set()
    for copy in copies:
        mixed, soft, shares = copy(input, target)
        assert mixed.shape == input.shape and soft.shape == (8, 8) and shares.shape == (8,)
        partners = set()
        for sample, box in enumerate(pasted(mixed, input)):
            if box is None:  # the sample is its own partner, or the box is empty
                continue
            top, bottom, left, right = box
            inside = mixed[sample, :, top:bottom, left:right]
            [partner] = [other for other in range(8) if torch.equal(input[other, :, top:bottom, left:right], inside)]
            share = torch.tensor(1 - (bottom - top) * (right - left) / (height * width), dtype=torch.float32)
            assert_equal(shares[sample], share)
            assert_equal(soft[sample], timm_mixup.mixup_target(target[[sample, partner]], 8, share, 0.1)[0])
            assert partner not in partners
            partners.add(partner)
            found.add((sample, partner, box))
    assert len({box for *_, box in found}) > 30
    assert len({(sample, partner) for sample, partner, _ in found}) > 20


@pytest.mark.parametrize('alpha', [1.0, 0.3, 3.0])
def test_shares_are_distributed_as_timms_after_clipping(alpha):
    count = 8000
    copies = CutMix(alpha=alpha, prob=1.0, **LABELS).draw(rng(1), 4, torch.zeros(count // 4, 1, 64, 64))
    target = torch.zeros(count // 4, dtype=torch.long)
    shares = torch.cat([copy(torch.zeros(count // 4, 1, 64, 64), target)[2] for copy in copies]).numpy()
    timms = [timm_mixup.cutmix_bbox_and_lam((1, 64, 64), np.random.beta(alpha, alpha))[1] for _ in range(count)]
    assert distance(shares, np.array(timms)) < 1.95 * (2 / count) ** 0.5


def test_the_mean_share_is_that_of_uniform_shares_and_centres():
    """A side s covers s - s^2/4 of a line on average, and s^2 is uniform: the mean area is 1/2 - 1/5 + 1/48."""
    size = 200_000
    shares = mix.area_shares(mix.draw_boxes(rng(), rng(1).beta(1, 1, size=size), 1000, 1000), 1000, 1000)
    assert shares.mean() == pytest.approx(1 - (1 / 2 - 1 / 5 + 1 / 48), abs=0.003)


@pytest.mark.parametrize('alpha', DISTRIBUTIONS)
def test_mixup_shares_follow_the_beta_distribution(alpha):
    count = 10_000
    copies = Mixup(alpha=alpha, prob=1.0, **LABELS).draw(rng(2), 4, torch.zeros(count // 4, 1, 1, 1))
    target = torch.zeros(count // 4, dtype=torch.long)
    shares = torch.cat([copy(torch.zeros(count // 4, 1, 1, 1), target)[2] for copy in copies]).double().numpy()
    assert distance_to(shares, DISTRIBUTIONS[alpha]) < 1.95 / count**0.5


def test_a_box_that_no_border_clips_leaves_the_share_that_was_drawn():
    count, side = 20_000, 1000
    shares = rng(3).random(count)
    centres = [np.full(count, side // 2)] * 2
    left = mix.area_shares(mix.draw_boxes(Centres(*centres), shares, side, side), side, side)
    assert np.abs(left - shares).max() < 2.1 / side  # sides are whole pixels


def test_sides_between_two_fractions_are_timms_and_are_never_clipped():
    height, width, minmax = 40, 20, (0.3, 0.7)
    boxes = mix.draw_boxes_between(rng(), (4, 5000), *minmax, height, width).reshape(-1, 4)
    np.random.seed(1)
    timms = timm_mixup.rand_bbox_minmax((3, height, width), minmax, count=20_000)
    for first, length in ((0, height), (2, width)):
        sides = boxes[:, first + 1] - boxes[:, first]
        assert sides.min() == 0.3 * length and sides.max() == 0.7 * length - 1  # timm's upper limit is exclusive
        assert boxes[:, first].min() == 0 and boxes[:, first + 1].max() == length
    ours = mix.area_shares(boxes, height, width)
    theirs = 1 - (timms[1] - timms[0]) * (timms[3] - timms[2]) / (height * width)
    assert distance(ours, theirs) < 1.95 * (2 / 20_000) ** 0.5
    assert distance(boxes[:, 0], timms[0]) < 1.95 * (2 / 20_000) ** 0.5
    assert distance(boxes[:, 2], timms[2]) < 1.95 * (2 / 20_000) ** 0.5


def test_two_equal_fractions_give_boxes_of_one_size():
    boxes = mix.draw_boxes_between(rng(), (100,), 0.5, 0.5, 32, 16)
    assert set(boxes[:, 1] - boxes[:, 0]) == {16} and set(boxes[:, 3] - boxes[:, 2]) == {8}
    assert boxes.min() == 0 and boxes[:, 1].max() == 32 and boxes[:, 3].max() == 16


# --- what is drawn for whom ---------------------------------------------------------------------------------------


def test_partners_are_a_uniform_permutation_of_their_own_for_every_copy():
    partners = mix.draw_partners(rng(), 6000, 5)
    assert np.array_equal(np.sort(partners, axis=1), np.tile(np.arange(5), (6000, 1)))
    permutations, counts = np.unique(partners, axis=0, return_counts=True)
    assert len(permutations) == 120
    assert counts.min() > 50 - 5 * 50**0.5 and counts.max() < 50 + 5 * 50**0.5


STAGES = {
    'cutmix': lambda **kwargs: CutMix(alpha=1.0, **LABELS, **kwargs),
    'cutmix between': lambda **kwargs: CutMix(alpha=1.0, minmax=(0.3, 0.8), **LABELS, **kwargs),
    'mixup': lambda **kwargs: Mixup(alpha=1.0, **LABELS, **kwargs),
    'cutout': lambda **kwargs: Cutout(size=5, **kwargs),
    'gauss': lambda prob=1.0: GaussianNoise(sigma=torch.tensor([0.1, 0.2, 0.3])),
}


@pytest.mark.parametrize('name', STAGES)
def test_copies_and_samples_are_drawn_independently(name):
    """Every sample is the same image and has the same label: what differs is what was drawn."""
    input = images(1).expand(6, -1, -1, -1)
    if name in ('cutmix', 'cutmix between', 'mixup'):  # something must be there to mix in
        input = torch.cat([input, -input])
    target = torch.zeros(len(input), dtype=torch.long)
    results = [copy(input, target)[0] for copy in STAGES[name](prob=1.0).draw(rng(1), 5, input)]
    changed = [image for result in results for image, own in zip(result, input, strict=True) if (image != own).any()]
    pairs = list(itertools.combinations(changed, 2))
    assert len(changed) > 20
    assert sum(torch.equal(one, other) for one, other in pairs) <= 0.02 * len(pairs)


@pytest.mark.parametrize('name', ['cutmix', 'cutmix between', 'mixup', 'cutout'])
def test_the_probability_holds_for_each_copy_and_sample(name):
    input = torch.cat([images(400, 1, 8, 8), images(400, 1, 8, 8) + 9])
    target = torch.zeros(len(input), dtype=torch.long)
    chance = STAGES[name](prob=0.3).draw(rng(7), 4, input)
    always = STAGES[name](prob=1.0).draw(rng(7), 4, input)
    untouched = torch.stack(
        [(copy(input, target)[0] == input).flatten(1).all(dim=1).double() for copy in (*chance, *always)]
    )
    plain = untouched[4:].mean().item()  # an empty box, or a sample that is its own partner
    assert plain < 0.1
    mixed = 1 - untouched[:4]
    assert mixed.mean(dim=1).tolist() == pytest.approx([0.3 * (1 - plain)] * 4, abs=0.05)
    for one, other in itertools.combinations(mixed, 2):
        assert (one * other).mean() == pytest.approx((0.3 * (1 - plain)) ** 2, abs=0.03)
    assert STAGES[name](prob=0.0).draw(rng(7), 1, input)[0](input, target)[0].equal(input)


@pytest.mark.parametrize('name', STAGES)
def test_draws_repeat_with_the_generator_and_touch_no_other_random_state(name):
    input, target = images(), torch.arange(8)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (
        [copy(input, target) for copy in STAGES[name](prob=0.7).draw(rng(seed), 3, input)] for seed in (1, 1, 2)
    )
    assert_equal(first, again)
    assert not any(torch.equal(one[0], two[0]) for one, two in zip(first, other, strict=True))
    assert_equal((torch.get_rng_state(), np.random.get_state()[1].tolist()), before)


def test_a_copy_may_be_made_twice():
    input, target = images(), torch.arange(8)
    for stage in STAGES.values():
        for copy in stage(prob=1.0).draw(rng(), 2, input):
            assert_equal(copy(input, target), copy(input, target))


# --- Cutout and noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [4, 5, 16, 40])
def test_cutout_erases_a_square_that_only_borders_make_smaller(size):
    height, width = 16, 24
    input, target = images(500, 2, height, width), torch.arange(500)
    [copy] = Cutout(size=size).draw(rng(), 1, input)
    erased, labels, shares = copy(input, target)
    assert labels is target and shares is None
    assert_equal(torch.where(erased == 0, 0.0, input), erased)
    whole = 0
    for image in erased:
        assert torch.equal(image[0] == 0, image[1] == 0)
        top, bottom, left, right = rectangle((image[0] == 0).numpy())
        assert bottom - top == size or (bottom - top < size and (top == 0 or bottom == height))
        assert right - left == size or (right - left < size and (left == 0 or right == width))
        whole += (bottom - top, right - left) == (size, size)
    lengths = [
        np.mean([min(length, c + (size + 1) // 2) - max(0, c - size // 2) for c in range(length)])
        for length in (height, width)
    ]
    area = (erased[:, 0] == 0).float().sum(dim=(1, 2)).mean().item()
    assert area == pytest.approx(lengths[0] * lengths[1], rel=0.05)
    assert whole > 100 if size < 10 else whole < 60


def test_noise_has_the_given_deviation_in_each_channel():
    input = images(4, 3, 128, 128)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    noise = mix.add_noise(input, sigma, torch.Generator().manual_seed(1)) - input
    assert noise.std(dim=(0, 2, 3)).tolist() == pytest.approx(sigma.tolist(), rel=0.02)
    assert (noise.mean(dim=(0, 2, 3)) / sigma).abs().max() < 0.02
    scaled = (noise / sigma.view(1, 3, 1, 1)).flatten().numpy()
    assert distance(scaled, np.random.standard_normal(len(scaled))) < 1.95 * (2 / len(scaled)) ** 0.5


def test_noise_repeats_with_its_seed_and_differs_from_copy_to_copy():
    input, target = images(), torch.arange(8)
    noisy = GaussianNoise(sigma=torch.ones(3)).draw(rng(3), 2, input)
    one, other = (copy(input, target)[0] - input for copy in noisy)
    torch.manual_seed(77)
    again = GaussianNoise(sigma=torch.ones(3)).draw(rng(3), 2, input)[0](input, target)[0] - input
    assert_equal(again, one)
    assert abs(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]) < 0.05
    assert abs(torch.corrcoef(one.flatten(1))[0, 1]) < 0.15  # nor do samples share it


# --- what is left alone -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', STAGES)
@pytest.mark.parametrize('soft', [False, True])
def test_neither_images_nor_labels_are_changed_in_place(name, soft):
    input, target = images(), torch.arange(8)
    target = torch.rand(8, 8) if soft else target
    kept = input.clone(), target.clone()
    for copy in STAGES[name](prob=1.0).draw(rng(), 3, input):
        changed, labels, _ = copy(input, target)
        assert not torch.equal(changed, input)
        assert_equal((input, target), kept)
        assert name in ('cutout', 'gauss') or not torch.equal(labels, kept[1])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', STAGES)
def test_the_memory_layout_is_kept_and_changes_no_value(name, layout, channels):
    input, target = images(channels=channels), torch.arange(8)
    stage = STAGES[name](prob=1.0)
    if name == 'gauss':
        stage = GaussianNoise(sigma=torch.ones(channels))
    laid_out = input.contiguous(memory_format=layout)
    [expected], [result] = ([copy(x, target)[0] for copy in stage.draw(rng(), 1, x)] for x in (input, laid_out))
    assert_equal(result, expected)
    assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', STAGES)
def test_the_number_format_of_the_images_is_kept(name, dtype):
    input = images().to(dtype)
    changed, _, _ = STAGES[name](prob=1.0).draw(rng(), 1, input)[0](input, torch.arange(8))
    assert changed.dtype == dtype
    assert changed.isfinite().all()


# --- one after the other ------------------------------------------------------------------------------------------


def by_hand(names, input, target, seed, copies):
    """Candidates with each augmentation's parameters drawn in turn, and applied in turn."""
    generator = rng(seed)
    draws = [STAGES[name](prob=1.0).draw(generator, copies, input) for name in names]
    results = []
    for copy in range(copies):
        image, label, shares = input, target, torch.ones(len(input))
        for draw in draws:
            image, label, kept = draw[copy](image, label)
            shares = shares * kept if kept is not None else shares
        results.append((image, label, shares))
    return results


@pytest.mark.parametrize('names', [['cutmix', 'mixup'], ['mixup', 'cutmix'], ['cutmix', 'gauss'], ['cutout', 'mixup']])
def test_a_composition_is_one_augmentation_after_the_other(names):
    input, target = images(), torch.arange(8)
    stages = [STAGES[name](prob=1.0) for name in names]
    composed = list(MaxUp(stages, num_copies=3, scorer=None, seed=0).candidates(input, target, rng(4)))
    assert_equal(composed, by_hand(names, input, target, 4, 3))


def test_the_labels_of_two_mixtures_are_those_of_the_images():
    """Images that are their own soft labels, laid out over the area, are mixed as their labels are."""
    target = torch.arange(8)
    input = mix.soft_target(target, 8, 0.1).view(8, 8, 1, 1).expand(8, 8, SIDE, SIDE).contiguous()
    maxup = MaxUp([STAGES['cutmix'](prob=1.0), STAGES['mixup'](prob=1.0)], num_copies=4, scorer=None, seed=0)
    for mixed, soft, shares in maxup.candidates(input, target, rng(1)):
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft, atol=1e-5, rtol=0)
        assert (soft.argmax(dim=1) != target).any()
        assert (shares > 0).all() and (shares < 1).any()


def test_noise_lies_over_the_mixture():
    input, target = images(channels=3, height=64, width=64), torch.arange(8)
    stages = [STAGES['cutmix'](prob=1.0), STAGES['gauss']()]
    [(noisy, soft, _)] = MaxUp(stages, num_copies=1, scorer=None, seed=0).candidates(input, target, rng(2))
    [(mixed, expected, _)] = MaxUp(stages[:1], num_copies=1, scorer=None, seed=0).candidates(input, target, rng(2))
    assert_equal(soft, expected)
    deviation = (noisy - mixed).std(dim=(0, 2, 3)).tolist()
    assert deviation == pytest.approx([0.1, 0.2, 0.3], rel=0.05)
