"""Augmentations of batches: the mixtures of timm, the boxes of CutMix, what is drawn for whom, what is left alone."""

import itertools

import numpy as np
import pytest
import torch
from timm.data import Mixup as TimmMixup
from timm.data import mixup as timm_mixup

from regaug.augment import mix
from regaug.augment.mix import CutMix, Cutout, GaussianNoise, Mixup
from regaug.methods.maxup import MaxUp
from tests.helpers.mix import LABELS, SIDE, distance, images, rectangle, rng
from tests.helpers.training import assert_equal

# --- timm's mixtures ----------------------------------------------------------------------------------------------


def timms_mixture(monkeypatch, input, target, *, seed, **options):
    """What `timm.data.Mixup` makes of a batch by elements: (input, target, its boxes, its lambda before boxes)."""
    boxes, lams = [], []
    boxes_and_lam, lam_of_elements = timm_mixup.cutmix_bbox_and_lam, TimmMixup._params_per_elem

    def keep_boxes(*args, **kwargs):
        box, lam = boxes_and_lam(*args, **kwargs)
        boxes.append(box)
        return box, lam

    def keep_lam(*args):
        lam, use_cutmix = lam_of_elements(*args)
        lams.append(lam.copy())
        return lam, use_cutmix

    np.random.seed(seed)
    with monkeypatch.context() as patch:
        patch.setattr(timm_mixup, 'cutmix_bbox_and_lam', keep_boxes)
        patch.setattr(TimmMixup, '_params_per_elem', keep_lam)
        timm = TimmMixup(mode='elem', correct_lam=True, label_smoothing=0.1, num_classes=8, **options)
        mixed, soft = timm(input.clone(), target)
    return mixed, soft, np.array(boxes), lams[0]


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_cutmix_is_timms_for_the_same_boxes_and_partners(seed, dtype, monkeypatch):
    input, target = images(height=24, width=16).to(dtype), torch.randint(8, (8,))
    expected, soft, boxes, _ = timms_mixture(
        monkeypatch, input, target, seed=seed, mixup_alpha=0.0, cutmix_alpha=1.0, prob=1.0
    )
    partners = torch.arange(8).flip(0)
    lam = torch.from_numpy(mix.box_lam(boxes, 24, 16)).float().to(dtype)  # as timm rounds them
    assert_equal(mix.cutmix(input, partners, mix.inside(torch.from_numpy(boxes), input)), expected)
    assert_equal(mix.mix_target(mix.soft_target(target, 8, 0.1), partners, lam), soft)
    assert len({tuple(box) for box in boxes}) > 4


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('prob', [1.0, 0.5])
def test_mixup_is_timms_for_the_same_lambda_and_partners(seed, prob, monkeypatch):
    input, target = images(), torch.randint(8, (8,))
    expected, soft, _, lam = timms_mixture(monkeypatch, input, target, seed=seed, mixup_alpha=0.4, prob=prob)
    partners, lam = torch.arange(8).flip(0), torch.from_numpy(lam)
    assert_equal(mix.mixup(input, partners, lam), expected)
    assert_equal(mix.mix_target(mix.soft_target(target, 8, 0.1), partners, lam), soft)
    assert (lam == 1).any() if prob < 1 else not (lam == 1).any()


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
    lam = torch.rand(8)
    blended = mix.mixup(input, partners, lam)
    soft = mix.mix_target(mix.soft_target(target, 8, 0.1), partners, lam)
    for sample, partner in enumerate(partners.tolist()):
        pair = input[[sample, partner]]
        own = lam[sample]
        assert_equal(blended[sample], (pair * own + pair.flip(0) * (1 - own))[0])
        assert_equal(soft[sample], timm_mixup.mixup_target(target[[sample, partner]], 8, own, 0.1)[0])


def test_an_own_lambda_of_one_keeps_the_image_bit_for_bit():
    input = images()
    input[2, 0, 0, 0] = -0.0
    input[3] = float('inf')  # infinity times zero is no number
    kept = mix.mixup(input, torch.arange(8).flip(0), torch.ones(8))
    assert_equal(kept.view(torch.int32), input.view(torch.int32))


# --- what is drawn for whom ---------------------------------------------------------------------------------------


