"""Gradients that are added in place equal those that autograd adds, bit for bit, and leave what others wait for."""

import pytest
import timm
import torch
from torch import nn

from regaug.slimmable import SlimmablePlan, Twin
from tests.helpers.slimmable_oracle import make_generic

SIZE = 64
NETWORKS = [
    'test_resnet',
    'test_vit',
    'test_efficientnet',
    'densenet121',
    'resnet18',
    'efficientnet_b0',
    'convnext_atto',
]
FORMATS = [torch.contiguous_format, torch.channels_last]
CASES = ['first of the update', 'hook', 'accumulation hook', 'frozen', 'second order', 'autocast']
WIDTHS = [0.9, 0.6]


def build(name, memory_format=torch.contiguous_format):
    kwargs = {'img_size': SIZE} if name == 'test_vit' else {}
    torch.manual_seed(1)
    return make_generic(timm.create_model(name, num_classes=7, **kwargs)).to(memory_format=memory_format)


def train_pass(model, in_place, *, first=True, **backward):
    """Gradients of the full network, if `first`, and of two sub-networks after it."""
    twin = Twin(model, SlimmablePlan(model, (3, SIZE, SIZE)), 1, in_place=in_place)
    x = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
    if first:
        model(x).square().mean().backward(**backward)
    for width in WIDTHS:
        twin.set(width)
        torch.manual_seed(3)
        twin(x).square().mean().backward(**backward)
        twin.clear()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def assert_same(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        reference = expected[name]
        assert (gradient is None) == (reference is None), name
        if gradient is not None:
            assert torch.equal(gradient, reference) and gradient.stride() == reference.stride(), name


@pytest.mark.parametrize('memory_format', FORMATS)
@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.few(2)
def test_gradients_in_place_equal_those_of_autograd(name, memory_format):
    pairs = [train_pass(build(name, memory_format), in_place) for in_place in (True, False)]
    assert_same(*pairs)


def test_each_slice_is_added_without_a_gradient_of_full_size():
    """The gradient's memory is that of before, and no other tensor of a weight's full size is made on the way."""
    model = build('resnet18')
    twin = Twin(model, SlimmablePlan(model, (3, SIZE, SIZE)), 1, in_place=True)
    x = torch.randn(2, 3, SIZE, SIZE)
    model(x).square().mean().backward()
    weight = model.layer4[0].conv2.weight
    pointer = weight.grad.data_ptr()
    twin.set(0.5)
    output = twin(x).square().mean()
    with torch.profiler.profile(record_shapes=True) as profile:
        output.backward()
    assert weight.grad.data_ptr() == pointer
    names = {event.key for event in profile.key_averages()}
    assert 'aten::_foreach_add_' in names and 'AsStridedBackward0' not in names


@pytest.mark.few(2)
@pytest.mark.filterwarnings('ignore:Using backward.. with create_graph')
@pytest.mark.parametrize('case', CASES)
def test_where_somebody_would_see_it_gradients_come_by_way_of_autograd(case):
    results, seen = [], []
    for in_place in (True, False):
        model, kwargs, calls = build('test_resnet'), {}, []
        if case == 'first of the update':
            kwargs['first'] = False
        elif case == 'hook':
            model.layer2[0].conv1.weight.register_hook(lambda gradient, calls=calls: calls.append(gradient.clone()))
        elif case == 'accumulation hook':
            model.conv1[0].weight.register_post_accumulate_grad_hook(
                lambda p, calls=calls: calls.append(p.grad.clone())
            )
        elif case == 'frozen':
            model.conv1[0].weight.requires_grad_(False)
        elif case == 'second order':
            kwargs['create_graph'] = True
        else:
            with torch.autocast('cpu', torch.bfloat16):
                results.append(train_pass(model, in_place))
            continue
        results.append(train_pass(model, in_place, **kwargs))
        seen.append(calls)
        if case == 'second order':
            assert model.layer2[0].conv1.weight.grad.grad_fn is not None
    assert_same(*results)
    if 'hook' in case:
        assert len(seen[0]) == len(seen[1]) == 1 + len(WIDTHS)
        assert all(map(torch.equal, *seen))


def test_what_a_slice_does_not_reach_keeps_its_gradient():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 2))
    twin = Twin(model, SlimmablePlan(model, (3, 8, 8)), 1, in_place=True)
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    before = model[0].weight.grad.clone()
    twin.set(0.5)
    twin(x).sum().backward()
    changed = (model[0].weight.grad != before).flatten(1).any(dim=1)
    assert changed[:4].all() and not changed[4:].any()


@pytest.mark.filterwarnings('ignore:grad and param do not obey the gradient layout')
def test_a_gradient_of_another_memory_format_gets_its_sums_all_the_same():
    results = []
    for in_place in (True, False):
        model = build('test_resnet', torch.channels_last)
        for parameter in model.parameters():  # whoever sets gradients by hand may lay them out otherwise
            parameter.grad = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        weight = model.layer2[0].conv1.weight
        assert weight.grad.stride() != weight.stride()
        results.append(train_pass(model, in_place, first=False))
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-6, atol=1e-6)
