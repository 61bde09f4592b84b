"""Sub-networks against small networks that their own constructors build, with indices written down by hand.

Nothing here asks the plan which channels it keeps: each table says it from the architecture (the first ones of every
piece), for outputs and inputs of every parameter, and the small network must fit.
"""

import fnmatch

import pytest
import torch
from timm.models._efficientnet_blocks import InvertedResidual, SqueezeExcite
from timm.models.densenet import DenseNet
from timm.models.resnet import Bottleneck
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from regaug.slimmable import SlimmablePlan, Twin
from tests.helpers.slimmable_oracle import make_generic

WIDTH, SIZE = 0.75, 16
ALL = None


def first(*pieces):
    """Indices of the first three quarters of every piece of these sizes, laid end to end."""
    starts = [sum(pieces[:index]) for index in range(len(pieces))]
    return [start + i for start, piece in zip(starts, pieces, strict=True) for i in range(piece * 3 // 4)]


class Classifier(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.Linear(channels, 5)

    def forward(self, x):
        return self.fc(x.mean((2, 3)))


def grouped(scale):
    """Two groups, which get narrower, then eight groups of two channels, which are dropped one by one."""
    stem, inner, groups = int(64 * scale), int(16 * scale), int(8 * scale)
    return nn.Sequential(
        nn.Conv2d(3, inner, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 3, groups=2),
        nn.ReLU(),
        nn.Conv2d(inner, stem, 1),
        Bottleneck(stem, inner, cardinality=groups, base_width=2 * 64 / inner),
        Classifier(stem),
    )


def depthwise(scale):
    narrow, wide = int(16 * scale), int(24 * scale)
    return nn.Sequential(
        nn.Conv2d(3, narrow, 3, padding=1),
        InvertedResidual(narrow, narrow, exp_ratio=2, se_layer=SqueezeExcite),
        InvertedResidual(narrow, wide, exp_ratio=2, stride=2),
        Classifier(wide),
    )


def concatenating(scale):
    return DenseNet(block_config=(2, 2), num_classes=5, growth_rate=int(8 * scale), bn_size=2)


def attention(scale):
    size = dict(embed_dim=int(64 * scale), num_heads=int(16 * scale))
    return VisionTransformer(img_size=SIZE, patch_size=8, depth=2, num_classes=5, **size)


TWO_GROUPS = first(8, 8)
KEPT = {
    grouped: {
        '0.weight': (TWO_GROUPS, ALL),
        '0.bias': (TWO_GROUPS,),
        '2.weight': (TWO_GROUPS, first(8)),
        '2.bias': (TWO_GROUPS,),
        '4.weight': (first(64), TWO_GROUPS),
        '4.bias': (first(64),),
        '5.conv1.weight': (first(16), first(64)),
        '5.conv2.weight': (first(16), ALL),
        '5.conv3.weight': (first(64), first(16)),
        '5.bn[12].*': (first(16),),
        '5.bn3.*': (first(64),),
        '6.fc.weight': (ALL, first(64)),
        '6.fc.bias': (ALL,),
    },
    depthwise: {
        '0.weight': (first(16), ALL),
        '0.bias': (first(16),),
        '?.conv_pw.weight': (first(32), first(16)),
        '?.conv_dw.weight': (first(32), ALL),
        '?.bn[12].*': (first(32),),
        '1.se.conv_reduce.weight': (first(8), first(32)),
        '1.se.conv_reduce.bias': (first(8),),
        '1.se.conv_expand.weight': (first(32), first(8)),
        '1.se.conv_expand.bias': (first(32),),
        '1.conv_pwl.weight': (first(16), first(32)),
        '1.bn3.*': (first(16),),
        '2.conv_pwl.weight': (first(24), first(32)),
        '2.bn3.*': (first(24),),
        '3.fc.weight': (ALL, first(24)),
        '3.fc.bias': (ALL,),
    },
    concatenating: {
        'features.conv0.weight': (first(16), ALL),
        'features.norm0.*': (first(16),),
        '*.denselayer1.norm1.*': (first(16),),
        '*.denselayer1.conv1.weight': (first(16), first(16)),
        '*.denselayer2.norm1.*': (first(16, 8),),
        '*.denselayer2.conv1.weight': (first(16), first(16, 8)),
        '*.norm2.*': (first(16),),
        '*.conv2.weight': (first(8), first(16)),
        'features.transition1.norm.*': (first(16, 8, 8),),
        'features.transition1.conv.weight': (first(16), first(16, 8, 8)),
        'features.norm5.*': (first(16, 8, 8),),
        'classifier.weight': (ALL, first(16, 8, 8)),
        'classifier.bias': (ALL,),
    },
    attention: {
        'cls_token': (ALL, ALL, first(64)),
        'pos_embed': (ALL, ALL, first(64)),
        'patch_embed.proj.weight': (first(64), ALL),
        'patch_embed.proj.bias': (first(64),),
        '*norm*': (first(64),),
        '*.qkv.weight': (first(64, 64, 64), first(64)),  # 12 of the 16 heads of queries, keys and values
        '*.qkv.bias': (first(64, 64, 64),),
        '*.attn.proj.weight': (first(64), first(64)),
        '*.attn.proj.bias': (first(64),),
        '*.fc1.weight': (first(256), first(64)),
        '*.fc1.bias': (first(256),),
        '*.fc2.weight': (first(64), first(256)),
        '*.fc2.bias': (first(64),),
        'head.weight': (ALL, first(64)),
        'head.bias': (ALL,),
    },
}


def grid(table, name, shape):
    """Index of the kept elements of a parameter of this full shape."""
    [kept] = [indices for pattern, indices in table.items() if fnmatch.fnmatchcase(name, pattern)]
    kept = [*kept, *[ALL] * (len(shape) - len(kept))]
    indices = [
        torch.arange(size) if part is ALL else torch.tensor(part) for part, size in zip(kept, shape, strict=True)
    ]
    return torch.meshgrid(*indices, indexing='ij')


@pytest.mark.parametrize('build', [grouped, depthwise, concatenating, attention])
def test_subnetwork_equals_the_small_network_with_slices_written_down_by_hand(build):
    model, small = make_generic(build(1.0).double().train()), build(WIDTH).double().train()
    kept = {name: grid(KEPT[build], name, parameter.shape) for name, parameter in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in small.named_parameters():
            part = model.get_parameter(name)[kept[name]]
            assert part.shape == parameter.shape, name
            parameter.copy_(part)
    x = torch.randn(4, 3, SIZE, SIZE).double()
    expected = small(x)
    expected.square().sum().backward()
    twin = Twin(model, SlimmablePlan(model, (3, SIZE, SIZE)), width_divisor=1)
    twin.set(WIDTH)
    output = twin(x)
    output.square().sum().backward()
    torch.testing.assert_close(output, expected, rtol=1e-10, atol=1e-10)
    for name, parameter in small.named_parameters():
        gradient = torch.zeros_like(model.get_parameter(name))
        gradient[kept[name]] = parameter.grad
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-9, atol=1e-9, msg=name)
