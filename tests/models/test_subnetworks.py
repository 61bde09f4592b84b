"""Every network can be slimmed whole, and its sub-networks equal the full-size network with dropped channels zeroed."""

import pytest
import timm
import torch

from regaug.methods.depth import DepthTwin, take_drop_path
from regaug.slimmable import SlimmablePlan, Twin
from tests.helpers.slimmable_oracle import assert_equals_zeroed_network, make_generic
from tests.models.test_networks import fixed_weights as fixed_weights
from tests.models.test_registry import COUNTS, SAME_CLASS, shallow

by_name = pytest.mark.parametrize('name', COUNTS)


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow) if name in SAME_CLASS else name for name in COUNTS]
)
@pytest.mark.few(4)
def test_subnetworks_equal_the_zeroed_network(name, fixed_weights):
    size = 64 if name.startswith('proxylessnas') else 32
    kwargs = {'shakedrop': 0.5} if name.startswith('pyramidnet') else {}
    model = make_generic(shallow(name, **kwargs).double().train())
    twin = Twin(model, SlimmablePlan(model, (3, size, size)), 1)
    assert not twin.plan.full
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    for width in (0.8, 0.5):
        assert_equals_zeroed_network(twin, model, x, width)
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.slow
@by_name
def test_all_layers_of_the_registered_network_are_slimmed(name):
    model = timm.create_model(name)
    plan = SlimmablePlan(model, (3, 64, 64))
    assert not plan.full
    # Weights between channels that both get fewer keep 0.64; the first and last ones, depthwise and batch-norms 0.8.
    whole = kept = 0
    for parameter in model.parameters():
        between = parameter.ndim > 1 and parameter.shape[1] not in (1, 3) and parameter.shape[0] != model.num_classes
        whole += parameter.numel()
        kept += parameter.numel() * (0.64 if between else 0.8)
    parameters, operations = plan.kept(0.8, 1)
    assert parameters == pytest.approx(kept / whole, abs=0.02)
    assert operations == pytest.approx(0.64, abs=0.03)


def test_depth_subnetworks_of_resnet110_drop_blocks_at_the_rates_of_the_paper():
    model = timm.create_model('resnet110_cifar', drop_path_rate=0.2)
    rates = take_drop_path(model)
    assert len(rates) == 53  # of 54 blocks the first one always stays
    assert list(rates.values()) == pytest.approx([0.2 * index / 53 for index in range(1, 54)])
    full = timm.create_model('resnet110_cifar')
    full.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model.train()(x), full.train()(x))
    subnet = DepthTwin(model, rates).train()
    assert not torch.allclose(subnet(x), model(x))
