"""Scouts: candidates scored at a smaller size or in a shorter number format, beside the exact choice."""

import copy
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import SoftTargetCrossEntropy
from torch import nn

from regaug.augment.mix import CutMix, GaussianNoise
from regaug.methods import scouts
from regaug.methods.maxup import MaxUp
from regaug.methods.scoring import Scorer
from regaug.methods.scouts import Scout, comparison, is_compared
from tests.helpers.maxup import LABELS, candidates_of, losses_of, rows_of
from tests.helpers.training import (
    assert_equal,
    make_batches,
    make_model,
    make_task,
    selector_of,
    set_selector,
)
from tests.helpers.uada import CASES, Meter, make_batch, make_uada, one_sample, small_model

COMPARED, OTHER = (1000, 0, 0), (1001, 0, 0)


def maxup_task(model, *, size=None, dtype=None, autocast=None, **kwargs):
    """A task whose input MaxUp chooses by scouts."""
    task = make_task(model, SoftTargetCrossEntropy(), autocast=autocast)
    scorers = dict(scorer=Scout(task, size=size, dtype=dtype), exact=Scorer(task))
    mix = [CutMix(alpha=1.0, prob=1.0, **LABELS)]
    set_selector(task, MaxUp(mix, num_copies=4, seed=42, **{**scorers, **kwargs}))
    return task


# --- the choice is that of resized inputs ---------------------------------------------------------------------------


@pytest.mark.parametrize('size', [16, 0.5])
def test_maxup_trains_on_whole_copies_whose_halves_have_the_largest_loss(size):
    """Bilinear resizing to half the size is the average of each two by two pixels."""
    model = make_model(dtype=torch.float32)
    task = maxup_task(model, size=size)
    [(input, target)] = make_batches(1, size=12, dtype=torch.float32)
    candidates, (chosen, labels, metrics) = candidates_of(task, input, target, OTHER)
    assert all(image.shape == (12, 3, 32, 32) for image, _ in candidates)
    halves = [(F.avg_pool2d(image, 2), label) for image, label in candidates]
    losses = losses_of(model, SoftTargetCrossEntropy(), halves)
    assert_equal([chosen, labels], rows_of(candidates, losses.argmax(dim=0)))
    assert metrics['maxup_chosen_loss'].item() == pytest.approx(losses.max(dim=0).values.mean().item(), rel=1e-4)
    whole = losses_of(model, SoftTargetCrossEntropy(), candidates)
    assert (whole.argmax(dim=0) != losses.argmax(dim=0)).any()  # it makes a difference


@pytest.mark.few(2)
@pytest.mark.parametrize('case', ['all', 'descend', 'random', 'delta 3, epsilon 2, descend'])
def test_uada_moves_and_chooses_by_the_losses_of_halves(case):
    model = small_model()
    uada = make_uada(model, frozen=True, **CASES[case])
    task, input, target = uada.scorer.task, *make_batch()
    exact, _, _ = uada(input, target, OTHER)
    uada.scorer = Scout(task, size=0.5)
    chosen, _, _ = uada(input, target, OTHER)
    alone = nn.Sequential(nn.AvgPool2d(2), copy.deepcopy(model)).eval()
    expected = [one_sample(uada, alone, input, target, index) for index in range(len(input))]
    assert_equal(chosen, torch.cat([candidates[index][0] for _, candidates, index in expected]))
    assert not torch.equal(chosen, exact)


def test_sizes_are_those_of_each_batch():
    """A share of the height of each batch, rounded as elsewhere; batches that are no larger stay as they are."""
    seen = []
    task = make_task(Meter(lambda input: seen.append(tuple(input.shape[-2:])) or input.mean(dim=(1, 2, 3))))
    for size, shape in itertools.product((0.75, 24, 1), ((32, 48), (24, 24), (16, 16), (224, 224))):
        Scout(task, size=size).forward(torch.zeros(2, 3, *shape))
    assert seen[:4] == [(24, 36), (16, 16), (12, 12), (160, 160)]
    assert seen[4:8] == [(24, 36), (24, 24), (16, 16), (24, 24)]
    assert seen[8:] == [(32, 48), (24, 24), (16, 16), (224, 224)]


