import copy

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn import functional as F

import regaug  # noqa: F401  (registers the models)
from regaug.models.wide_resnet import WideResNet


def small_net(**kwargs):
    return WideResNet(**{'depth': 10, 'width_factor': 2, **kwargs})


def randomize_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    return model


def paper_forward(state, input, *, blocks_per_stage):
    """The paper's network, batch statistics, written with functional operations only."""

    def conv(name, x, stride=1):
        weight = state[f'{name}.weight']
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm_relu(name, x):
        return F.batch_norm(x, None, None, state[f'{name}.weight'], state[f'{name}.bias'], training=True).relu()

    x = conv('stem', input)
    for stage in range(3):
        for block in range(blocks_per_stage):
            name = f'stages.{stage}.{block}'
            stride = 2 if stage > 0 and block == 0 else 1
            preact = norm_relu(f'{name}.norm1', x)
            shortcut = conv(f'{name}.shortcut', preact, stride) if block == 0 else x
            y = conv(f'{name}.conv1', preact, stride)
            x = conv(f'{name}.conv2', norm_relu(f'{name}.norm2', y)) + shortcut
    pooled = norm_relu('norm', x).mean(dim=(2, 3))
    return pooled @ state['fc.weight'].T + state['fc.bias']


def test_outputs_and_gradients_equal_a_plain_writing_of_the_paper():
    model = randomize_norms(small_net(depth=16)).double()
    input = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    output, expected = model(input), paper_forward(state, input, blocks_per_stage=2)
    torch.testing.assert_close(output, expected)

    target = torch.tensor([0, 3, 5, 9])
    F.cross_entropy(output, target).backward()
    F.cross_entropy(expected, target).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, state[name].grad, msg=name)


def test_class_and_channel_counts_given_to_create_model_hold():
    model = timm.create_model('wrn16_2', num_classes=100, in_chans=1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 100)


def test_convolutions_start_with_fan_out_variance():
    model = timm.create_model('wrn28_2')
    conv = model.stages[2][1].conv1
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert model.fc.bias.eq(0).all()


def test_head_applied_to_features_is_the_forward_pass():
    model = small_net().eval()
    input = torch.randn(2, 3, 32, 32)
    features = model.forward_features(input)
    assert features.shape == (2, model.num_features, 8, 8)
    assert features.min() == 0
    pre_logits = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pre_logits, features.mean(dim=(2, 3)))
    torch.testing.assert_close(model.get_classifier()(pre_logits), model(input))


def test_reset_classifier_changes_classes_and_pooling_only():
    model = small_net()
    stem = model.stem.weight.clone()
    model.reset_classifier(7, 'catavgmax')
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.get_classifier().in_features == model.head_hidden_size == 2 * model.num_features
    assert model.get_classifier(name_only=True) == 'fc'
    torch.testing.assert_close(model.stem.weight, stem)

    model.reset_classifier(0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 2 * model.num_features)


def test_gradient_checkpointing_changes_no_gradient():
    model = small_net().double()
    recomputing = copy.deepcopy(model)
    recomputing.set_grad_checkpointing()
    input = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    calls = []
    recomputing.stages[0][0].conv1.register_forward_hook(lambda *_: calls.append(1))
    for each in (model, recomputing):
        each(input).square().sum().backward()
    assert len(calls) == 2
    for parameter, other in zip(model.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)


def test_feature_info_describes_the_stage_outputs():
    extractor = timm.create_model('wrn16_2', features_only=True)
    outputs = extractor(torch.randn(1, 3, 32, 32))
    assert [output.shape[1] for output in outputs] == extractor.feature_info.channels() == [32, 64, 128]
    assert [32 // output.shape[2] for output in outputs] == extractor.feature_info.reduction() == [1, 2, 4]


def test_drop_path_rises_linearly_from_the_first_block_to_the_last():
    model = timm.create_model('wrn16_2', drop_path_rate=0.5)
    rates = [getattr(block.drop_path, 'drop_prob', 0.0) for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])


def test_dropped_block_passes_its_shortcut():
    model = randomize_norms(small_net(depth=16))
    block = model.stages[0][1]
    block.drop_path = DropPath(1.0)
    input = torch.randn(2, 32, 8, 8)
    torch.testing.assert_close(block(input), input)


def test_dropout_sits_between_the_convolutions_of_a_block():
    block = small_net(depth=16, conv_drop_rate=0.5).stages[0][1]
    seen = {}
    block.norm2.register_forward_hook(lambda module, args, output: seen.update(before=output.relu()))
    block.conv2.register_forward_hook(lambda module, args, output: seen.update(after=args[0]))
    block(torch.randn(4, 32, 16, 16))
    kept = seen['after'] != 0
    torch.testing.assert_close(seen['after'][kept], 2 * seen['before'][kept])
    share_kept = kept.sum() / (seen['before'] > 0).sum()
    assert share_kept.item() == pytest.approx(0.5, abs=0.03)


def test_drop_rate_is_dropout_before_the_classifier():
    model = small_net(drop_rate=0.5)
    pre_logits = model.forward_head(torch.ones(4, model.num_features, 8, 8), pre_logits=True)
    assert set(pre_logits.unique().tolist()) == {0.0, 2.0}


def test_layer_decay_goes_by_blocks():
    model = timm.create_model('wrn16_2')
    groups = param_groups_layer_decay(model, weight_decay=1e-4, layer_decay=0.5)
    scale = {id(parameter): group['lr_scale'] for group in groups for parameter in group['params']}
    ordered = [model.stem, *(block.conv1 for stage in model.stages for block in stage), model.fc]
    assert [scale[id(layer.weight)] for layer in ordered] == [0.5**power for power in range(7, -1, -1)]


@pytest.mark.filterwarnings('ignore:.*torch.jit')  # deprecated by torch, still an option of timm's scripts
def test_scripted_model_gives_the_same_output():
    model = timm.create_model('wrn16_2', scriptable=True).eval()
    input = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(torch.jit.script(model)(input), model(input))