def test_partners_are_a_uniform_permutation_of_their_own_for_every_copy():
    partners = mix.draw_partners(rng(), 6000, 5)
    assert np.array_equal(np.sort(partners, axis=1), np.tile(np.arange(5), (6000, 1)))
    permutations, counts = np.unique(partners, axis=0, return_counts=True)
    assert len(permutations) == 120
    assert counts.min() > 50 - 5 * 50**0.5 and counts.max() < 50 + 5 * 50**0.5


AUGMENTATIONS = {
    'cutmix': lambda **kwargs: CutMix(alpha=1.0, **LABELS, **kwargs),
    'cutmix between': lambda **kwargs: CutMix(alpha=1.0, minmax=(0.3, 0.8), **LABELS, **kwargs),
    'mixup': lambda **kwargs: Mixup(alpha=1.0, **LABELS, **kwargs),
    'cutout': lambda **kwargs: Cutout(size=5, **kwargs),
    'gauss': lambda prob=1.0: GaussianNoise(sigma=torch.tensor([0.1, 0.2, 0.3])),
}


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_copies_and_samples_are_drawn_independently(name):
    """Every sample is the same image and has the same label: what differs is what was drawn."""
    input = images(1).expand(6, -1, -1, -1)
    if name in ('cutmix', 'cutmix between', 'mixup'):  # something must be there to mix in
        input = torch.cat([input, -input])
    target = torch.zeros(len(input), dtype=torch.long)
    results = [copy(input, target)[0] for copy in AUGMENTATIONS[name](prob=1.0).draw(rng(1), 5, input)]
    changed = [image for result in results for image, own in zip(result, input, strict=True) if (image != own).any()]
    pairs = list(itertools.combinations(changed, 2))
    assert len(changed) > 20
    assert sum(torch.equal(one, other) for one, other in pairs) <= 0.02 * len(pairs)


@pytest.mark.parametrize('name', ['cutmix', 'cutmix between', 'mixup', 'cutout'])
def test_the_probability_holds_for_each_copy_and_sample(name):
    input = torch.cat([images(400, 1, 8, 8), images(400, 1, 8, 8) + 9])
    target = torch.zeros(len(input), dtype=torch.long)
    chance = AUGMENTATIONS[name](prob=0.3).draw(rng(7), 4, input)
    always = AUGMENTATIONS[name](prob=1.0).draw(rng(7), 4, input)
    untouched = torch.stack(
        [(copy(input, target)[0] == input).flatten(1).all(dim=1).double() for copy in (*chance, *always)]
    )
    plain = untouched[4:].mean().item()  # an empty box, or a sample that is its own partner
    assert plain < 0.1
    mixed = 1 - untouched[:4]
    assert mixed.mean(dim=1).tolist() == pytest.approx([0.3 * (1 - plain)] * 4, abs=0.05)
    for one, other in itertools.combinations(mixed, 2):
        assert (one * other).mean() == pytest.approx((0.3 * (1 - plain)) ** 2, abs=0.03)
    assert AUGMENTATIONS[name](prob=0.0).draw(rng(7), 1, input)[0](input, target)[0].equal(input)


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_draws_repeat_with_the_generator_and_touch_no_other_random_state(name):
    input, target = images(), torch.arange(8)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    first, again, other = (
        [copy(input, target) for copy in AUGMENTATIONS[name](prob=0.7).draw(rng(seed), 3, input)] for seed in (1, 1, 2)
    )
    assert_equal(first, again)
    assert not any(torch.equal(one[0], two[0]) for one, two in zip(first, other, strict=True))
    assert_equal((torch.get_rng_state(), np.random.get_state()[1].tolist()), before)


def test_a_copy_may_be_made_twice():
    input, target = images(), torch.arange(8)
    for augmentation in AUGMENTATIONS.values():
        for copy in augmentation(prob=1.0).draw(rng(), 2, input):
            assert_equal(copy(input, target), copy(input, target))


# --- Cutout and noise ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('size', [4, 5, 16, 40])
def test_cutout_erases_a_square_that_only_borders_make_smaller(size):
    height, width = 16, 24
    input, target = images(500, 2, height, width), torch.arange(500)
    [copy] = Cutout(size=size).draw(rng(), 1, input)
    erased, labels, lam = copy(input, target)
    assert labels is target and lam is None
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


