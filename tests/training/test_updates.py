"""From losses to weights: scaling in float16, clipping, norms, second order, the learning rate of timm's rule."""

import copy
from types import SimpleNamespace

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from regaug.device import LossScaler, Precision
from regaug.training.model import resolve_learning_rate
from regaug.training.updates import Updater
from tests.helpers.training import (
    CPU,
    assert_equal,
    gradients,
    make_batches,
    make_engine,
    make_model,
    make_task,
    train_args,
)

SCALE = 2.0**16


def make_updater(model, optimizer=None, **kwargs):
    return Updater(optimizer or torch.optim.SGD(model.parameters(), lr=0.1), make_task(model), **kwargs)


# --- float16 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('device', 'dtype', 'scales'),
    [('cuda', 'float16', True), ('cuda', 'bfloat16', False), ('cpu', 'float16', False), ('cpu', 'bfloat16', False)],
)
@pytest.mark.filterwarnings('ignore:.*GradScaler is enabled, but CUDA is not available')
def test_losses_are_scaled_in_float16_on_cuda_alone(device, dtype, scales):
    precision = Precision(train_args('--amp', '--amp-dtype', dtype), torch.device(device))
    assert isinstance(precision.loss_scaler, LossScaler) is scales
    assert precision.model_dtype is None and precision.input_dtype == torch.float32


def test_autocast_has_the_dtype_of_the_option():
    for dtype in ('float16', 'bfloat16'):
        with Precision(train_args('--amp', '--amp-dtype', dtype), CPU).autocast():
            assert torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == getattr(torch, dtype)
    with Precision(train_args(), CPU).autocast():
        assert not torch.is_autocast_enabled('cpu')


def test_scaling_keeps_gradients_that_float16_would_lose():
    """A gradient of 2^-30 is nothing in float16, whose smallest number is 2^-24."""
    moved = []
    for scaler in (None, LossScaler(device='cpu')):
        layer = nn.Linear(1, 1, bias=False)
        start = layer.weight.detach().clone()
        updater = make_updater(layer, torch.optim.SGD(layer.parameters(), lr=2.0**30), loss_scaler=scaler)
        with torch.autocast('cpu', torch.float16):
            output = layer(torch.ones(1, 1))
        assert output.dtype == torch.float16
        updater.backward(output.float().squeeze() * 2.0**-30)
        if scaler is not None:
            assert scaler.state_dict()['scale'] == SCALE
            assert layer.weight.grad.item() == SCALE * 2.0**-30
        updater.step()
        moved.append((start - layer.weight).item())
    assert moved[0] == 0
    assert moved[1] == pytest.approx(1.0, rel=1e-3)


# --- clipping and norms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize('scaler', [None, LossScaler(device='cpu')], ids=['plain', 'scaled'])
@pytest.mark.parametrize(('mode', 'clip'), [('norm', 0.01), ('value', 0.001), ('agc', 0.01), ('norm', None)])
def test_the_norm_is_that_of_the_unscaled_gradients_before_clipping(mode, clip, scaler):
    model, seen = make_model(dtype=torch.float32), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append(gradients(model)))
    [(input, target)] = make_batches(1, dtype=torch.float32)
    reference = copy.deepcopy(model)
    nn.functional.cross_entropy(reference(input), target).backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in reference.parameters()]).norm().item()

    updater = make_updater(model, optimizer, loss_scaler=scaler, clip_grad=clip, clip_mode=mode)
    updater.backward(nn.functional.cross_entropy(model(input), target))
    assert updater.step(measure_norm=True) == pytest.approx(expected, rel=1e-4)
    clipped = torch.cat([gradient.flatten() for gradient in seen[0].values()])
    assert (clipped.norm().item() < 0.9 * expected) is (clip is not None)
    if mode == 'norm' and clip:
        assert clipped.norm().item() == pytest.approx(clip, rel=1e-3)
    if mode == 'value':
        assert clipped.abs().max().item() == pytest.approx(clip)


def test_adaptive_clipping_leaves_the_classifier_alone():
    model, seen = make_model(dtype=torch.float32), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    optimizer.register_step_pre_hook(lambda *_: seen.append(gradients(model)))
    updater = make_updater(model, optimizer, clip_grad=1e-3, clip_mode='agc')
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    before = gradients(model)
    updater.step()
    assert torch.equal(seen[0]['fc.weight'], before['fc.weight'])
    assert seen[0]['layer1.0.conv1.weight'].norm() < 0.1 * before['layer1.0.conv1.weight'].norm()


# --- second order -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings('ignore:Using backward.. with create_graph=True')
def test_second_order_optimisers_get_the_graph_of_the_gradients():
    weights = []
    for engine_runs in (False, True):
        torch.manual_seed(3)
        model = make_model(dtype=torch.float32)
        optimizer = create_optimizer_v2(model, opt='adahessian', lr=0.1, weight_decay=0.0)
        batches = make_batches(2, dtype=torch.float32)
        if engine_runs:
            make_engine(make_task(model), optimizer).train_one_epoch(0, batches)
        else:
            for input, target in batches:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(input), target).backward(create_graph=True)
                optimizer.step()
        weights.append({name: value.detach() for name, value in model.named_parameters()})
    assert_equal(weights[1], weights[0])


# --- learning rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('line', 'ranks', 'expected'),
    [
        ('--batch-size 256', 1, 0.1),
        ('--batch-size 64', 1, 0.025),
        ('--batch-size 64 --grad-accum-steps 3', 1, 0.075),
        ('--batch-size 64', 8, 0.2),
        ('--batch-size 64 --grad-accum-steps 2', 8, 0.4),
        ('--batch-size 64 --lr-base 0.4', 1, 0.1),
        ('--batch-size 64 --lr-base-size 128', 1, 0.05),
        ('--batch-size 64 --lr-base-scale sqrt', 1, 0.05),
        ('--batch-size 64 --opt adamw', 1, 0.05),
        ('--batch-size 64 --opt lamb', 1, 0.05),
        ('--batch-size 64 --opt lookahead_lamb', 1, 0.05),
        ('--batch-size 256 --opt adafactor', 4, 0.2),
        ('--batch-size 64 --opt lamb --lr-base-scale linear', 1, 0.025),
        ('--batch-size 64 --opt rmsprop', 1, 0.025),
        ('--batch-size 64 --lr 0.3', 8, 0.3),
        ('--train-img-sizes 16 32 --train-batch-sizes 96 32', 1, 0.025),
    ],
)
def test_the_learning_rate_grows_with_the_global_batch(line, ranks, expected):
    """timm's rule: linearly from `--lr-base` at `--lr-base-size` images, by the square root for Ada- and LAMB-like."""
    args = train_args(*line.split(), world_size=ranks)
    loader = SimpleNamespace(batch_sampler=SimpleNamespace(average_batch_size=64))
    resolve_learning_rate(args, loader)
    assert args.lr == pytest.approx(expected)