def test_resizing_keeps_the_memory_format():
    seen = []

    def measure(input):
        seen.append(input.is_contiguous(memory_format=torch.channels_last))
        return input.mean(dim=(1, 2, 3))

    input = torch.randn(2, 3, 32, 32)
    for batch in (input, input.to(memory_format=torch.channels_last)):
        Scout(make_task(Meter(measure)), size=16).forward(batch)
    assert seen == [False, True]


# --- number formats -------------------------------------------------------------------------------------------------


def bfloat16():
    return torch.autocast('cpu', dtype=torch.bfloat16)


def float16():
    return torch.autocast('cpu', dtype=torch.float16)


@pytest.mark.parametrize('autocast', [None, float16])
def test_scores_are_those_of_an_autocast_of_that_dtype_and_training_keeps_its_own(autocast):
    model = make_model(dtype=torch.float32)
    task = make_task(model, nn.CrossEntropyLoss(), autocast=autocast)
    [(input, target)] = make_batches(1, dtype=torch.float32)
    with bfloat16():
        output = copy.deepcopy(model)(input).detach()
    expected = F.cross_entropy(output.float(), target, reduction='none')
    assert_equal(Scout(task, dtype=torch.bfloat16)(input, target), expected)
    assert not torch.equal(Scorer(task)(input, target), expected)
    assert task(input, target)['output'].dtype == (torch.float16 if autocast else torch.float32)


@pytest.mark.parametrize('method', ['maxup', 'uada'])
def test_exact_scores_do_not_use_what_scouts_cast(method):
    """Inside one autocast cache a weight cast to bfloat16 would stay so for passes in float16."""
    model = make_model(dtype=torch.float32)
    scored = {'scout': [], 'exact': []}

    def noting(name, scorer):
        def score(input, target):
            losses = scorer(input, target)
            scored[name].append((input.clone(), target, losses))
            return losses

        score.task = scorer.task
        return score

    if method == 'maxup':
        task = maxup_task(model, dtype=torch.bfloat16, autocast=float16)
        selector = selector_of(task)
        input, target = make_batches(1, size=8, dtype=torch.float32)[0]
    else:
        selector = make_uada(model, dtype=torch.float32)
        task = selector.scorer.task
        task.autocast = float16
        selector.scorer, selector.exact = Scout(task, dtype=torch.bfloat16), Scorer(task)
        set_selector(task, selector)
        input, target = make_batch(8)
    fresh = {'scout': selector.scorer, 'exact': selector.exact}
    selector.scorer, selector.exact = noting('scout', selector.scorer), noting('exact', selector.exact)
    task.begin_update(COMPARED[0])
    task.choose_input(input, target)
    assert len(scored['scout']) == (4 if method == 'maxup' else 8)
    assert len(scored['exact']) == (4 if method == 'maxup' else 9)  # and the choice by scouts
    for name, passes in scored.items():
        for input, target, losses in passes:
            assert_equal(fresh[name](input, target), losses)


# --- the comparison -------------------------------------------------------------------------------------------------


