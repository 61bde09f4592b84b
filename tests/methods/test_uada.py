"""UADA: passes, candidates and choice against brute force; losses that are no numbers; no adaptation."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regaug.augment.parameters import GROUPS
from tests.helpers.training import assert_equal
from tests.helpers.uada import (
    CASES,
    FIELD,
    Noting,
    augment,
    make_batch,
    make_uada,
    moved_by_hand,
    one_sample,
    row_of,
    sign_of,
    small_model,
)

# --- brute force --------------------------------------------------------------------------------------------------


PASSES = {'random': 5, 'epsilon 4, random': 5, 'policy': 3, 'flip': 2, 'flip, descend': 2, 'crop and cutout': 5}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.few(5)
def test_passes_candidates_and_choice_equal_those_of_each_sample_alone(case):
    model = small_model()
    uada = make_uada(model, frozen=True, **CASES[case])
    input, target = make_batch()
    chosen, labels, metrics = uada(input, target, (3, 0, 0))
    alone = copy.deepcopy(model).eval()
    expected = [one_sample(uada, alone, input, target, index) for index in range(len(input))]
    assert metrics['uada_passes'] == len(uada.scorer.passes) == PASSES.get(case, 8)
    for number, (images, losses) in enumerate(uada.scorer.passes):
        assert_equal(images, torch.cat([scored[number][0] for scored, _, _ in expected]))
        by_hand = torch.tensor([scored[number][1] for scored, _, _ in expected], dtype=torch.float64)
        torch.testing.assert_close(losses, by_hand, rtol=0, atol=1e-9)
    assert_equal(chosen, torch.cat([candidates[index][0] for _, candidates, index in expected]))
    assert_equal(labels, target)
    gains = [candidates[index][1] - candidates[0][1] for _, candidates, index in expected]
    assert float(metrics['uada_gain']) == pytest.approx(np.mean(gains), abs=1e-9)
    assert len({index for _, _, index in expected}) > 1  # not the same candidate for all


@pytest.mark.parametrize('step', ['ascend', 'descend', 'random'])
def test_with_batch_statistics_choices_equal_those_of_fresh_copies_of_the_model(step):
    """Every pass, whole batch by whole batch, by a copy of the model that trains as usual."""
    model = small_model()
    uada = make_uada(model, step=step)
    input, target = make_batch()
    chosen, _, metrics = uada(input, target, (3, 0, 0))
    base, steps = uada.augmentation.base, uada.augmentation.steps
    up = -1 if step == 'descend' else 1

    def score(params):
        images = augment(uada, input, params)
        return images, F.cross_entropy(copy.deepcopy(model).train()(images), target, reduction='none').detach()

    def moved(group, signs):
        parts = [
            moved_by_hand(row_of(base, index), group, steps[group][index : index + 1], sign)
            for index, sign in enumerate(signs)
        ]
        return replace(base, **{FIELD[group]: torch.cat([getattr(part, FIELD[group]) for part in parts])})

    def candidate(group, signs):
        """Images and losses; where a sample has not moved it is its base."""
        params = moved(group, signs)
        images, losses = score(params)
        unmoved = (getattr(params, FIELD[group]) == getattr(base, FIELD[group])).view(len(input), -1).all(dim=1)
        return (images, losses), (images, torch.where(unmoved, scored[0][1], losses))

    scored = [score(base)]
    candidates = list(scored)
    ones = [1] * len(input)
    if step == 'random':
        tosses = {group: steps[group].abs().tolist() if group == 'flip' else ones for group in GROUPS}
        pairs = [candidate(group, tosses[group]) for group in GROUPS]
        scored += [pair[0] for pair in pairs]
        candidates += [pair[1] for pair in pairs]
    else:
        probes = [candidate(group, ones) for group in GROUPS]
        assert any((as_scored[1] != own[1]).any() for as_scored, own in probes)  # where a bound holds the probe back
        scored += [as_scored for as_scored, _ in probes]
        rescored = []
        for group, (_, (_, losses)) in zip(GROUPS, probes, strict=True):
            signs = [up * sign_of(difference) for difference in (losses - scored[0][1]).tolist()]
            as_scored, as_chosen = candidate(group, signs)
            if group == 'flip':  # no pass of its own: the losses of the base and of the probe
                rising = torch.tensor(signs) > 0
                as_chosen = as_chosen[0], torch.where(rising, losses, candidates[0][1])
            else:
                rescored.append(as_scored)
            candidates.append(as_chosen)
        scored += rescored
    assert len(uada.scorer.passes) == len(scored) == (5 if step == 'random' else 8)
    for (images, losses), (by_hand, expected) in zip(uada.scorer.passes, scored, strict=True):
        assert_equal(images, by_hand)
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-9)
    losses = torch.stack([losses for _, losses in candidates])
    index = (losses if step != 'descend' else -losses).argmax(dim=0)
    assert_equal(chosen, torch.stack([candidates[number][0][row] for row, number in enumerate(index.tolist())]))
    gain = losses.gather(0, index[None])[0] - losses[0]
    assert float(metrics['uada_gain']) == pytest.approx(gain.mean().item(), abs=1e-9)
    assert len(set(index.tolist())) > 2


@pytest.mark.parametrize('frozen', [False, True])
@pytest.mark.parametrize(('step', 'sign'), [('ascend', 1), ('random', 1), ('descend', -1)])
def test_no_sample_trains_on_less_than_its_base(step, sign, frozen):
    """For `descend` on no more."""
    uada = make_uada(small_model(), step=step, frozen=frozen)
    gains = []
    for update in range(6):
        input, target = make_batch(seed=update)
        chosen, _, metrics = uada(input, target, (update, 0, 0))
        _, base_losses = uada.scorer.passes[0]
        images, losses = (torch.stack(parts) for parts in zip(*uada.scorer.passes))
        found = (images == chosen).flatten(2).all(dim=2)
        assert found.any(dim=0).all()  # whatever is trained on was scored
        own = torch.where(found, sign * losses, -torch.inf).amax(dim=0)
        assert (own >= sign * base_losses).all()
        gains.append(sign * float(metrics['uada_gain']))
        uada.scorer.passes.clear()
    assert min(gains) > 0


# --- losses that are no numbers -----------------------------------------------------------------------------------


class Failing(Noting):
    """A scorer for which some losses, others in each pass, are no numbers; those of the last sample never are."""

    def __call__(self, input, target):
        losses = super().__call__(input, target)
        generator = torch.Generator().manual_seed(len(self.passes))
        failed = torch.rand(len(losses), generator=generator) < 0.4
        failed[-1] = True
        losses[failed] = torch.nan
        return losses


@pytest.mark.parametrize('step', ['ascend', 'descend', 'random'])
def test_a_loss_that_is_no_number_is_never_taken_while_there_is_another(step):
    uada = make_uada(small_model(), frozen=True, step=step)
    uada.scorer = Failing(uada.scorer.task)
    input, target = make_batch(80)
    chosen, _, _ = uada(input, target, (3, 0, 0))
    base, *others = uada.augmentation.applied
    scored = [losses for _, losses in uada.scorer.passes]
    moved = dict(zip(GROUPS, others)) if step == 'random' else dict(zip(('crop', 'policy', 'cutout'), others[4:]))
    rescored = dict(zip(moved, scored[1:] if step == 'random' else scored[5:]))
    images, losses = [uada.scorer.passes[0][0]], [scored[0]]
    for group in GROUPS:
        if group in moved:
            same = (getattr(moved[group], FIELD[group]) == getattr(base, FIELD[group])).view(80, -1).all(dim=1)
            params, own = moved[group], rescored[group]
        else:
            flips = (
                scored[2] < scored[0] if step == 'descend' else scored[2] > scored[0]
            )  # false where one is no number
            same, params, own = ~flips, replace(base, flips=base.flips ^ flips.long()), scored[2]
        images.append(augment(uada, input, params))
        losses.append(torch.where(same, scored[0], own))
    sign, found = -1 if step == 'descend' else 1, set()
    for sample in range(80):
        values = [sign * loss[sample].item() for loss in losses]
        numbers = [number for number, value in enumerate(values) if value == value]
        expected = max(numbers, key=values.__getitem__) if numbers else 0
        assert torch.equal(chosen[sample], images[expected][sample])
        found.add((bool(numbers), values[0] == values[0], expected > 0))
    assert {(False, False, False), (True, True, True), (True, True, False)} <= found
    assert (True, False, True) in found or step != 'random'  # where the base is none, only a coin moves anything


# --- no adaptation ------------------------------------------------------------------------------------------------


class Forbidden(nn.Module):
    def forward(self, input):
        raise AssertionError('the model was called')


@pytest.mark.parametrize('step', ['ascend', 'random', 'descend'])
def test_epsilon_0_trains_on_the_base_of_the_adaptive_run_without_a_pass(step):
    adaptive = make_uada(small_model(), step=step)
    plain = make_uada(Forbidden(), step=step, epsilon=0)
    for key in ((0, 0, 0), (5, 1, 2)):
        input, target = make_batch(seed=key[0])
        adaptive(input, target, key)
        images, labels, metrics = plain(input, target, key)
        assert_equal(images, adaptive.scorer.passes[0][0])
        assert_equal(labels, target)
        assert metrics == {'uada_passes': 0}
        adaptive.scorer.passes.clear()
