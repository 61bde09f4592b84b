"""Outputs and gradients against plain writings of the papers' networks, in float64 with batch statistics."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from regaug.models.shake import ShakeDrop, ShakeShake
from tests.models.test_registry import shallow

ALPHA, BETA = 0.3, 0.8


@pytest.fixture
def fixed_weights(monkeypatch):
    """Branch weights that are the same in every pass: ALPHA forward, BETA backward."""

    def draw(module, x):
        return x.new_full((len(x), 1, 1, 1), ALPHA), x.new_full((len(x), 1, 1, 1), BETA)

    for module in (ShakeShake, ShakeDrop):
        monkeypatch.setattr(module, 'draw', draw)


def randomize_norms(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    return model.double()


class Plain:
    """Functional operations on the parameters of a model."""

    def __init__(self, model):
        self.state = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}

    def conv(self, name, x, stride=1, **kwargs):
        weight = self.state[f'{name}.weight']
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2, **kwargs)

    def norm(self, name, x, eps=1e-5):
        weight, bias = self.state[f'{name}.weight'], self.state[f'{name}.bias']
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

    def classify(self, x, name='fc'):
        return x.mean(dim=(2, 3)) @ self.state[f'{name}.weight'].T + self.state[f'{name}.bias']


def zero_padded(x, channels):
    return torch.cat([x, torch.zeros(x.shape[0], channels - x.shape[1], *x.shape[2:], dtype=x.dtype)], dim=1)


def plain_resnet(net, x):
    x = net.norm('stem.1', net.conv('stem.0', x)).relu()
    for stage in range(3):
        for block in range(3):
            name, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            y = net.norm(f'{name}.norm1', net.conv(f'{name}.conv1', x, stride)).relu()
            y = net.norm(f'{name}.norm2', net.conv(f'{name}.conv2', y))
            x = (zero_padded(x[:, :, ::stride, ::stride], y.shape[1]) + y).relu()
    return net.classify(x)


def plain_preact_resnet(net, x):
    x = net.conv('stem', x)
    for stage in range(4):
        for block in range(2):
            name, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            preact = net.norm(f'{name}.norm1', x).relu()
            if f'{name}.shortcut.weight' in net.state:
                x = net.conv(f'{name}.shortcut', preact, stride)
            y = net.conv(f'{name}.conv1', preact, stride)
            x = x + net.conv(f'{name}.conv2', net.norm(f'{name}.norm2', y).relu())
    return net.classify(net.norm('norm', x).relu())


def plain_pyramid_net(net, x, weigh=lambda x, share: x):
    x = net.norm('stem.1', net.conv('stem.0', x))
    for stage in range(3):
        for block in range(3):
            name, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            y = net.conv(f'{name}.conv1', net.norm(f'{name}.norm1', x))
            y = net.conv(f'{name}.conv2', net.norm(f'{name}.norm2', y).relu(), stride)
            y = net.conv(f'{name}.conv3', net.norm(f'{name}.norm3', y).relu())
            y = weigh(net.norm(f'{name}.norm4', y), (3 * stage + block + 1) / 9)
            x = y + zero_padded(F.avg_pool2d(x, 2) if stride == 2 else x, y.shape[1])
    return net.classify(net.norm('norm', x).relu())


class Reweigh(torch.autograd.Function):
    """x times ALPHA, whose gradient is times BETA; with `complement` times 1 - ALPHA and 1 - BETA."""

    @staticmethod
    def forward(ctx, x, complement):
        ctx.complement = complement
        return x * (1 - ALPHA if complement else ALPHA)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (1 - BETA if ctx.complement else BETA), None


def plain_shake_shake(net, x):
    def branch(name, x, stride):
        y = net.norm(f'{name}.1', net.conv(f'{name}.0', x.relu(), stride)).relu()
        return net.norm(f'{name}.4', net.conv(f'{name}.3', y))

    x = net.norm('stem.1', net.conv('stem.0', x))
    for stage in range(3):
        for block in range(2):
            name, stride = f'stages.{stage}.{block}', 2 if stage and not block else 1
            first = Reweigh.apply(branch(f'{name}.branch1', x, stride), False)
            second = Reweigh.apply(branch(f'{name}.branch2', x, stride), True)
            if not block:
                shifted = torch.zeros_like(x)
                shifted[:, :, 1:, 1:] = x[:, :, :-1, :-1]
                paths = [
                    net.conv(f'{name}.shortcut.conv1', F.avg_pool2d(x.relu(), 1, stride)),
                    net.conv(f'{name}.shortcut.conv2', F.avg_pool2d(shifted.relu(), 1, stride)),
                ]
                x = net.norm(f'{name}.shortcut.norm', torch.cat(paths, dim=1))
            x = x + first + second
    return net.classify(x.relu())


def plain_proxyless_gpu(net, x):
    """Blocks as (kernel, stride, shortcut), by the authors' configuration of the GPU network."""
    stages = [
        [(3, 1, False)],
        [(5, 2, False)],
        [(7, 2, False), (3, 1, True)],
        [(7, 2, False), (5, 1, True)],
        [(5, 1, False), (3, 1, True), (5, 1, True)],
        [(7, 2, False), (7, 1, True), (7, 1, True), (5, 1, True)],
        [(7, 1, False)],
    ]

    def norm(name, x):
        return net.norm(name, x, eps=1e-3)

    x = norm('bn1', net.conv('conv_stem', x, 2)).clamp(0, 6)
    for stage, blocks in enumerate(stages):
        for block, (kernel, stride, shortcut) in enumerate(blocks):
            name, y = f'blocks.{stage}.{block}', x
            if stage:
                y = norm(f'{name}.bn1', net.conv(f'{name}.conv_pw', y)).clamp(0, 6)
            assert net.state[f'{name}.conv_dw.weight'].shape[1:] == (1, kernel, kernel)
            y = net.conv(f'{name}.conv_dw', y, stride, groups=y.shape[1])
            y = norm(f'{name}.bn2' if stage else f'{name}.bn1', y).clamp(0, 6)
            y = net.conv(f'{name}.conv_pwl' if stage else f'{name}.conv_pw', y)
            y = norm(f'{name}.bn3' if stage else f'{name}.bn2', y)
            x = x + y if shortcut else y
    x = norm('bn2', net.conv('conv_head', x)).clamp(0, 6)
    return net.classify(x, 'classifier')


