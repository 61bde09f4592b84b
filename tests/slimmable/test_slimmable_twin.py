"""What training does to a twin: precision, memory formats, checkpointing, compilation, extraction, cost in memory."""

import pytest
import timm
import torch
import torch._dynamo.testing
from torch import nn

from regaug.slimmable import SlimmablePlan, calibrate, extract
from tests.helpers.slimmable_oracle import make_generic
from tests.slimmable.test_slimmable import SIZE, build, gradients, images, relative_error, subnetwork_pass, twin_of


def extracted(model, width=0.5):
    return extract(model, SlimmablePlan(model, (3, SIZE, SIZE)), width)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_subnetworks_run_in_the_precision_of_the_model(dtype):
    model = build(dtype=dtype)
    output, slimmed = subnetwork_pass(twin_of(model), model, images(dtype=dtype), 0.5)
    assert output.dtype == dtype
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in slimmed.values())


def test_autocast_subnetwork_is_close_to_that_in_full_precision():
    model, x = build(), images()
    twin = twin_of(model)
    expected, _ = subnetwork_pass(twin, model, x, 0.5)
    with torch.autocast('cpu', torch.bfloat16):
        output, slimmed = subnetwork_pass(twin, model, x, 0.5)
    assert output.dtype == torch.bfloat16
    assert relative_error(output.float(), expected) < 0.1
    assert all(gradient.dtype == torch.float32 for gradient in slimmed.values())


def test_gradients_of_a_channels_last_model_are_channels_last():
    model, x = build(dtype=torch.float64), images(dtype=torch.float64)
    expected, reference = subnetwork_pass(twin_of(model), model, x, 0.5)
    model.to(memory_format=torch.channels_last)
    twin = twin_of(model)
    model.zero_grad()
    twin.set(0.5)
    output = twin(x.contiguous(memory_format=torch.channels_last))
    output.square().sum().backward()
    assert relative_error(output, expected) < 1e-12
    for name, parameter in model.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name
        torch.testing.assert_close(parameter.grad, reference[name])


def test_gradient_checkpointing_recomputes_at_the_width_that_is_set():
    model, x = build(dtype=torch.float64), images(dtype=torch.float64)
    expected, reference = subnetwork_pass(twin_of(model), model, x, 0.5)
    model.set_grad_checkpointing(True)
    twin = twin_of(model)
    output, slimmed = subnetwork_pass(twin, model, x, 0.5)
    assert torch.equal(output, expected)
    assert all(torch.equal(slimmed[name], reference[name]) for name in reference)


@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor that is not a leaf')  # slices have none
@pytest.mark.slow
def test_compiled_twin_computes_every_width_also_after_full_width():
    torch._dynamo.reset()
    model, x = build(), images()
    twin, compiled = twin_of(model), twin_of(model)
    backend = torch._dynamo.testing.CompileCounterWithBackend('eager')
    compiled.module.compile(backend=backend)
    for width in (1.0, 0.9, 0.5, 1.0, 0.5, 0.9):
        expected, reference = subnetwork_pass(twin, model, x, width)
        output, slimmed = subnetwork_pass(compiled, model, x, width)
        assert relative_error(output, expected) < 1e-5, width
        for name, gradient in slimmed.items():
            torch.testing.assert_close(gradient, reference[name], rtol=1e-3, atol=1e-4 * reference[name].abs().max())
    assert backend.frame_count == 3  # one graph for each width


def test_clear_gives_the_full_width_back():
    model = build()
    twin = twin_of(model)
    twin.set(0.5)
    assert twin.width == 0.5 and twin.module.conv1[0].weight.shape[0] < model.conv1[0].weight.shape[0]
    twin.clear()
    assert twin.width == 1.0 and twin.module.conv1[0].weight is model.conv1[0].weight


def test_widths_that_round_alike_share_a_recipe_and_no_others_do(monkeypatch):
    model = build('mobilenetv3_small_050')
    twin = twin_of(model, width_divisor=4)
    recipes = []
    monkeypatch.setattr(twin, '_new_recipe', lambda width, new=twin._new_recipe: recipes.append(width) or new(width))
    kept = set()
    for width in torch.linspace(0.9, 1.0, 200).tolist():
        twin.set(width)
        kept.add(str([tuple(module.weight.shape) for module in twin.module.modules() if hasattr(module, 'weight')]))
        assert len(recipes) == len(kept)
    assert 10 < len(kept) < 100


