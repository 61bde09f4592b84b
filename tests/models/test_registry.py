"""The networks of the papers in timm's registry: sizes, configuration, and the interface of timm's models."""

import copy

import pytest
import timm
import torch
from timm.data import resolve_data_config
from timm.models import is_model
from torch import nn

import regaug  # noqa: F401  (registers the models)

# Trainable parameters, and where they are published. The layers' sizes leave no other number for a rounded one.
COUNTS = {
    'wrn28_10': 36_479_194,  # 36.5 M, wide residual networks, table 5
    'wrn28_2': 1_467_610,  # 1.5 M, Oliver et al. 2018
    'wrn16_2': 691_674,  # 0.7 M, wide residual networks, table 4
    'wrn37_2': 5_929_434,  # the network of MixMatch's STL-10 results
    'resnet18_cifar': 11_173_962,  # 11,173,962: kuangliu/pytorch-cifar, exact
    'resnet50_cifar': 23_520_842,  # 23,520,842: kuangliu/pytorch-cifar, exact
    'resnet110_cifar': 1_727_962,  # 1.7 M, He et al. 2015, table 6 (shortcuts without weights)
    'preactresnet18_cifar': 11_172_170,  # 11,171,146 in kuangliu/pytorch-cifar, which has no batch-norm at the end
    'preactresnet110_cifar': 1_730_522,  # 1,730,522: osmr/imgclsmob, exact (1.7 M, He et al. 2016)
    'pyramidnet200_a240_cifar': 26_752_702,  # 26,752,702: osmr/imgclsmob, exact
    'shake_shake26_2x32d_cifar': 2_923_162,  # 2,923,162: osmr/imgclsmob, exact
    'shake_shake26_2x96d_cifar': 26_192_922,  # 26.2 M, Gastaldi 2017, table 4
    'proxylessnas_cpu': 4_361_648,  # 4.36 M in the authors' training log; 4,361,648: osmr/imgclsmob
    'proxylessnas_gpu': 7_119_848,  # 7.12 M in the authors' training log; 7,119,848: osmr/imgclsmob
    'proxylessnas_mobile': 6_857_568,  # 6.86 M in MaxUp, table 2; 6,857,568: osmr/imgclsmob, "mobile14"
}
BATCH_NORM_AT_THE_END = 2 * 512
# Few blocks, so that a pass takes no time; the others are small already.
SHALLOW = {
    'resnet110_cifar': {'depth': 20},
    'preactresnet110_cifar': {'blocks_per_stage': 2},
    'pyramidnet200_a240_cifar': {'depth': 29, 'alpha': 60},
    'shake_shake26_2x32d_cifar': {'depth': 14, 'width': 8},
    'shake_shake26_2x96d_cifar': {'depth': 14, 'width': 12},
    'wrn28_10': {'depth': 10, 'width_factor': 2},
    'wrn28_2': {'depth': 16},
    'wrn37_2': {'depth': 21},
    'preactresnet18_cifar': {'channels': (16, 32, 64, 128)},
    'resnet18_cifar': {'channels': (16, 32, 64, 128)},
    'resnet50_cifar': {'channels': (16, 32, 64, 128), 'layers': (1, 2, 1, 1)},
}
by_name = pytest.mark.parametrize('name', COUNTS)
# timm's own class, with the same interface for each of them
SAME_CLASS = ('proxylessnas_cpu', 'proxylessnas_mobile')
by_class = pytest.mark.parametrize('name', [name for name in COUNTS if name not in SAME_CLASS])


def shallow(name, **kwargs):
    return timm.create_model(name, **{'num_classes': 10, **SHALLOW.get(name, {}), **kwargs})


@by_name
def test_network_has_the_published_parameter_count(name):
    classes = 1000 if name.startswith('proxylessnas') else 10
    model = timm.create_model(name, num_classes=classes, device='meta')
    assert sum(parameter.numel() for parameter in model.parameters()) == COUNTS[name]


def test_final_batch_norm_is_all_that_public_code_of_the_preactivated_network_lacks():
    assert COUNTS['preactresnet18_cifar'] - BATCH_NORM_AT_THE_END == 11_171_146


