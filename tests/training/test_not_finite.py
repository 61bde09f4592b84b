"""Weights and gradients that are not finite: counted, never saved, never taken up."""

import pytest
import torch
from torch import nn

import validate
from regaug.errors import OptionError
from regaug.training.interrupt import Diverged
from tests.helpers.checkpoints import create_saver
from tests.helpers.training import make_batches, make_engine, make_task, read_checkpoint


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
