"""Scoring: losses of single samples, passes that leave no trace, and the choice of the worst candidate."""

import copy
import itertools
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from training_case import CLASSES, assert_equal, make_batches, make_droppy_model, make_model, make_task

from regaug.scoring import Scorer, lowest_losses, sample_losses, worst_of

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


# --- passes without a trace ---------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A network with all that a forward pass in training mode could leave its mark on."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.InstanceNorm2d(8, affine=True),
            nn.Dropout2d(0.3),
            nn.BatchNorm2d(8, momentum=None),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.BatchNorm1d(8, track_running_stats=False),
        )
        self.head = nn.Linear(8, CLASSES)
        self.head.bias.requires_grad_(False)

    def forward(self, input):
        return self.head(self.body(input))


MODELS = {
    'everything': Everything,
    'dropout and drop path': make_droppy_model,
    'residual': lambda: make_model(dtype=torch.float32),
    'transformer': lambda: make_model('test_vit', dtype=torch.float32, img_size=32),
}


def random_states():
    return torch.get_rng_state(), np.random.get_state()[1].tolist(), np.random.get_state()[2], random.getstate()


def state_of(model):
    """All that a pass might change, copied."""
    return {
        'values': {name: value.clone() for name, value in model.state_dict().items()},
        'identities': {name: id(value) for name, value in [*model.named_parameters(), *model.named_buffers()]},
        'modes': {name: part.training for name, part in model.named_modules()},
        'tracking': {name: getattr(part, 'track_running_stats', None) for name, part in model.named_modules()},
        'requires_grad': {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        'grad': {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        'random': random_states(),
        'grad_enabled': torch.is_grad_enabled(),
    }


@pytest.mark.parametrize('gradients', [False, True])
@pytest.mark.parametrize('name', MODELS)
def test_a_pass_changes_nothing_in_model_gradients_and_random_states(name, gradients):
    model = MODELS[name]().train()
    [(input, target)] = make_batches(1, dtype=torch.float32)
    if gradients:  # of an earlier micro-batch
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
    scorer = Scorer(make_task(model))
    before, batch = state_of(model), (input.clone(), target.clone())
    losses = scorer(input, target)
    assert_equal(state_of(model), before)
    assert_equal((input, target), batch)
    assert losses.shape == (4,) and not losses.requires_grad
    assert_equal(scorer(input, target), losses)


@pytest.mark.parametrize('name', MODELS)
def test_the_losses_are_those_of_the_training_pass_that_follows(name):
    """The same batch statistics, dropout and drop path."""
    model = MODELS[name]().train()
    task = make_task(model)
    [(input, target)] = make_batches(1, dtype=torch.float32)
    losses = Scorer(task)(input, target)
    result = task(input, target)
    assert_equal(F.cross_entropy(result['output'], target, reduction='none').detach(), losses)
    torch.testing.assert_close(result['loss'].detach(), losses.mean())
    random_layers = name in ('everything', 'dropout and drop path')
    assert torch.equal(task(input, target)['loss'], result['loss']) is not random_layers


def test_every_pass_sees_the_same_dropout_whatever_its_images():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop, self.head = nn.Dropout(0.5), nn.Linear(1, 1)

        def forward(self, input):
            seen.append(self.drop(torch.ones(5, 40)))
            return input.flatten(1)[:, :4]

    seen = []
    task = make_task(Masked())
    scorer = Scorer(task)
    for input, target in make_batches(3, dtype=torch.float32):
        scorer(input, target)
    task(input, target)
    task(input, target)
    assert_equal(seen[1:4], [seen[0]] * 3)
    assert not torch.equal(seen[4], seen[0])


def test_scores_use_the_statistics_of_the_batch():
    model = make_model(dtype=torch.float32)
    [(input, target)] = make_batches(1, dtype=torch.float32)
    by_hand = copy.deepcopy(model).train()
    expected = F.cross_entropy(by_hand(input), target, reduction='none').detach()
    assert_equal(Scorer(make_task(model))(input, target), expected)
    in_evaluation = F.cross_entropy(by_hand.eval()(input), target, reduction='none').detach()
    assert (in_evaluation - expected).abs().max() > 1e-3


class Fails(nn.Module):
    def forward(self, input):
        torch.rand(3)
        raise ArithmeticError('in the middle of a pass')


def test_a_pass_that_fails_leaves_the_model_as_it_was():
    model = nn.Sequential(Everything(), Fails()).train()
    model[0].body[1].eval()
    scorer = Scorer(make_task(model))
    model[0].body[1].eval()
    before = state_of(model)
    with pytest.raises(ArithmeticError):
        scorer(*make_batches(1, dtype=torch.float32)[0])
    assert_equal(state_of(model), before)


def test_layers_in_evaluation_mode_score_with_their_own_statistics():
    model = make_model(dtype=torch.float32)
    task = make_task(model)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    [(input, target)] = make_batches(1, dtype=torch.float32)
    before = state_of(model)
    losses = Scorer(task)(input, target)
    assert_equal(state_of(model), before)
    alone = torch.cat([Scorer(task)(input[row : row + 1], target[row : row + 1]) for row in range(4)])
    torch.testing.assert_close(losses, alone, rtol=1e-4, atol=1e-5)


def test_scores_are_computed_under_the_autocast_of_training():
    model = make_model(dtype=torch.float32)
    task = make_task(model)
    task.autocast = lambda: torch.autocast('cpu', torch.bfloat16)
    [(input, target)] = make_batches(1, dtype=torch.float32)
    assert Scorer(task).forward(input).dtype == torch.bfloat16
    losses = Scorer(task)(input, target)
    torch.testing.assert_close(task(input, target)['loss'].detach(), losses.mean())
    for parameter in model.parameters():
        assert parameter.grad is None
    task(input, target)['loss'].backward()  # no weight cast without gradient is left in a cache
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in model.parameters())


def test_networks_with_several_outputs_are_scored_by_the_first():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(3, CLASSES)

        def forward(self, input):
            output = self.head(input.mean(dim=(2, 3)))
            return output, output.flip(1)

    model = Two()
    [(input, target)] = make_batches(1, dtype=torch.float32)
    expected = F.cross_entropy(model(input)[0], target, reduction='none').detach()
    assert_equal(Scorer(make_task(model))(input, target), expected)


# --- the check before training ------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Counts its calls in training mode, as running statistics of other kinds do."""

    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, input):
        self.calls += self.training
        return input


@pytest.mark.parametrize(
    ('layer', 'buffer'),
    [
        (Counting, 'calls'),
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), 'running_mean'),  # updates it whatever it is told
    ],
)
def test_a_buffer_that_a_pass_changes_is_named(layer, buffer):
    model = nn.Sequential(layer(), Everything())
    with pytest.raises(ValueError, match=rf"the buffer '0\.{buffer}' of Sequential"):
        Scorer(make_task(model)).check(torch.ones(2, 3, 32, 32))


@pytest.mark.parametrize('name', MODELS)
def test_the_check_passes_and_leaves_no_trace_itself(name):
    model = MODELS[name]().train()
    scorer = Scorer(make_task(model))
    before = state_of(model)
    assert scorer.check(torch.zeros(2, 3, 32, 32)) is None
    assert_equal(state_of(model), before)


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