def test_every_network_of_the_package_is_checked_here():
    found = {name for name in timm.list_models() if '_cifar' in name or name.startswith(('wrn', 'proxylessnas'))}
    assert found == set(COUNTS)
    assert all(is_model(name) for name in COUNTS)


@pytest.mark.parametrize('name', [name for name in COUNTS if name not in ('wrn37_2',) and 'proxyless' not in name])
def test_networks_for_cifar_have_its_size_and_statistics(name):
    config = resolve_data_config({}, model=shallow(name))
    assert (config['input_size'], config['crop_pct']) == ((3, 32, 32), 1.0)
    assert config['mean'] == pytest.approx((0.4914, 0.4824, 0.4467), abs=1e-4)
    assert config['std'] == pytest.approx((0.2471, 0.2435, 0.2616), abs=1e-4)


def test_other_networks_have_the_size_of_their_data():
    assert resolve_data_config({}, model=timm.create_model('wrn37_2'))['input_size'] == (3, 96, 96)
    assert resolve_data_config({}, model=timm.create_model('proxylessnas_gpu'))['input_size'] == (3, 224, 224)


@by_class
def test_class_and_channel_counts_given_to_create_model_hold(name):
    model = shallow(name, num_classes=7, in_chans=1).eval()
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    assert model.default_cfg['first_conv'] in dict(model.named_modules())
    assert model.get_submodule(model.default_cfg['first_conv']).in_channels == 1
    assert model.get_submodule(model.default_cfg['classifier']) is model.get_classifier()


@by_class
def test_head_applied_to_features_is_the_forward_pass(name):
    model = shallow(name).eval()
    input = torch.randn(2, 3, 32, 32)
    features = model.forward_features(input)
    assert features.shape[:2] == (2, model.num_features)
    pre_logits = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pre_logits, features.mean(dim=(2, 3)))
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(input))


@by_class
def test_reset_classifier_changes_classes_only(name):
    model = shallow(name).eval()
    before = {key: value for key, value in model.state_dict().items() if value.shape[:1] != (10,)}
    model.reset_classifier(3)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert model.num_classes == 3
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, model.num_features)


@by_class
@pytest.mark.few(5)
def test_gradient_checkpointing_changes_no_gradient(name):
    model = shallow(name).double()
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    input = torch.randn(4, 3, 32, 32, dtype=torch.float64)
    passes = []
    norms = [part for part in recomputing.modules() if isinstance(part, nn.BatchNorm2d)]
    norms[len(norms) // 2].register_forward_hook(lambda *_: passes.append(1))
    for each in (model, recomputing):
        torch.manual_seed(3)  # of the networks that draw random weights
        each(input).square().sum().backward()
    assert len(passes) == 2
    for parameter, other in zip(model.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


@by_class
def test_feature_info_describes_the_outputs_of_the_stages(name):
    extractor = shallow(name, features_only=True)
    outputs = extractor(torch.randn(1, 3, 64, 64))
    assert [output.shape[1] for output in outputs] == extractor.feature_info.channels()
    assert [64 // output.shape[2] for output in outputs] == extractor.feature_info.reduction()
    assert len(outputs) >= 3


@by_name
@pytest.mark.few(6)
def test_convolutions_start_with_fan_out_variance_and_batch_norms_at_one(name):
    model = timm.create_model(name, num_classes=10)
    ratios = []
    for part in model.modules():
        if isinstance(part, nn.Conv2d) and part.weight.numel() > 2000:
            fan_out = part.kernel_size[0] * part.kernel_size[1] * part.out_channels / part.groups
            ratios.append(part.weight.std().item() / (2 / fan_out) ** 0.5)
        elif isinstance(part, nn.BatchNorm2d):
            assert part.weight.eq(1).all() and part.bias.eq(0).all()
    assert ratios and all(ratio == pytest.approx(1, abs=0.1) for ratio in ratios)
    assert sum(ratios) / len(ratios) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize('name', ['resnet110_cifar', 'preactresnet110_cifar', 'pyramidnet200_a240_cifar'])
def test_drop_path_rises_linearly_from_the_first_block_to_the_last(name):
    model = shallow(name, drop_path_rate=0.4)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.4 * index / (len(rates) - 1) for index in range(len(rates))])
