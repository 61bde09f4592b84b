"""Plan and twin: sub-networks are exact, gradients land in the model, and the model itself is left alone."""

import copy
import random

import numpy as np
import pytest
import timm
import torch
from torch import nn

from regaug.slimmable import SlimmablePlan, Twin, extract
from tests.helpers.slimmable_oracle import make_generic, relative_error

SIZE = 64


def build(name='resnet10t', dtype=torch.float32, **kwargs):
    return timm.create_model(name, num_classes=10, **kwargs).to(dtype).train()


def twin_of(model, **kwargs):
    return Twin(model, SlimmablePlan(model, (3, SIZE, SIZE)), **kwargs)


def images(batch=4, dtype=torch.float32, seed=1):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(model):
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def subnetwork_pass(twin, model, x, width):
    """Output and gradients of a sub-network, with the model's gradients reset before."""
    model.zero_grad()
    twin.set(width)
    output = twin(x)
    output.square().sum().backward()
    twin.clear()
    return output, {name: gradient.clone() for name, gradient in gradients(model).items()}


def network_built_at(name, width, full):
    """A network whose every convolution, norm and linear layer is made at the rounded width, from leading slices."""

    def kept(channels):
        step = 8 if channels >= 16 else 1
        return min(max(int(width * channels / step + 0.5) * step, step), channels)

    small = make_generic(build(name, torch.float64))
    for layer, source in zip(small.modules(), full.modules(), strict=True):
        if isinstance(layer, nn.Conv2d):
            inputs = layer.in_channels if layer.in_channels == 3 else kept(layer.in_channels)
            layer.in_channels, layer.out_channels = inputs, kept(layer.out_channels)
            if layer.groups > 1:
                layer.groups = inputs
            per_group = inputs // layer.groups
            layer.weight = nn.Parameter(source.weight.detach()[: layer.out_channels, :per_group].clone())
        elif isinstance(layer, nn.BatchNorm2d):
            channels = layer.num_features = kept(layer.num_features)
            layer.weight = nn.Parameter(source.weight.detach()[:channels].clone())
            layer.running_mean, layer.running_var = torch.zeros(channels).double(), torch.ones(channels).double()
        elif isinstance(layer, nn.Linear):
            layer.weight = nn.Parameter(source.weight.detach()[:, : kept(layer.in_features)].clone())
        if getattr(layer, 'bias', None) is not None:
            outputs = layer.weight.shape[0]
            layer.bias = nn.Parameter(source.bias.detach()[:outputs].clone())
    return small


@pytest.mark.parametrize('width', [0.75, 0.9])
@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'efficientnet_b0'])
@pytest.mark.few(1)
def test_subnetwork_equals_small_network_built_at_that_width(name, width):
    model, x = make_generic(build(name, torch.float64)), images(batch=2, dtype=torch.float64)
    output, slimmed = subnetwork_pass(twin_of(model), model, x, width)
    small = network_built_at(name, width, model)
    expected = small(x)
    expected.square().sum().backward()
    assert relative_error(output, expected) < 1e-12
    largest = max(float(parameter.grad.abs().max()) for parameter in small.parameters())
    for key, reference in gradients(small).items():
        padded = torch.zeros_like(slimmed[key])
        padded[tuple(slice(size) for size in reference.shape)] = reference
        assert float((slimmed[key] - padded).abs().max()) < 1e-11 * largest, key


@pytest.mark.parametrize('name', ['resnet10t', 'efficientnet_lite0', 'convnext_atto', 'regnetx_002'])
@pytest.mark.few(1)
def test_full_width_is_the_model_bit_for_bit(name):
    model = build(name)
    twin, x = twin_of(model), images()
    twin.set(0.5)
    twin.set(1.0)
    with torch.random.fork_rng():
        output = twin(x)
    assert torch.equal(output, model(x))


def test_widths_accumulate_into_the_models_own_gradients():
    model, x = build(dtype=torch.float64), images(dtype=torch.float64)
    twin = twin_of(model)
    parts = [subnetwork_pass(twin, model, x, width)[1] for width in (1.0, 0.8, 0.5)]
    model.zero_grad()
    for width in (1.0, 0.8, 0.5):
        twin.set(width)
        output = twin(x)
        output.square().sum().backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(gradient, sum(part[name] for part in parts))


def test_planning_and_subnetworks_leave_the_model_and_all_generators_untouched():
    model = build(drop_rate=0.0)
    model.layer1.eval()
    calls = []
    model.layer2.register_forward_hook(lambda *args: calls.append('hook'))
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = list(model.layer2._forward_hooks)
    generators = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    twin = twin_of(model)
    for width in (0.5, 1.0, 0.9):
        twin.set(width)
        twin.train()(images()).sum().backward()
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert list(model.layer2._forward_hooks) == hooks and not calls
    assert random.getstate() == generators[0] and str(np.random.get_state()) == generators[1]
    assert torch.equal(torch.get_rng_state(), generators[2])


