"""`--freeze-bn`: statistics and parameters of batch-norm stay, everything else trains."""

import logging

import pytest
import torch
from timm import create_model
from torch import nn

from tests.helpers.training import (
    CLASSES,
    assert_equal,
    follow_log,
    make_model,
    read_checkpoint,
    read_summary,
)


def batch_norm_entries(model):
    """Names of all parameters and buffers of batch-norm layers in a state dict."""
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    return {name for name in model.state_dict() if name.rpartition('.')[0] in layers}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """Weights of a network whose batch-norm layers all have statistics and parameters of their own."""
    torch.manual_seed(8)
    model = make_model('test_efficientnet', dtype=torch.float32)
    for _ in range(5):
        model(torch.randn(8, 3, 32, 32))
    path = tmp_path_factory.mktemp('finished') / 'weights.pth'
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.parametrize(
    'options',
    [
        ['--maxup', 3],
        ['--maxup', 3, '--channels-last', '--grad-accum-steps', 2],
        pytest.param(['--maxup', 3, '--torchcompile', 'eager'], marks=pytest.mark.slow),
        ['--opt', 'adamw', '--weight-decay', 0.1, '--model-ema', '--model-ema-decay', 0.5],
        ['--maxup', 2, '--gradaug', 2, '--refine-epochs', 1],
        ['--sched', 'none', '--clip-grad', 1.0, '--no-prefetcher'],
    ],
)
@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor that is not a leaf')  # dynamo asks for it
@pytest.mark.few(1)
def test_frozen_batch_norm_stays_and_everything_else_trains(options, train, finished, caplog):
    log = follow_log(caplog)
    tuning = ['--model', 'test_efficientnet', '--initial-checkpoint', finished, '--freeze-bn', '--lr', 0.01]
    folder = train(*tuning, *options)
    start = torch.load(finished, weights_only=True)
    model = create_model('test_efficientnet', num_classes=CLASSES)
    frozen, last = batch_norm_entries(model), folder / 'last.pth.tar'
    assert f'{len(frozen) // 5} batch-norm layers are frozen' in log.text
    saved = read_checkpoint(last)
    assert list(saved['state_dict']) == list(model.state_dict())
    for key in [key for key in ('state_dict', 'state_dict_ema') if key in saved]:
        for name, value in saved[key].items():
            assert torch.equal(value, start[name]) == (name in frozen), name
    loaded = create_model('test_efficientnet', num_classes=CLASSES, checkpoint_path=str(last))  # strictly
    assert_equal(dict(loaded.state_dict()), dict(saved.get('state_dict_ema', saved['state_dict'])))
    if '--maxup' in options:
        assert float(read_summary(folder)[0]['train_maxup_passes']) == float(options[1])  # fine-tuning: no warm-up


def test_without_the_option_batch_norm_trains(train, finished):
    folder = train('--model', 'test_efficientnet', '--initial-checkpoint', finished, '--lr', 0.01, '--maxup', 3)
    start, saved = torch.load(finished, weights_only=True), read_checkpoint(folder / 'last.pth.tar')['state_dict']
    unchanged = [name for name, value in saved.items() if torch.equal(value, start[name])]
    assert [name for name in unchanged if not name.endswith('bias')] == []  # which a later layer may take away


@pytest.mark.few(1)
@pytest.mark.parametrize('options', [[], ['--maxup', 2, '--maxup-warmup-epochs', 0]])
def test_freezing_what_a_model_does_not_have_is_warned_about(options, train, caplog):
    log = follow_log(caplog)
    model = ['--model', 'test_vit', '--model-kwargs', 'img_size=32']
    frozen = train(*model, '--freeze-bn', '--epochs', 1, *options, experiment='frozen')
    [warning] = [record for record in log.records if '--freeze-bn' in record.message]
    assert warning.levelno == logging.WARNING
    assert '--freeze-bn has no effect: --model test_vit has no batch-norm' in warning.message
    free = train(*model, '--epochs', 1, *options, experiment='free')
    states = [read_checkpoint(run / 'last.pth.tar')['state_dict'] for run in (frozen, free)]
    assert_equal(*states)