def test_agreement_and_gain_of_numbers():
    same = torch.tensor([True, True, False, False])
    chosen, best = torch.tensor([3.0, 2.0, 1.0, 2.0]), torch.tensor([3.0, 2.0, 4.0, 3.0])
    metrics = comparison('x', same, chosen, best, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    assert {name: value.item() for name, value in metrics.items()} == {'x_agreement': 0.5, 'x_gain_kept': 0.5}


def test_where_nothing_is_to_be_gained_all_of_it_is_kept():
    losses = torch.full((3,), 0.7)
    metrics = comparison('x', torch.tensor([True, False, True]), losses, losses, losses)
    assert metrics['x_gain_kept'].item() == 1
    assert metrics['x_agreement'].item() == pytest.approx(2 / 3)


def red(input, target):
    return input[:, 0].mean(dim=(1, 2)).sigmoid()


def blue(input, target):
    return (input[:, 2].mean(dim=(1, 2)) + 0.5 * input[:, 0].mean(dim=(1, 2))).sigmoid()


@pytest.mark.parametrize('views', [False, True])
def test_maxup_agreement_and_gain_by_hand(views):
    """Scouts look at the red channel, exact scores at the blue one too."""
    copies, seen = 3, []

    def noting(input, target):
        seen.append(input.clone())
        return red(input, target)

    noise = [GaussianNoise(sigma=torch.tensor([0.5, 0.5, 0.5]))]
    maxup = MaxUp(noise, num_copies=copies, scorer=noting, exact=blue, seed=1, views=views)
    input, target = make_batches(1, size=copies * 8 if views else 8, side=4, dtype=torch.float32)[0]
    chosen, _, metrics = maxup(input, target, COMPARED)
    agree, kept, possible = 0, 0.0, 0.0
    for row in range(8):
        cheap = [red(batch[row : row + 1], None).item() for batch in seen]
        exact = [blue(batch[row : row + 1], None).item() for batch in seen]
        choice, best = cheap.index(max(cheap)), exact.index(max(exact))
        assert_equal(chosen[row], seen[choice][row])
        agree += choice == best
        kept += exact[choice] - sum(exact) / copies
        possible += max(exact) - sum(exact) / copies
    assert 0 < agree < 8
    assert metrics['maxup_agreement'].item() == pytest.approx(agree / 8)
    assert metrics['maxup_gain_kept'].item() == pytest.approx(kept / possible, rel=1e-4)


def test_under_excess_choice_and_gain_are_those_of_the_excess():
    model = make_model(dtype=torch.float32)
    task = maxup_task(model, size=16, excess=True)
    input, target = make_batches(1, size=12, dtype=torch.float32)[0]
    candidates, (_, _, metrics) = candidates_of(task, input, target, COMPARED)
    scores = {}
    for name, images in (('exact', candidates), ('scout', [(F.avg_pool2d(x, 2), y) for x, y in candidates])):
        losses = losses_of(model, SoftTargetCrossEntropy(), images)
        scores[name] = losses + torch.stack([(label * label.log()).sum(dim=1) for _, label in candidates])
    exact, choice, best = scores['exact'], scores['scout'].argmax(dim=0), scores['exact'].argmax(dim=0)
    gained, possible = (exact.gather(0, index[None])[0].mean() - exact.mean() for index in (choice, best))
    assert metrics['maxup_agreement'].item() == pytest.approx((choice == best).float().mean().item())
    assert 0 < metrics['maxup_agreement'].item() < 1
    assert metrics['maxup_gain_kept'].item() == pytest.approx((gained / possible).item(), rel=1e-3)


@pytest.mark.parametrize('case', ['all', 'descend', 'random', 'epsilon 3', 'policy'])
def test_uada_agreement_and_gain_by_hand(case):
    """Images are compared with those that a run by exact scores chooses; a number of a sample is its own."""
    input, target = make_batch(40)
    exact, by_scouts = (make_uada(small_model(), seed=3, **CASES[case]) for _ in range(2))
    exact.scorer = by_scouts.exact = blue
    by_scouts.scorer = red
    images, _, metrics = by_scouts(input, target, COMPARED)
    best, _, exact_metrics = exact(input, target, COMPARED)
    plain = copy.copy(exact)
    plain.epsilon = 0
    base, _, _ = plain(input, target, COMPARED)
    same = [torch.equal(one, other) for one, other in zip(images, best, strict=True)]
    assert 0 < sum(same) < 40
    gained, possible = (float((blue(chosen, None) - blue(base, None)).mean()) for chosen in (images, best))
    assert float(exact_metrics['uada_gain']) == pytest.approx(possible)
    assert float(metrics['uada_agreement']) == pytest.approx(np.mean(same))
    assert float(metrics['uada_gain_kept']) == pytest.approx(gained / possible, rel=1e-6)


@pytest.mark.parametrize('step', ['ascend', 'descend', 'random'])
def test_scores_that_are_the_exact_ones_agree_in_all_and_lose_nothing(step):
    """With batch statistics too, where the same image has other losses in other company."""
    uada = make_uada(small_model(), step=step)
    uada.exact = uada.scorer
    _, _, metrics = uada(*make_batch(), COMPARED)
    assert (float(metrics['uada_agreement']), float(metrics['uada_gain_kept'])) == (1, 1)
    task = maxup_task(make_model(dtype=torch.float32))
    _, _, metrics = selector_of(task)(*make_batches(1, dtype=torch.float32)[0], COMPARED)
    assert (float(metrics['maxup_agreement']), float(metrics['maxup_gain_kept'])) == (1, 1)


def test_every_500th_update_is_compared_whatever_rank_and_micro_batch():
    compared = [number for number in range(1501) if is_compared((number, number % 2, number % 3))]
    assert compared == [0, 500, 1000, 1500]
    task = maxup_task(make_model(dtype=torch.float32), size=16)
    input, target = make_batches(1, dtype=torch.float32)[0]
    for key in [(0, 0, 0), (500, 1, 0), (1500, 0, 2), (1, 0, 0), (499, 0, 0), (1, 500, 500)]:
        metrics = selector_of(task)(input, target, key)[2]
        assert ({'maxup_agreement', 'maxup_gain_kept'} <= metrics.keys()) == (key[0] % 500 == 0)


@pytest.mark.parametrize('method', ['maxup', 'uada'])
def test_a_comparison_changes_nothing_but_what_is_logged(method, monkeypatch):
    def choose(every):
        monkeypatch.setattr(scouts, 'COMPARED_EVERY', every)
        torch.manual_seed(2)
        if method == 'maxup':
            selector = selector_of(maxup_task(make_model('test_efficientnet', dtype=torch.float32, drop_rate=0.3)))
            selector.scorer.size = 16
        else:
            selector = make_uada(small_model())
            selector.scorer, selector.exact = Scout(selector.scorer.task, size=0.5), selector.scorer
        batch = make_batches(1, dtype=torch.float32)[0] if method == 'maxup' else make_batch()
        chosen = selector(*batch, (7, 0, 0))
        model = selector.exact.task.full_network
        return chosen[:2], chosen[2], dict(model.state_dict()), torch.get_rng_state()

    with_it, without = choose(7), choose(5)
    assert_equal(with_it[0], without[0])
    assert_equal(with_it[2:], without[2:])
    added = {f'{method}_agreement', f'{method}_gain_kept'}
    assert with_it[1].keys() - without[1].keys() == added
    assert_equal({name: value for name, value in with_it[1].items() if name not in added}, without[1])


def test_an_exact_loss_that_is_no_number_is_no_exact_choice():
    noise = [GaussianNoise(sigma=torch.tensor([0.5, 0.5, 0.5]))]
    input, target = make_batches(1, size=8, dtype=torch.float32)[0]
    seen, scored = [], []

    def noting(input, target):
        seen.append(blue(input, target))
        return seen[-1]

    def broken(input, target):
        worst = torch.stack(seen).argmax(dim=0)[0]
        scored.append(blue(input, target))
        return scored[-1].index_fill(0, torch.arange(int(len(scored) - 1 == worst)), torch.nan)

    _, _, metrics = MaxUp(noise, num_copies=4, scorer=noting, exact=broken, seed=1)(input, target, COMPARED)
    assert_equal(scored, seen)
    assert float(metrics['maxup_agreement']) == 7 / 8
