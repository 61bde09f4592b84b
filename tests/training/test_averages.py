"""Averages of loss terms over samples and ranks."""

import math

import pytest
import torch
from torch import nn

from regaug.training import averages
from regaug.training.averages import FULL, TermAverages
from regaug.training.task import RegAugTask
from tests.helpers.training import make_engine


def test_averages_weigh_every_sample_alike_and_have_flat_names():
    class Counting(RegAugTask):
        """Terms whose metrics are known: the sum of the labels, and constants."""

        def loss_terms(self, input, target):
            def zero():
                return 0.0 * self.trainable_module(input).sum()

            return [
                (FULL, lambda: {'loss': zero() + target.float().mean(), 'output': input, 'share': 0.25}),
                ('sub1', lambda: {'loss': zero() + len(target), 'output': input, 'width': target.float().max()}),
            ]

    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 1))
    labels = [torch.tensor([1, 2, 3]), torch.tensor([5]), torch.tensor([0, 8])]
    batches = [(torch.zeros(len(target), 3, 1, 1), target) for target in labels]
    task = Counting(model, nn.CrossEntropyLoss(), verbose=False)
    engine = make_engine(task, torch.optim.SGD(model.parameters(), lr=0.0), '--grad-accum-steps', 2)
    metrics = engine.train_one_epoch(0, batches)
    assert list(metrics) == ['loss', 'share', 'sub1_loss', 'sub1_width']
    assert metrics['loss'] == pytest.approx((1 + 2 + 3 + 5 + 0 + 8) / 6)
    assert metrics['share'] == 0.25
    assert metrics['sub1_loss'] == pytest.approx((3 * 3 + 1 * 1 + 2 * 2) / 6)
    assert metrics['sub1_width'] == pytest.approx((3 * 3 + 1 * 5 + 2 * 8) / 6)


def test_ranks_average_plain_numbers_on_the_device_where_they_meet(monkeypatch):
    """A process group of GPUs takes no tensor of the CPU."""
    devices = []

    def reduce(values, world_size):
        devices.append(values.device.type)
        return torch.zeros(len(values))

    monkeypatch.setattr(averages, 'reduce_tensor', reduce)
    terms = averages.TermAverages()
    terms.update('full', {'uada_passes': 0.0}, 4)
    assert terms.compute(world_size=2, device=torch.device('meta')) == {'uada_passes': 0.0}
    assert devices == ['meta']


def test_averages_keep_no_graph_of_what_they_average():
    weight, averages = torch.ones(3, requires_grad=True), TermAverages()
    for _ in range(2):
        loss = weight.exp().sum()
        averages.update('sub1', {'loss': loss, 'output': weight}, 4)
        loss.backward()
    assert not any(value.requires_grad for value in (*averages.sums.values(), *averages.last.values()))
    assert averages.compute()['sub1_loss'] == pytest.approx(3 * math.e)
