"""Weights and gradients that are not finite: counted, never saved, never taken up."""

import pytest
import torch
from torch import nn

import validate
from regaug.errors import OptionError
from regaug.training.interrupt import Diverged
from regaug.training.resume import find_newest
from tests.helpers.checkpoints import create_saver
from tests.helpers.training import make_batches, make_engine, make_model, make_task, read_checkpoint


class Poison(torch.autograd.Function):
    """The loss as it is, with a gradient that is not a number."""

    @staticmethod
    def forward(ctx, loss):
        return loss.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class Idle(torch.optim.SGD):
    """Changes no weight, so that a bad gradient shows in nothing but itself."""

    def step(self, closure=None):
        pass


@pytest.mark.parametrize('clip', [[], ['--clip-grad', 1.0]])
def test_an_update_whose_gradient_is_not_finite_is_bad_though_its_loss_is_finite(clip):
    calls = iter(range(100))

    def criterion(output, target):
        loss = nn.functional.cross_entropy(output, target)
        return Poison.apply(loss) if next(calls) in (2, 5, 6) else loss

    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    engine = make_engine(make_task(model, criterion), Idle(model.parameters()), '--max-bad-updates', 2, *clip)
    batches = make_batches(8, side=8, dtype=torch.float32)
    engine.train_one_epoch(0, batches[:3])
    assert engine.bad_updates == 1
    with pytest.raises(Diverged, match='gradient was not finite in 2 updates'):
        engine.train_one_epoch(0, batches)
    assert next(calls) == 7


@pytest.mark.parametrize('value', [torch.nan, torch.inf])
def test_no_checkpoint_is_written_of_weights_that_are_not_finite(value, tmp_path, caplog):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    saver = create_saver(model, tmp_path)
    saver.save_checkpoint(0, 1.0)
    names = {path.name for path in tmp_path.iterdir()}
    for poison in (model[0].weight.data, model[1].running_var):
        kept = poison.clone()
        poison.view(-1)[0] = value
        assert saver.save_checkpoint(1, 2.0) is None
        assert saver.save_recovery(1, 5) is None
        poison.copy_(kept)
    assert {path.name for path in tmp_path.iterdir()} == names
    assert read_checkpoint(tmp_path / 'last.pth.tar')['epoch'] == 0
    assert 'No checkpoint is written of epoch 1: 0.weight is not finite' in caplog.text
    assert saver.save_checkpoint(1, 2.0) == (2.0, 1)


def test_masks_of_minus_infinity_are_no_divergence(tmp_path):
    model = nn.Linear(3, 2)
    model.register_buffer('mask', torch.full((2,), -torch.inf))
    assert create_saver(model, tmp_path).save_checkpoint(0, 1.0) == (1.0, 0)


@pytest.mark.parametrize('epochs_before', [0, 1])
def test_the_message_names_the_last_good_checkpoint_or_says_that_there_is_none(epochs_before, train):
    if epochs_before:
        train('--epochs', 1)
    bad = ['--lr', 1e30, '--max-bad-updates', 2, '--epochs', 2, '--no-resume-opt', '--resume', 'auto']
    expected = (
        r'The last good checkpoint is .*/run/last\.pth\.tar\.' if epochs_before else r'There is no good checkpoint\.'
    )
    with pytest.raises(OptionError, match=f'^Epoch {epochs_before}: .*--max-bad-updates 2.*{expected}'):
        train(*bad)


def test_weights_that_are_not_finite_are_refused_wherever_they_are_read(train, tmp_path, image_folder):
    folder = train('--epochs', 1)
    state = read_checkpoint(folder / 'last.pth.tar')
    state['state_dict']['fc.weight'][1, 2] = torch.nan
    bad = tmp_path / 'bad.pth.tar'
    torch.save(state, bad)
    for option in ('--resume', '--initial-checkpoint'):
        with pytest.raises(OptionError, match=rf'^{option} {bad}: fc.weight holds numbers that are not finite'):
            train(option, bad, experiment='other')
    command = (
        f'{image_folder} --split val --model test_resnet --num-classes 4 --device cpu --workers 0 --checkpoint {bad}'
    )
    with pytest.raises(OptionError, match=rf'^--checkpoint {bad}: fc.weight holds numbers that are not finite'):
        validate.main(command.split())


def test_no_checkpoint_is_written_of_a_moving_average_that_is_not_finite(tmp_path, caplog):
    task = make_task(make_model(dtype=torch.float32))
    task.setup_ema(decay=0.9)
    saver = create_saver(task.full_network, tmp_path)
    saver.task = task
    weight = next(task.get_eval_model(ema=True).parameters()).data.view(-1)
    kept, weight[0] = weight[0].clone(), torch.nan
    assert saver.save_checkpoint(0, 1.0) is None
    assert saver.save_recovery(0, 3) is None
    assert 'is not finite' in caplog.text and not list(tmp_path.iterdir())
    weight[0] = kept
    assert saver.save_checkpoint(0, 1.0) == (1.0, 0)


def test_a_checkpoint_whose_moving_average_is_not_finite_is_passed_over(tmp_path, caplog):
    for epoch, value in enumerate((0.0, torch.nan)):
        state = {'epoch': epoch, 'version': 2, 'state_dict': {'weight': torch.zeros(2)}}
        state['state_dict_ema'] = {'weight': torch.full((2,), value)}
        torch.save(state, tmp_path / f'checkpoint-{epoch}.pth.tar')
    assert find_newest(tmp_path, finished_only=False) == str(tmp_path / 'checkpoint-0.pth.tar')
    assert 'weight holds numbers that are not finite' in caplog.text


def test_the_log_of_a_run_that_diverges_is_finished(train, monkeypatch):
    finished = []

    class Log:
        """Stands where `wandb_log.WandbLog` stands."""

        def __init__(self, *args, **kwargs):
            self.on_update = self.on_picture = self.on_epoch = lambda *args: None

        def finish(self):
            finished.append(True)

    monkeypatch.setattr('regaug.training.run.WandbLog', Log)
    with pytest.raises(OptionError, match='gradient was not finite'):
        train('--lr', 1e30, '--max-bad-updates', 2, '--log-wandb')
    assert finished == [True]