PLAIN = {
    'resnet110_cifar': plain_resnet,
    'preactresnet18_cifar': plain_preact_resnet,
    'pyramidnet200_a240_cifar': plain_pyramid_net,
    'shake_shake26_2x32d_cifar': plain_shake_shake,
    'proxylessnas_gpu': plain_proxyless_gpu,
}


def assert_same_outputs_and_gradients(model, plain, size=32):
    net = Plain(model)
    input = torch.randn(4, 3, size, size, dtype=torch.float64)
    output, expected = model(input), plain(net, input)
    torch.testing.assert_close(output, expected)
    target = torch.tensor([0, 3, 5, 9])
    F.cross_entropy(output, target).backward()
    F.cross_entropy(expected, target).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, net.state[name].grad, msg=name)


@pytest.mark.parametrize('name', PLAIN)
def test_outputs_and_gradients_equal_a_plain_writing_of_the_paper(name, fixed_weights):
    assert_same_outputs_and_gradients(randomize_norms(shallow(name)), PLAIN[name], size=64 if 'proxy' in name else 32)


def test_shakedrop_weighs_the_branches_of_the_pyramid(fixed_weights):
    model = randomize_norms(shallow('pyramidnet200_a240_cifar', shakedrop=0.5))

    def plain(net, x):
        return plain_pyramid_net(net, x, weigh=lambda y, share: Reweigh.apply(y, False))

    assert_same_outputs_and_gradients(model, plain)


def test_branches_weighed_by_shakedrop_have_their_expected_weight_in_evaluation():
    plain_model = randomize_norms(shallow('pyramidnet200_a240_cifar'))
    model = shallow('pyramidnet200_a240_cifar', shakedrop=0.5).double()
    model.load_state_dict(plain_model.state_dict())
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.train()
        elif isinstance(part, ShakeDrop):
            part.eval()
    input = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = plain_pyramid_net(Plain(model), input, weigh=lambda y, share: (1 - 0.5 * share) * y)
    torch.testing.assert_close(model(input), expected)


@pytest.mark.parametrize('name, block', [('resnet18_cifar', 'BasicBlock'), ('resnet50_cifar', 'Bottleneck')])
def test_resnet_for_small_images_is_torchvisions_behind_another_stem(name, block):
    layers = (1, 2, 1, 1)
    model = timm.create_model(name, layers=layers).double()
    reference = torchvision.models.ResNet(getattr(torchvision.models.resnet, block), layers, num_classes=10).double()
    reference.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False).double()
    reference.maxpool = nn.Identity()
    reference.load_state_dict(model.state_dict())
    input = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    output, expected = model(input), reference(input)
    torch.testing.assert_close(output, expected)
    output.square().sum().backward()
    expected.square().sum().backward()
    for parameter, other in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad)