@pytest.mark.parametrize('name', AUGMENTATIONS)
@pytest.mark.parametrize('soft', [False, True])
def test_neither_images_nor_labels_are_changed_in_place(name, soft):
    input, target = images(), torch.arange(8)
    target = torch.rand(8, 8) if soft else target
    kept = input.clone(), target.clone()
    for copy in AUGMENTATIONS[name](prob=1.0).draw(rng(), 3, input):
        changed, labels, _ = copy(input, target)
        assert not torch.equal(changed, input)
        assert_equal((input, target), kept)
        assert name in ('cutout', 'gauss') or not torch.equal(labels, kept[1])


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_the_memory_layout_is_kept_and_changes_no_value(name, layout, channels):
    input, target = images(channels=channels), torch.arange(8)
    augmentation = AUGMENTATIONS[name](prob=1.0)
    if name == 'gauss':
        augmentation = GaussianNoise(sigma=torch.ones(channels))
    laid_out = input.contiguous(memory_format=layout)
    [expected], [result] = ([copy(x, target)[0] for copy in augmentation.draw(rng(), 1, x)] for x in (input, laid_out))
    assert_equal(result, expected)
    assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_the_number_format_of_the_images_is_kept(name, dtype):
    input = images().to(dtype)
    changed, _, _ = AUGMENTATIONS[name](prob=1.0).draw(rng(), 1, input)[0](input, torch.arange(8))
    assert changed.dtype == dtype
    assert changed.isfinite().all()


# --- one after the other ------------------------------------------------------------------------------------------


def by_hand(names, input, target, seed, copies):
    """Candidates with each augmentation's parameters drawn in turn, and applied in turn."""
    generator = rng(seed)
    draws = [AUGMENTATIONS[name](prob=1.0).draw(generator, copies, input) for name in names]
    results = []
    for copy in range(copies):
        image, label, lam = input, target, torch.ones(len(input))
        for draw in draws:
            image, label, kept = draw[copy](image, label)
            lam = lam * kept if kept is not None else lam
        results.append((image, label, lam))
    return results


@pytest.mark.parametrize('names', [['cutmix', 'mixup'], ['mixup', 'cutmix'], ['cutmix', 'gauss'], ['cutout', 'mixup']])
def test_a_composition_is_one_augmentation_after_the_other(names):
    input, target = images(), torch.arange(8)
    augmentations = [AUGMENTATIONS[name](prob=1.0) for name in names]
    composed = list(MaxUp(augmentations, num_copies=3, scorer=None, seed=0).candidates(input, target, rng(4)))
    assert_equal(composed, by_hand(names, input, target, 4, 3))


def test_the_labels_of_two_mixtures_are_those_of_the_images():
    """Images that are their own soft labels, laid out over the area, are mixed as their labels are."""
    target = torch.arange(8)
    input = mix.soft_target(target, 8, 0.1).view(8, 8, 1, 1).expand(8, 8, SIDE, SIDE).contiguous()
    maxup = MaxUp(
        [AUGMENTATIONS['cutmix'](prob=1.0), AUGMENTATIONS['mixup'](prob=1.0)], num_copies=4, scorer=None, seed=0
    )
    for mixed, soft, lam in maxup.candidates(input, target, rng(1)):
        torch.testing.assert_close(mixed.mean(dim=(2, 3)), soft, atol=1e-5, rtol=0)
        assert (soft.argmax(dim=1) != target).any()
        assert (lam > 0).all() and (lam < 1).any()


def test_noise_lies_over_the_mixture():
    input, target = images(channels=3, height=64, width=64), torch.arange(8)
    augmentations = [AUGMENTATIONS['cutmix'](prob=1.0), AUGMENTATIONS['gauss']()]
    [(noisy, soft, _)] = MaxUp(augmentations, num_copies=1, scorer=None, seed=0).candidates(input, target, rng(2))
    [(mixed, expected, _)] = MaxUp(augmentations[:1], num_copies=1, scorer=None, seed=0).candidates(
        input, target, rng(2)
    )
    assert_equal(soft, expected)
    deviation = (noisy - mixed).std(dim=(0, 2, 3)).tolist()
    assert deviation == pytest.approx([0.1, 0.2, 0.3], rel=0.05)
