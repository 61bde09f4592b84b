"""Modules that stay at full width on request, and the feature pyramids that need it."""

from collections import OrderedDict

import pytest
import timm
import torch
from torch import nn
from torchvision.ops import FeaturePyramidNetwork

from regaug.slimmable import SlimmablePlan, Twin
from tests.helpers.slimmable_oracle import assert_equals_zeroed_network, make_generic

SIZE, MAPS = 64, 256


class Pyramid(nn.Module):
    """A backbone of timm under torchvision's feature pyramid, with a head on all of its maps."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = timm.create_model(backbone, features_only=True, out_indices=(1, 2, 3, 4))
        self.fpn = FeaturePyramidNetwork(self.backbone.feature_info.channels(), MAPS)
        self.head = nn.Conv2d(MAPS, 5, 1)

    def forward(self, x):
        maps = self.fpn(OrderedDict((str(i), features) for i, features in enumerate(self.backbone(x))))
        return torch.cat([self.head(features).flatten(2) for features in maps.values()], 2)


def planned(full, backbone='resnet18'):
    model = make_generic(Pyramid(backbone).double().train())
    return model, Twin(model, SlimmablePlan(model, (3, SIZE, SIZE), full=full))


def widths_of_maps(twin, width):
    seen = []
    handles = [
        module.register_forward_hook(lambda module, args, output: seen.append(output.shape[1]))
        for module in [*twin.module.fpn.inner_blocks, *twin.module.fpn.layer_blocks]
    ]
    twin.set(width)
    with torch.no_grad():
        twin(torch.randn(2, 3, SIZE, SIZE).double())
    for handle in handles:
        handle.remove()
    return sorted(seen)


@pytest.mark.parametrize('full', [(), ('fpn',)])
@pytest.mark.parametrize(
    'backbone',
    [
        'resnet18',
        pytest.param('mobilenetv2_100', marks=pytest.mark.slow),
        pytest.param('resnet50', marks=pytest.mark.slow),
        pytest.param('tf_efficientnet_lite0', marks=pytest.mark.slow),
        pytest.param('regnety_002', marks=pytest.mark.slow),
    ],
)
@pytest.mark.few(1)
def test_backbone_with_feature_pyramid_equals_the_network_with_dropped_channels_zeroed(backbone, full):
    model, twin = planned(full, backbone)
    assert_equals_zeroed_network(twin, model, torch.randn(2, 3, SIZE, SIZE).double(), 0.9)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_maps_of_a_pyramid_keep_all_channels_only_on_request():
    assert widths_of_maps(planned(())[1], 0.9) == [232] * 8
    assert widths_of_maps(planned(('fpn.layer_blocks',))[1], 0.9) == [232] * 4 + [MAPS] * 4
    _, twin = planned(('fpn',))
    assert widths_of_maps(twin, 0.9) == [MAPS] * 8
    assert twin.module.backbone.conv1.weight.shape[0] == 56
    assert twin.module.fpn.inner_blocks[3][0].weight.shape[1] == 464


def test_report_says_what_stays_full_on_request():
    plan = SlimmablePlan(Pyramid('resnet18'), (3, SIZE, SIZE), full=('fpn',))
    blocks = [f'fpn.layer_blocks.{index}.0' for index in range(4)]
    reason = 'outputs of fpn stay at full width'
    assert plan.full == {**dict.fromkeys(blocks, reason), 'head': f"it is the model's output and {reason}"}
    assert f'at full width: 4 ({blocks[0]}, {blocks[1]}, {blocks[2]}, ...): {reason}' in plan.report(0.9, 8)


@pytest.mark.parametrize('name, message', [('fpm', 'has no module of that name'), ('unused', 'does not run it')])
def test_a_module_that_is_not_there_or_never_runs_is_refused(name, message):
    model = Pyramid('resnet18')
    model.unused = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match=f"full='{name}'.*{message}"):
        SlimmablePlan(model, (3, SIZE, SIZE), full=(name,))
