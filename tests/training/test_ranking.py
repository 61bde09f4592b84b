"""The ranking of checkpoints: what is no number, what an older run left, what is measured otherwise."""

import math

import pytest
import torch

from tests.helpers.checkpoints import create_saver
from tests.helpers.training import make_model, read_checkpoint


@pytest.mark.parametrize('first', [[], [1.0]])
def test_a_metric_that_is_no_number_is_never_the_best(tmp_path, first):
    saver = create_saver(make_model(dtype=torch.float32), tmp_path / 'run')
    for epoch, metric in enumerate([*first, math.nan, 2.0, math.nan, 3.0]):
        saver.save_checkpoint(epoch, metric)
    assert (saver.best_metric, saver.best_epoch) == (3.0, 3 + len(first))
    best = read_checkpoint(tmp_path / 'run' / 'model_best.pth.tar')
    assert best['epoch'] == 3 + len(first)


def test_the_history_of_a_run_of_an_older_timm_is_read_from_its_files(tmp_path):
    model = make_model(dtype=torch.float32)
    old = create_saver(model, tmp_path)
    for epoch, metric in enumerate((25.0, 50.0, 40.0)):
        old.save_checkpoint(epoch, metric)
    for path in tmp_path.glob('*.pth.tar'):
        checkpoint = read_checkpoint(path)
        del checkpoint['saver']
        path.unlink()
        torch.save(checkpoint, path)
    saver = create_saver(model, tmp_path)
    saver.restore(tmp_path / 'last.pth.tar')
    assert (saver.best_metric, saver.best_epoch) == (50.0, 1)
    saver.save_checkpoint(3, 45.0)
    assert read_checkpoint(tmp_path / 'model_best.pth.tar')['epoch'] == 1
    assert sorted(path.name for path in tmp_path.glob('checkpoint-*')) == [
        'checkpoint-1.pth.tar',
        'checkpoint-3.pth.tar',
    ]


@pytest.mark.parametrize(('name', 'value'), [('eval_metric', 'loss'), ('model_ema', True)])
def test_epochs_that_are_measured_otherwise_are_ranked_anew(tmp_path, caplog, name, value):
    model = make_model(dtype=torch.float32)
    create_saver(model, tmp_path).save_checkpoint(0, 90.0)
    saver = create_saver(model, tmp_path)
    setattr(saver.args, name, value)
    saver.restore(tmp_path / 'last.pth.tar')
    assert saver.best_metric is None
    assert any(name in record.message and 'ranked anew' in record.message for record in caplog.records)
    saver.save_checkpoint(1, 2.0)
    assert read_checkpoint(tmp_path / 'model_best.pth.tar')['epoch'] == 1
