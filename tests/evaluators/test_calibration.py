"""Negative log-likelihood and calibration error."""

import pytest
import torch
from torch.nn import functional

from regaug.evaluators.calibration import Calibration

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none
CPU = torch.device('cpu')


def bin_by_bin(output, target):
    """The calibration error by its definition: bin after bin, image after image."""
    confidence, predicted = output.double().softmax(1).max(1)
    error = 0.0
    for index in range(15):
        members = [i for i, value in enumerate(confidence.tolist()) if index / 15 < value <= (index + 1) / 15]
        if members:
            accuracy = sum(int(predicted[i] == target[i]) for i in members) / len(members)
            error += len(members) / len(target) * abs(accuracy - sum(confidence[members].tolist()) / len(members))
    return 100 * error


def judged(output, target, batch_size=32):
    judge = Calibration(CPU)
    for rows, labels in zip(output.split(batch_size), target.split(batch_size), strict=True):
        judge.update(rows, labels)
    return judge.compute()


@pytest.mark.parametrize('scale', [0.1, 1.0, 8.0])
def test_error_equals_its_definition(scale):
    output = scale * torch.randn(200, 7)
    target = torch.randint(7, (200,))
    metrics = judged(output, target)
    assert metrics['ece'] == pytest.approx(bin_by_bin(output, target), abs=1e-4)
    assert metrics['nll'] == pytest.approx(float(functional.cross_entropy(output.double(), target)), rel=1e-6)


def test_published_example_of_over_confidence():
    """Sure of class 0 with probability 0.95 while right in 6 of 10 cases: the error is 35 %."""
    output = torch.tensor([[0.95, 0.05]]).log().expand(10, 2)
    target = torch.tensor([0] * 6 + [1] * 4)
    assert judged(output, target)['ece'] == pytest.approx(35.0, abs=1e-4)


def test_a_certain_network_that_is_right_has_no_error():
    target = torch.arange(5)
    metrics = judged(1000 * functional.one_hot(target).float(), target)
    assert metrics == {'nll': 0.0, 'ece': 0.0}


def test_columns_of_validate(run, model, images, checkpoint):
    with torch.no_grad():
        output = model(images[0])
    rows = run('--checkpoint', checkpoint, '--ece', '--width', 1.0, 0.5)
    assert [list(row)[5:7] for row in rows] == [['nll', 'ece']] * 2
    assert rows[0]['nll'] == pytest.approx(float(functional.cross_entropy(output, images[1])), abs=1e-3)
    assert rows[0]['ece'] == pytest.approx(bin_by_bin(output, images[1]), abs=1e-3)
    assert rows[1]['nll'] != rows[0]['nll']
    plain = run('--checkpoint', checkpoint)
    assert {name: rows[0][name] for name in plain} == plain
