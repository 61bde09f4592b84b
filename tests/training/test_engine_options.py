"""Options that the loop itself reads: how often it logs, how it weighs batches, how it evaluates and waits."""

from types import SimpleNamespace

import pytest
import torch
from timm.utils import AverageMeter
from torch import nn

from regaug.device import LossScaler
from regaug.training import averages, engine
from regaug.training.averages import note_losses
from regaug.training.interrupt import StopRequest
from tests.helpers.training import (
    CLASSES,
    CPU,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_task,
)


def linear_model():
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))


def batches_of(sizes):
    return [make_batches(1, size, side=8, dtype=torch.float32, seed=size)[0] for size in sizes]


def epoch_gradients(*options, batches, model=None):
    """The gradients that the optimiser gets in an epoch, and the engine."""
    model = model or linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    engine = make_engine(make_task(model), optimizer, *options)
    engine.train_one_epoch(0, batches)
    return seen, engine


@pytest.mark.parametrize(('interval', 'expected'), [(1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (3, [0, 3, 4]), (50, [0, 4])])
def test_every_so_many_updates_and_the_last_one_are_logged(interval, expected):
    _, engine = epoch_gradients('--log-interval', interval, batches=batches_of([4] * 5))
    assert [record.update_idx for record in engine.report.records] == expected


@pytest.mark.parametrize('wanted', [True, False])
@pytest.mark.parametrize('scaler', [None, LossScaler(device='cpu')], ids=['plain', 'scaled'])
def test_the_norm_of_the_gradients_is_reported_on_demand(scaler, wanted):
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    engine = make_engine(make_task(model), optimizer, '--log-interval', 2, loss_scaler=scaler)
    engine.report.wants_grad_norm = wanted
    engine.train_one_epoch(0, batches_of([4] * 3))
    norms = [torch.cat([gradient.flatten() for gradient in seen[update].values()]).norm().item() for update in (0, 2)]
    found = [record.grad_norm for record in engine.report.records]
    assert found == (pytest.approx(norms, rel=1e-5) if wanted else [None, None])


class SizedLoader(list):
    """Batches of scheduled sizes, of which timm's loader knows the average."""

    batch_sampler = SimpleNamespace(average_batch_size=4.0)


@pytest.mark.parametrize(
    ('mode', 'factors'), [('none', [1, 1, 1]), ('sqrt', [0.5**0.5, 1, 2**0.5]), ('linear', [0.5, 1, 2])]
)
def test_gradients_of_scheduled_batches_are_weighed_by_their_size(mode, factors):
    sizes = ('--train-img-sizes', 8, 16, '--variable-batch-loss-scale', mode)
    plain, _ = epoch_gradients(batches=batches_of([2, 4, 8]))
    scaled, _ = epoch_gradients(*sizes, batches=SizedLoader(batches_of([2, 4, 8])))
    for factor, one, other in zip(factors, plain, scaled, strict=True):
        for name in one:
            torch.testing.assert_close(other[name], factor * one[name])


@pytest.mark.parametrize(('mode', 'factor'), [('none', 1), ('sqrt', 0.5**0.5), ('linear', 0.5)])
def test_gradients_of_naflex_batches_are_weighed_by_their_size(mode, factor):
    class Patches(nn.Module):
        """Takes the dict of tensors that the NaFlex loader delivers."""

        def __init__(self):
            super().__init__()
            self.model = linear_model()

        def forward(self, input):
            return self.model(input['patches'])

    batches = [({'patches': input}, target) for input, target in batches_of([4])]
    options = ('--model', 'naflexvit_base_patch16_gap', '--naflex-loader', '--batch-size', 8)
    plain, _ = epoch_gradients(batches=batches, model=Patches())
    scaled, _ = epoch_gradients(*options, '--naflex-loss-scale', mode, batches=batches, model=Patches())
    for name in plain[0]:
        torch.testing.assert_close(scaled[0][name], factor * plain[0][name])


class EvaluationLoader(list):
    dataset = range(8)  # a map-style data set
    sampler = batch_sampler = None


@pytest.mark.parametrize('tta', [0, 2, 4])
def test_neighbours_of_a_batch_are_averaged_under_tta(tta):
    """timm's `--tta N`: the loader repeats each image N times, differently augmented."""
    model = linear_model()
    [(input, target)] = batches_of([8])
    target = target.repeat_interleave(tta)[:8] if tta else target
    engine = make_engine(make_task(model), torch.optim.SGD(model.parameters(), lr=0.0), '--tta', tta)
    metrics = engine.evaluate(EvaluationLoader([(input, target)]), model)
    output = model(input).detach()
    if tta:
        output, target = torch.stack([part.mean(dim=0) for part in output.split(tta)]), target[::tta]
    assert metrics['loss'] == pytest.approx(nn.functional.cross_entropy(output, target).item(), rel=1e-6)
    assert metrics['top1'] == pytest.approx(100 * (output.argmax(1) == target).float().mean().item())


@pytest.mark.parametrize(('options', 'waits'), [((), 0), (('--synchronize-step',), 5)])
def test_the_device_is_waited_for_after_each_update_on_demand(options, waits, monkeypatch):
    model, waited = linear_model(), []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda *_: waited.append(True))
    engine = make_engine(make_task(model), torch.optim.SGD(model.parameters(), lr=0.0), *options)
    engine.device = SimpleNamespace(type='cuda')
    engine.train_one_epoch(0, batches_of([4] * 5))
    assert len(waited) == waits


def test_images_are_counted_over_all_ranks(monkeypatch):
    for module in (averages, engine):
        monkeypatch.setattr(module, 'reduce_tensor', lambda tensor, world_size: tensor)
    model = linear_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    options = ('--log-interval', 1, '--grad-accum-steps', 2)
    trained = make_engine(make_task(model), optimizer, *options, world_size=3, stop=StopRequest(device=CPU))
    trained.train_one_epoch(0, batches_of([4, 4, 4, 2]))
    counts = [(record.samples, record.epoch_samples) for record in trained.report.records]
    assert counts == [(3 * 8, 3 * 8), (3 * 6, 3 * 14)]


def test_losses_are_not_rounded_to_the_number_format_of_the_norm():
    losses, loss = AverageMeter(), torch.tensor(1.2345678)
    norm, finite = note_losses(losses, [(loss, 2, 4)], torch.tensor(3.0, dtype=torch.bfloat16))
    assert (losses.val, norm, finite) == (2 * loss.item(), 3.0, True)