def test_recipes_are_dropped_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr('regaug.slimmable.twin.MAX_RECIPES', 3)
    twin = twin_of(build(), width_divisor=1)
    for width in (0.5, 0.6, 0.7, 0.8, 0.5):
        twin.set(width)
        assert twin.module.layer4[0].conv1.weight.shape[0] == int(512 * width + 0.5)
    assert len(twin._recipes) == 3


def test_backward_may_follow_after_the_width_has_changed():
    model, x = build(dtype=torch.float64), images(dtype=torch.float64)
    twin = twin_of(model)
    _, reference = subnetwork_pass(twin, model, x, 0.5)
    model.zero_grad()
    twin.set(0.5)
    output = twin(x)
    twin.set(0.9)
    output.square().sum().backward()
    assert all(torch.equal(gradient, reference[name]) for name, gradient in gradients(model).items())


def test_slices_follow_the_parameters_after_an_update():
    model, x = build('ghostnet_050', drop_rate=0.0), images()  # some of its slices are copies
    twin = twin_of(model)
    twin.set(0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    twin.clear()
    twin.set(0.5)
    with torch.no_grad():
        assert relative_error(twin(x), extract(model, twin.plan, 0.5).train()(x)) < 1e-5


def new_bytes(twin, model):
    """Bytes that the twin's parameters take beyond the model's own."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    tensors = [tensor for module in twin.module.modules() for tensor in module._parameters.values()]
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in tensors if tensor is not None
    }
    return sum(storage.nbytes() for pointer, storage in storages.items() if pointer not in own)


def test_slices_of_plain_networks_are_views_of_the_model():
    model = build('efficientnet_b0')
    twin = twin_of(model)
    twin.set(0.9)
    assert new_bytes(twin, model) == 0


@pytest.mark.parametrize('name', ['dla46_c', 'ghostnet_050'])
def test_slices_of_concatenations_take_no_more_than_the_parameters(name):
    model = build(name)
    twin = twin_of(model)
    twin.set(0.9)
    assert 0 < new_bytes(twin, model) < sum(parameter.nbytes for parameter in model.parameters())


def test_extracted_network_is_the_subnetwork_with_fresh_statistics():
    model, x = make_generic(build('mobilenetv3_small_050', torch.float64)), images(dtype=torch.float64)
    for _ in range(3):
        model(x)
    twin = twin_of(model)
    twin.set(0.5)
    with torch.no_grad():
        expected = twin(x)
    small = extract(model, twin.plan, 0.5)
    assert all(parameter.is_leaf and isinstance(parameter, nn.Parameter) for parameter in small.parameters())
    assert not small.training
    norms = [module for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and all(not norm.running_mean.any() and (norm.running_var == 1).all() for norm in norms)
    assert all(norm.running_mean.shape == norm.weight.shape and not norm.num_batches_tracked for norm in norms)
    torch.testing.assert_close(small.train()(x), expected)
    small.load_state_dict(small.state_dict())
    with torch.no_grad():
        next(small.parameters()).zero_()
    assert next(model.parameters()).any()


def test_calibration_is_the_mean_over_batches_at_that_width():
    model = build(dtype=torch.float64)
    small = extracted(model).train()
    momenta = [module.momentum for module in small.modules() if isinstance(module, nn.BatchNorm2d)]
    batches = [images(dtype=torch.float64, seed=seed) for seed in range(3)]
    seen = []
    handle = small.bn1.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    assert calibrate(small, batches) == 12
    handle.remove()
    torch.testing.assert_close(small.bn1.running_mean, torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0))
    torch.testing.assert_close(small.bn1.running_var, torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0))
    assert all(module.training for module in small.modules())
    assert [module.momentum for module in small.modules() if isinstance(module, nn.BatchNorm2d)] == momenta


def test_statistics_that_cannot_be_estimated_are_refused():
    model = build(norm_layer=timm.layers.EvoNorm2dB0)
    with pytest.raises(ValueError, match=r'statistics of conv1.1 \(EvoNorm2dB0\) cannot be estimated'):
        extracted(model)


def test_calibration_without_images_is_refused():
    with pytest.raises(ValueError, match='no images'):
        calibrate(extracted(build()), [])
