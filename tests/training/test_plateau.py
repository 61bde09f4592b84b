"""A schedule that waits for the metric: it is told the metric of each epoch, and which way is better."""

import pytest

from regaug.training.engine import Engine
from tests.helpers.training import read_summary

pytestmark = pytest.mark.filterwarnings('ignore:PlateauLRScheduler is deprecated:FutureWarning')
PLATEAU = ('--sched', 'plateau', '--patience-epochs', 1, '--decay-rate', 0.1, '--epochs', 4, '--labels-per-class', 4)


@pytest.mark.parametrize(('metric', 'better'), [('top1', 1), ('loss', -1)])
@pytest.mark.parametrize('improves', [True, False])
def test_the_learning_rate_falls_where_the_metric_gets_no_better(train, monkeypatch, metric, better, improves):
    values = iter(range(50, 90, 10) if (better > 0) == improves else range(50, 10, -10))

    def evaluate(self, loader, model, **kwargs):
        return {'loss': 1.0, 'top1': 10.0, 'top5': 100.0, metric: float(next(values))}

    monkeypatch.setattr(Engine, 'evaluate', evaluate)
    rates = [float(row['lr']) for row in read_summary(train(*PLATEAU, '--eval-metric', metric))]
    assert rates == pytest.approx([0.05, 0.05, 0.05, 0.05 if improves else 0.005])


@pytest.mark.parametrize('warmup', [(), ('--warmup-epochs', 1, '--warmup-lr', 1e-5)])
def test_a_resumed_run_goes_on_with_the_rate_that_it_had(train, monkeypatch, warmup):
    monkeypatch.setattr(Engine, 'evaluate', lambda self, loader, model, **kwargs: {'loss': 1.0, 'top1': 10.0})
    folder = train(*PLATEAU, *warmup, '--epochs', 5)  # the metric never gets better
    train(*PLATEAU, *warmup, '--epochs', 7, '--resume', 'auto')
    rates = [float(row['lr']) for row in read_summary(folder)]
    assert rates[3:] == pytest.approx([0.05 if warmup else 0.005] + [0.005] * 3)  # its patience begins anew, as in timm
    afresh = ('--resume', folder / 'last.pth.tar', '--no-resume-opt', '--epochs', 8)
    fresh = train(*PLATEAU, *warmup, *afresh, experiment='afresh')
    assert [float(row['lr']) for row in read_summary(fresh)] == pytest.approx([0.05])


def test_noise_on_a_resumed_rate_is_noise_on_that_rate(train, monkeypatch):
    monkeypatch.setattr(Engine, 'evaluate', lambda self, loader, model, **kwargs: {'loss': 1.0, 'top1': 10.0})
    options = (*PLATEAU, '--warmup-epochs', 1, '--warmup-lr', 1e-5, '--lr-noise', 0.1, 0.9, '--patience-epochs', 9)
    folder = train(*options, '--epochs', 3)
    train(*options, '--epochs', 6, '--resume', 'auto')
    rates = [float(row['lr']) for row in read_summary(folder)]
    assert all(0.05 / 3 < rate < 0.1 for rate in rates[1:]), rates
