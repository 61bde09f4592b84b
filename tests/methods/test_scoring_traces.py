"""Scoring passes leave no trace, and what would leave one is found before training."""

import copy
import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from regaug.errors import OptionError
from regaug.methods.scoring import Scorer
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    make_batches,
    make_droppy_model,
    make_model,
    make_task,
    set_selector,
)


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
        (lambda: nn.InstanceNorm2d(3, track_running_stats=True), 'running_var'),  # updates it whatever it is told
    ],
)
def test_a_buffer_that_a_pass_changes_is_named(layer, buffer):
    model = nn.Sequential(layer(), Everything())
    with pytest.raises(OptionError, match=rf"^--maxup 3: .* the buffer '0\.{buffer}' of Sequential"):
        Scorer(make_task(model)).check((3, 32, 32), '--maxup 3')


@pytest.mark.parametrize('name', MODELS)
def test_the_check_passes_and_leaves_no_trace_itself(name):
    model = MODELS[name]().train()
    scorer = Scorer(make_task(model))
    before = state_of(model)
    assert scorer.check((3, 32, 32), '--maxup 3') is None
    assert_equal(state_of(model), before)


class Casts(TorchDispatchMode):
    """Counts casts of parameters."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name == 'aten::_to_copy' and isinstance(args[0], nn.Parameter):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_the_passes_of_a_choice_cast_every_weight_once_and_score_as_single_passes_do():
    autocast = partial(torch.autocast, 'cpu', torch.bfloat16)
    task = make_task(make_model(dtype=torch.float32), autocast=autocast)
    batches = make_batches(3, dtype=torch.float32)
    scorer = Scorer(task)
    alone = [scorer(*batch) for batch in batches]

    def count(number):
        scores = []

        def selector(input, target, key):
            scores.extend(scorer(*batch) for batch in batches[:number])
            return input, target, {}

        set_selector(task, selector)
        with Casts() as casts:
            task.active[-1].select(*batches[0], SimpleNamespace(key=(0, 0, 0)))
        assert all(map(torch.equal, scores, alone))
        return casts.count

    weights = sum(isinstance(part, (nn.Conv2d, nn.Linear)) for part in task.full_network.modules())
    assert count(1) == count(3) >= weights
