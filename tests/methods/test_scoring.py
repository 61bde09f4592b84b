"""Scoring: losses of single samples, passes that leave no trace, and the choice of the worst candidate."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from regaug.methods.scoring import Scorer, lowest_losses, sample_losses, worst_of
from tests.helpers.training import assert_equal, make_batches, make_model, make_task

BATCH, CHOICES = 6, 5
CRITERIA = {  # criterion, whether it takes soft targets and class indices
    'plain': (lambda: nn.CrossEntropyLoss(), 'index soft'),
    'smoothed': (lambda: LabelSmoothingCrossEntropy(0.1), 'index'),
    'strongly smoothed': (lambda: LabelSmoothingCrossEntropy(0.6), 'index'),
    'soft': (lambda: SoftTargetCrossEntropy(), 'soft'),
    'binary': (lambda: BinaryCrossEntropy(smoothing=0.1), 'index soft'),
    'binary without smoothing': (lambda: BinaryCrossEntropy(smoothing=0.0), 'index soft'),
    'binary, summed': (lambda: BinaryCrossEntropy(smoothing=0.1, sum_classes=True), 'index soft'),
    'binary above a threshold': (lambda: BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2), 'index soft'),
    'binary, positives weigh more': (lambda: BinaryCrossEntropy(smoothing=0.1, pos_weight=3.0), 'index soft'),
    'binary, all of it': (
        lambda: BinaryCrossEntropy(smoothing=0.1, target_threshold=0.2, sum_classes=True, pos_weight=0.5),
        'index soft',
    ),
}
CASES = [(name, kind) for name, (_, kinds) in CRITERIA.items() for kind in kinds.split()]


def targets(kind, count=BATCH):
    """Class indices, or soft targets as mixing makes them: shares of two smoothed labels."""
    labels = torch.randint(CHOICES, (2, count))
    if kind == 'index':
        return labels[0]
    shares = torch.rand(count, 1)
    one, other = (0.9 * F.one_hot(label, CHOICES) + 0.1 / CHOICES for label in labels)
    return one * shares + other * (1 - shares)


# --- losses of samples --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('name', 'kind'), CASES)
def test_sample_losses_average_to_the_training_loss(name, kind):
    criterion, target, output = CRITERIA[name][0](), targets(kind), 3 * torch.randn(BATCH, CHOICES)
    losses = sample_losses(criterion, output, target)
    assert losses.shape == (BATCH,)
    torch.testing.assert_close(losses.mean(), criterion(output, target), rtol=1e-6, atol=0)


@pytest.mark.parametrize(('name', 'kind'), CASES)
def test_each_loss_is_that_of_its_sample_alone(name, kind):
    criterion, target, output = CRITERIA[name][0](), targets(kind), 3 * torch.randn(BATCH, CHOICES)
    losses = sample_losses(criterion, output, target)
    alone = [criterion(output[row : row + 1], target[row : row + 1]) for row in range(BATCH)]
    torch.testing.assert_close(losses, torch.stack(alone), rtol=1e-6, atol=0)
    assert losses.std() > 0.01


@pytest.mark.parametrize(('name', 'kind'), CASES)
def test_half_precision_outputs_are_compared_in_float32(name, kind):
    criterion, target = CRITERIA[name][0](), targets(kind)
    output = (3 * torch.randn(BATCH, CHOICES)).bfloat16()
    losses = sample_losses(criterion, output, target)
    assert losses.dtype == torch.float32
    assert_equal(losses, sample_losses(criterion, output.float(), target))
    assert sample_losses(nn.CrossEntropyLoss(), output.double(), torch.arange(BATCH) % CHOICES).dtype == torch.float64


@pytest.mark.parametrize('name', CRITERIA)
def test_a_criterion_is_left_as_it_was(name):
    """A criterion that gave single losses from then on would train on something else."""
    kind = CRITERIA[name][1].split()[-1]
    criterion, target, output = CRITERIA[name][0](), targets(kind), torch.randn(BATCH, CHOICES)
    before = criterion(output, target)
    sample_losses(criterion, output, target)
    lowest_losses(criterion, target)
    assert_equal(criterion(output, target), before)


# --- the smallest possible loss -----------------------------------------------------------------------------------


@pytest.mark.parametrize('name', [name for name, (_, kinds) in CRITERIA.items() if 'soft' in kinds])
def test_the_lowest_loss_is_what_the_best_output_reaches(name):
    criterion, target = CRITERIA[name][0](), targets('soft').double()
    output = torch.zeros(BATCH, CHOICES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([output], lr=1, max_iter=2000, tolerance_grad=1e-12, tolerance_change=1e-14)

    def closure():
        optimizer.zero_grad()
        loss = sample_losses(criterion, output, target).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    reached = sample_losses(criterion, output, target).detach()
    lowest = lowest_losses(criterion, target)
    torch.testing.assert_close(reached, lowest, rtol=0, atol=2e-5)
    for _ in range(20):
        other = sample_losses(criterion, output.detach() + torch.randn_like(output), target)
        assert (other >= lowest - 1e-5).all()


def test_a_label_that_is_not_mixed_can_be_met_without_loss():
    target = F.one_hot(torch.arange(CHOICES), CHOICES).float()
    for criterion in (SoftTargetCrossEntropy(), BinaryCrossEntropy(smoothing=0.0)):
        assert lowest_losses(criterion, target).abs().max() < 1e-5


def test_the_lowest_loss_of_an_even_mixture_is_that_of_a_coin():
    target = torch.tensor([[0.5, 0.5, 0.0]])
    assert lowest_losses(SoftTargetCrossEntropy(), target).item() == pytest.approx(np.log(2))
    binary = lowest_losses(BinaryCrossEntropy(smoothing=0.0, sum_classes=True), target)
    assert binary.item() == pytest.approx(2 * np.log(2), abs=1e-5)


@pytest.mark.parametrize('name', [name for name, (_, kinds) in CRITERIA.items() if 'index' in kinds])
def test_class_indices_are_not_told_apart(name):
    """All candidates of a sample have the same one: any constant does."""
    floor = lowest_losses(CRITERIA[name][0](), targets('index'))
    assert floor.shape == (BATCH,)
    assert len(set(floor.tolist())) == 1


# --- the worst of several -----------------------------------------------------------------------------------------


def given_losses(losses):
    """Candidates [m] and a score for which the loss of candidate j of sample b is losses[j, b].

    The image of candidate j of sample b is 10 * b + j, its target b.
    """
    copies, samples = losses.shape
    target = torch.arange(samples)
    candidates = [(10.0 * target.view(-1, 1, 1, 1).float() + j, target, 100 * target + j) for j in range(copies)]

    def score(input, target):
        numbers = input.flatten().long()
        return losses[numbers % 10, target]

    return candidates, score


@pytest.mark.parametrize('copies', [1, 2, 5])
def test_the_choice_is_the_maximum_of_each_sample(copies):
    losses = torch.rand(copies, 7)
    choice = worst_of(*given_losses(losses))
    for sample in range(7):
        best = max(range(copies), key=lambda number: losses[number, sample].item())
        assert choice.index[sample] == best
        assert choice.chosen[0][sample].item() == 10 * sample + best
        assert choice.chosen[2][sample] == 100 * sample + best
    assert_equal(choice.chosen[1], torch.arange(7))
    assert_equal(choice.losses, losses)
    assert_equal(choice.chosen_losses, losses.max(dim=0).values)
    assert copies == 1 or len(set(choice.index.tolist())) > 1


@pytest.mark.parametrize('order', [[1.0, 2.0, 2.0], [2.0, 1.0, 2.0], [2.0, 2.0, 1.0]])
def test_of_equal_losses_the_first_is_taken(order):
    choice = worst_of(*given_losses(torch.tensor(order).view(3, 1)))
    assert choice.index.tolist() == [order.index(2.0)]


def test_all_equal_losses_leave_the_first_candidate():
    candidates, score = given_losses(torch.full((4, 6), 0.3))
    choice = worst_of(candidates, score)
    assert choice.index.tolist() == [0] * 6
    assert_equal(choice.chosen, candidates[0])


@pytest.mark.parametrize('floor', [None, lambda target: 0.1 * target])
def test_a_loss_that_is_no_number_is_never_taken_while_there_is_another(floor):
    losses = torch.rand(4, 60)
    losses[torch.rand(4, 60) < 0.5] = torch.nan
    losses[2, losses[2].isfinite().nonzero()[::5, 0]] = torch.inf
    choice = worst_of(*given_losses(losses), floor)
    counts = set()
    for sample, values in enumerate(losses.T.tolist()):
        numbers = [number for number, value in enumerate(values) if value == value]
        expected = max(numbers, key=values.__getitem__) if numbers else 0
        assert choice.index[sample] == expected
        assert choice.chosen[0][sample].item() == 10 * sample + expected
        counts.add(len(numbers))
    assert counts == {0, 1, 2, 3, 4}
    assert_equal(choice.losses.nan_to_num(-1), losses.nan_to_num(-1))


def test_samples_keep_their_rows_and_hard_ones_displace_no_easy_ones():
    """The maximum over a batch in the wrong shape would train on the hardest samples several times."""
    scale = torch.tensor([1e3, 1e-3, 1.0, 1e2, 1e-2, 0.0])
    losses = scale * (1 + torch.rand(4, 6))
    choice = worst_of(*given_losses(losses))
    assert (choice.chosen[0].flatten() // 10).tolist() == [0, 1, 2, 3, 4, 5]
    assert (choice.chosen_losses <= 2 * scale).all()


def test_candidates_may_come_one_at_a_time():
    """No more than the worst so far and the next one need to be alive."""
    losses = torch.rand(5, 3)
    candidates, score = given_losses(losses)
    scored, made = [], []

    def one_by_one():
        for number, candidate in enumerate(candidates):
            made.append(number)
            assert len(scored) == number
            yield candidate

    def noting(input, target):
        scored.append(len(made))
        return score(input, target)

    assert_equal(worst_of(one_by_one(), noting).chosen, worst_of(candidates, score).chosen)
    assert scored == [1, 2, 3, 4, 5]


def test_candidates_are_not_changed():
    candidates, score = given_losses(torch.rand(3, 6))
    kept = [tuple(part.clone() for part in candidate) for candidate in candidates]
    worst_of(candidates, score)
    assert_equal(candidates, kept)


def test_more_candidates_never_lower_the_loss_of_the_choice():
    model = make_model(dtype=torch.float32)
    scorer = Scorer(make_task(model))
    [(input, target)] = make_batches(1, dtype=torch.float32)
    candidates = [(input + torch.randn_like(input), target) for _ in range(8)]
    means = [worst_of(candidates[:count], scorer).chosen_losses for count in range(1, 9)]
    for fewer, more in itertools.pairwise(means):
        assert (more >= fewer).all()
    assert means[-1].mean() > means[0].mean() + 0.01


def test_excess_ranks_by_the_loss_above_the_floor_and_reports_the_loss():
    losses = torch.tensor([[1.0, 5.0, 2.0], [3.0, 4.0, 2.0], [2.5, 1.0, 2.0]])
    floors = iter([torch.tensor([0.0, 4.5, 0.0]), torch.tensor([2.9, 1.0, 0.0]), torch.tensor([0.0, 0.0, 0.0])])
    candidates, score = given_losses(losses)
    choice = worst_of(candidates, score, lambda target: next(floors))
    assert choice.index.tolist() == [2, 1, 0]
    assert choice.chosen_losses.tolist() == [2.5, 4.0, 2.0]
    assert_equal(choice.losses, losses)


def test_the_floor_is_that_of_each_candidates_own_target():
    """With a network that says nothing the loss of every mixture is the same, and the purest has the largest excess."""
    shares = torch.tensor([[0.5, 0.9], [1.0, 0.6], [0.7, 0.8]])
    candidates = [
        (torch.zeros(2, 3, 4, 4), torch.stack([share, 1 - share, 0 * share, 0 * share], dim=1)) for share in shares
    ]

    def score(input, target):
        return sample_losses(SoftTargetCrossEntropy(), torch.zeros(2, 4), target)

    choice = worst_of(candidates, score, lambda target: lowest_losses(SoftTargetCrossEntropy(), target))
    assert choice.index.tolist() == [1, 0]
    assert_equal(choice.chosen[1], torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.9, 1 - torch.tensor(0.9), 0.0, 0.0]]))
