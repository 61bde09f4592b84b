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
