"""Architectures of timm against the full-size network with dropped channels zeroed, outputs and gradients."""

import pytest
import timm
import torch

from regaug.slimmable import SlimmablePlan, Twin
from tests.helpers.slimmable_oracle import assert_equals_zeroed_network, make_generic

FULLY_SLIMMED = [
    'resnet10t',
    'efficientnet_b0',
    'mobilenetv3_small_050',
    'regnetx_002',
    'resnest14d',
    'ghostnet_050',
    'dla46_c',
    'convnext_atto',
    'vit_tiny_patch16_224',
]
LARGER = [
    'mixer_s32_224',
    'repvgg_a0',
    'resnext26ts',
    'resnet50',
    'resnet50d',
    'seresnet50',
    'ecaresnet50t',
    'wide_resnet50_2',
    'resnext50_32x4d',
    'resnetv2_50',
    'regnety_008',
    'tf_efficientnetv2_b0',
    'mobilenetv2_100',
    'mobilenetv3_large_100',
    'mobilenetv4_conv_small',
    'mixnet_s',
    'densenet121',
    'res2net50_26w_4s',
    'res2next50',
    'resnest26d',
    'vgg11_bn',
    'ghostnetv2_100',
    'hrnet_w18_small',
    'dla34',
    'xception41',
    'dpn48b',
    'cspresnet50',
    'selecsls42',
    'ese_vovnet19b_dw',
    'tresnet_m',
    'deit_small_patch16_224',
    'swin_tiny_patch4_window7_224',
    'poolformer_s12',
    'inception_v3',
    'inception_v4',
]
WITH_WEIGHT_STANDARDISATION = ['nf_regnet_b0', 'eca_nfnet_l0', 'resnetv2_50x1_bit']


def check(name, only_outputs=True):
    # At 96 pixels the last maps of inception are 1x1: batch-norm over two images then multiplies rounding by a million.
    size = 128 if name.startswith('inception') else 64
    model = make_generic(timm.create_model(name, num_classes=10).double().train())
    if model.pretrained_cfg.get('fixed_input_size'):
        size = model.pretrained_cfg['input_size'][-1]
    twin = Twin(model, SlimmablePlan(model, (3, size, size)))
    assert not twin.plan.full
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    for width in (0.9, 0.5):
        assert_equals_zeroed_network(twin, model, x, width, only_outputs)
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize('name', FULLY_SLIMMED)
@pytest.mark.few(2)
def test_architecture_is_fully_slimmed_and_exact(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', LARGER)
def test_larger_architecture_is_fully_slimmed_and_exact(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', WITH_WEIGHT_STANDARDISATION)
def test_architecture_with_weight_standardisation_is_fully_slimmed_and_exact(name):
    check(name, only_outputs=False)
