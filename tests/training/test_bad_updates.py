"""Losses that are not finite: which updates are bad, when the run stops, and which checkpoints it leaves."""

import copy
import math

import pytest
import torch
from timm.utils import AverageMeter
from torch import nn

from regaug.device import LossScaler
from regaug.errors import OptionError
from regaug.training.averages import note_losses
from regaug.training.interrupt import Diverged
from tests.helpers.training import assert_equal, make_batches, make_engine, make_task, read_checkpoint


class Nan:
    """A loss that is not a number at given calls; its gradients are sound, so that training can go on."""

    def __init__(self, *bad):
        self.bad, self.calls = bad, -1

    def __call__(self, output, target):
        self.calls += 1
        loss = nn.functional.cross_entropy(output, target)
        return loss + math.nan if self.calls in self.bad else loss


def run_with_bad_losses(bad, options=(), batches=8, **kwargs):
    """Run an epoch whose loss is bad at the given batches; returns the engine, whose report has the updates run."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    task = make_task(model, Nan(*bad))
    engine = make_engine(task, torch.optim.SGD(model.parameters(), lr=0.0), '--log-interval', 1, *options, **kwargs)
    engine.train_one_epoch(0, make_batches(batches, side=8, dtype=torch.float32))
    return engine


def test_bad_losses_in_a_row_stop_the_run_and_scattered_ones_do_not():
    with pytest.raises(Diverged, match=r'nan.* 3 updates in a row.*--max-bad-updates 3'):
        run_with_bad_losses([3, 4, 5], ['--max-bad-updates', 3])
    engine = run_with_bad_losses([0, 1, 3, 4, 6, 7], ['--max-bad-updates', 3])
    assert engine.bad_updates == 2  # at the end, as train.py must know before it saves
    assert len(engine.report.records) == 8


def test_max_bad_updates_0_goes_on_for_ever():
    engine = run_with_bad_losses(range(40), ['--max-bad-updates', 0], batches=40)
    assert len(engine.report.records) == 40


def test_one_bad_micro_batch_makes_its_update_bad_and_no_other():
    with pytest.raises(Diverged, match='in 2 updates'):
        run_with_bad_losses([1, 2], ['--max-bad-updates', 2, '--grad-accum-steps', 2])
    engine = run_with_bad_losses([2, 3], ['--max-bad-updates', 2, '--grad-accum-steps', 2])
    assert engine.bad_updates == 0


def test_no_recovery_checkpoint_is_written_after_a_bad_update():
    saved = []
    options = ['--recovery-interval', 2]
    run_with_bad_losses([3, 6], options, save_recovery=lambda epoch, update_idx: saved.append(update_idx))
    assert saved == [1, 5, 7]


@pytest.mark.parametrize('measured', [False, True])
def test_updates_that_the_loss_scaler_skips_are_not_bad(measured):
    scaler = LossScaler(device='cpu')
    scaler._scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127, growth_interval=1000)  # the gradients overflow
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    start = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = ('--max-bad-updates', 2, '--log-interval', 1)
    engine = make_engine(make_task(model), optimizer, *options, loss_scaler=scaler)
    engine.report.wants_grad_norm = measured  # as for W&B
    batches = [(100 * input, target) for input, target in make_batches(6, side=8, dtype=torch.float32)]
    losses = engine.train_one_epoch(0, batches[:3])
    assert_equal(model.state_dict(), start)  # skipped, each time
    assert scaler.state_dict()['scale'] == 2.0**124
    assert math.isfinite(losses['loss'])
    assert engine.bad_updates == 0


def test_a_norm_that_is_measured_under_the_loss_scaler_does_not_count():
    losses = AverageMeter()
    pending = [(torch.tensor(1.0), 1, 4)]
    norm = torch.tensor(math.inf)
    assert note_losses(losses, pending, norm, may_overflow=True) == (math.inf, True)
    assert note_losses(losses, pending, norm) == (math.inf, False)
    pending = [(torch.tensor(math.nan), 1, 4)]
    assert note_losses(losses, pending, torch.tensor(1.0), may_overflow=True) == (1.0, False)


def test_gradients_that_are_never_finite_end_a_run_under_the_loss_scaler_too():
    class Broken(nn.Linear):
        def forward(self, input):
            output = super().forward(input)
            output.register_hook(lambda gradient: gradient * math.nan)
            return output

    scaler = LossScaler(device='cpu')
    scaler._scaler = torch.amp.GradScaler('cpu', init_scale=2.0**-18)  # 34 updates later
    model = nn.Sequential(nn.Flatten(), Broken(3 * 8 * 8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = make_engine(make_task(model), optimizer, '--max-bad-updates', 3, '--log-interval', 1, loss_scaler=scaler)
    with pytest.raises(Diverged, match='in 3 updates'):
        engine.train_one_epoch(0, make_batches(8, side=8, dtype=torch.float32))
    assert len(engine.report.records) == 5  # a scale of 2**-21 is the first that says nothing


def test_divergence_ends_a_run_with_the_last_good_checkpoint_kept(train, tmp_path):
    options = ['--sched', 'step', '--decay-epochs', 1, '--decay-rate', 1e30, '--epochs', 3, '--max-bad-updates', 2]
    with pytest.raises(OptionError, match=r'Epoch 1: .*--max-bad-updates 2.*/run/last\.pth\.tar\.$'):
        train(*options)
    folder = tmp_path / 'run'
    assert sorted(path.name for path in folder.glob('*.tar')) == [
        'checkpoint-0.pth.tar',
        'last.pth.tar',
        'model_best.pth.tar',
    ]
    state = read_checkpoint(folder / 'last.pth.tar')
    assert state['epoch'] == 0
    assert all(value.isfinite().all() for value in state['state_dict'].values())


def test_an_epoch_that_ends_badly_writes_no_checkpoint(train):
    options = ['--sched', 'step', '--decay-epochs', 1, '--decay-rate', 1e30, '--max-bad-updates', 0]
    folder = train(*options)
    assert [path.name for path in folder.glob('checkpoint-*')] == ['checkpoint-0.pth.tar']
    assert read_checkpoint(folder / 'last.pth.tar')['epoch'] == 0