def test_buffers_that_a_module_updates_by_itself_are_private_to_the_twin():
    model = build(norm_layer=timm.layers.EvoNorm2dB0)
    twin = twin_of(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert any('running_var' in name for name in before)
    twin.set(0.5)
    twin(images())
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_twin_adds_nothing_to_the_module_that_holds_it():
    class Task(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

    task = Task(build())
    keys, parameters = list(task.state_dict()), len(list(task.parameters()))
    task.twin = twin_of(task.model)
    task.twin.set(0.5)
    assert list(task.state_dict()) == keys
    assert len(list(task.parameters())) == parameters
    assert len(list(copy.deepcopy(task.model).parameters())) == parameters


def test_twin_follows_the_mode_and_uses_batch_statistics_in_both():
    model = build(drop_rate=0.5)
    twin, x = twin_of(model), images()
    twin.train(False)
    assert not any(module.training for module in twin.module.modules())
    twin.set(0.5)
    with torch.no_grad():
        first, second, doubled = twin(x), twin(x), twin(torch.cat([x, 5 * x]))
    assert torch.equal(first, second)  # no dropout
    assert not torch.allclose(first, doubled[: len(x)])  # the statistics are those of the batch
    twin.train()
    assert all(module.training for module in twin.module.modules())


def test_a_plan_made_before_synchronised_batch_norm_fits_the_converted_model():
    model, x = build(), images()
    plan = SlimmablePlan(model, (3, SIZE, SIZE))
    expected, reference = subnetwork_pass(Twin(model, plan), model, x, 0.5)
    converted = timm.layers.convert_sync_batchnorm(copy.deepcopy(model))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in converted.modules())
    output, slimmed = subnetwork_pass(Twin(converted, plan), converted, x, 0.5)
    assert torch.equal(output, expected)
    assert all(torch.equal(slimmed[name], reference[name]) for name in reference)
    assert all(torch.equal(a, b) for a, b in zip(converted.buffers(), model.buffers(), strict=True))


def test_planning_needs_no_weights():
    with torch.device('meta'):
        without_weights = SlimmablePlan(build(), (3, SIZE, SIZE))
    assert without_weights.kept(0.5) == SlimmablePlan(build(), (3, SIZE, SIZE)).kept(0.5)


def test_kept_shares_are_those_of_the_extracted_network():
    model = build('mobilenetv3_small_050')
    plan = SlimmablePlan(model, (3, SIZE, SIZE))
    small = extract(model, plan, 0.5)
    sizes = [sum(parameter.numel() for parameter in net.parameters()) for net in (small, model)]
    assert plan.kept(0.5)[0] == pytest.approx(sizes[0] / sizes[1])
    assert plan.kept(1.0) == (1.0, 1.0)


def test_published_shares_of_resnet50():
    plan = SlimmablePlan(timm.create_model('resnet50'), (3, 224, 224))
    assert plan.kept(0.9, 1) == pytest.approx((0.817, 0.814), abs=1e-3)
    assert plan.kept(0.9, 8) == pytest.approx((0.822, 0.805), abs=1e-3)


def test_report_counts_layers_and_shares():
    report = SlimmablePlan(timm.create_model('resnet50'), (3, SIZE, SIZE)).report(0.9, 8)
    shares = 'keeps 82.2% of the parameters and 80.5% of the FLOPs'
    assert report == f'ResNet: 54 of 54 layers are slimmed; width 0.9 (divisor 8) {shares}'


class Rigid(nn.Module):
    def __init__(self):
        super().__init__()
        self.only = nn.Linear(3 * SIZE * SIZE, 10)

    def forward(self, x):
        return self.only(x.flatten(1))


def test_a_model_without_slimmable_layers_is_refused_by_name():
    with pytest.raises(ValueError, match=r"Rigid has no layer that can be slimmed: .*only.*the model's output"):
        SlimmablePlan(Rigid(), (3, SIZE, SIZE))


def test_a_wrong_input_size_is_refused_by_name():
    model = timm.create_model('vit_tiny_patch16_224', depth=1)
    with pytest.raises(ValueError, match=r"VisionTransformer cannot be slimmed: .*\(3, 64, 64\).*doesn't match model"):
        SlimmablePlan(model, (3, 64, 64))


def test_a_plan_for_another_network_is_refused():
    plan = SlimmablePlan(build(), (3, SIZE, SIZE))
    with pytest.raises(ValueError, match='the plan was made for another network: parameter'):
        Twin(build('resnet18'), plan)


@pytest.mark.parametrize('width', [0.0, 1.01, -0.5])
def test_a_width_outside_its_range_is_refused(width):
    with pytest.raises(ValueError, match=str(width)):
        twin_of(build()).set(width)


@pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward', 'full_backward_pre'])
def test_hooks_of_the_model_do_not_run_in_the_twin(kind):
    model, calls = build(drop_rate=0.0), []
    getattr(model.layer2, f'register_{kind}_hook')(lambda *args: calls.append(kind))
    twin = twin_of(model)
    twin.set(0.5)
    twin(images()).sum().backward()
    assert not calls
    model(images()).sum().backward()
    assert calls


class Drawing(nn.Module):
    """A network that draws from every generator of the CPU in its forward pass."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 16, 3), nn.Linear(16, 4)

    def forward(self, x):
        random.random(), np.random.rand(), torch.rand(1)
        return self.head(self.conv(x).mean((2, 3)))


def test_planning_a_network_that_draws_moves_no_generator():
    model = Drawing()
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    assert SlimmablePlan(model, (3, 8, 8)).layers == ['conv', 'head']
    assert (random.getstate(), str(np.random.get_state())) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
