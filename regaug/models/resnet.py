"""Residual networks for small images, `resnet18_cifar`, `resnet50_cifar` and `resnet110_cifar` in timm's registry.

Source: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385 (section 4.2 for
ResNet-110). ResNet-18 and ResNet-50 for CIFAR are timm's with a 3x3 stem of stride 1 and without pooling in it, as the
augmentation papers use them.
"""

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from regaug.models.staged import StagedNet, add_padded, cifar_cfg, create_staged

__all__ = ['CifarResNet', 'SmallStemResNet']

_CHANNELS = (16, 32, 64)
_STRIDES = (1, 2, 2)


class SmallStemResNet(ResNet):
    """timm's ResNet with a 3x3 stem of stride 1 and without pooling in the stem.

    Args:
        **kwargs: Arguments of timm's `ResNet`. No batch-norm starts at zero unless `zero_init_last` says so.
    """

    def __init__(self, block: type, layers: tuple[int, ...], in_chans: int = 3, zero_init_last: bool = False, **kwargs):
        super().__init__(block, layers, in_chans=in_chans, zero_init_last=zero_init_last, **kwargs)
        dd = {'device': self.conv1.weight.device, 'dtype': self.conv1.weight.dtype}
        self.conv1 = nn.Conv2d(in_chans, self.conv1.out_channels, 3, padding=1, bias=False, **dd)
        self.maxpool = nn.Identity()
        nn.init.kaiming_normal_(self.conv1.weight, mode='fan_out', nonlinearity='relu')
        for index, info in enumerate(self.feature_info):
            info['reduction'] = 2 ** max(index - 1, 0)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch-norm; the last ReLU comes after the shortcut is added.

    The shortcut has no weights (option A): a smaller map takes every second pixel, and zeros stand for the channels
    that are new.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        drop_path_rate: Probability of dropping the residual branch (stochastic depth).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False, **dd)
        self.norm1 = nn.BatchNorm2d(out_channels, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(out_channels, **dd)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.act2 = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        shortcut = x if self.stride == 1 else x[:, :, :: self.stride, :: self.stride]
        return self.act2(add_padded(self.drop_path(residual), shortcut))


class CifarResNet(StagedNet):
    """Residual network of three stages with 16, 32 and 64 channels.

    Args:
        depth: Layers with weights, 6 n + 2 for n blocks a stage (20, 56, 110, ...).
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the input images.
        global_pool: timm's pooling type.
        drop_rate: Probability of dropout before the classifier, as in timm's other models (`--drop`).
        drop_path_rate: Probability of dropping the residual branch of the last block; it rises linearly from 0 at the
            first block.
    """

    def __init__(
        self,
        *,
        depth: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        assert (depth - 2) % 6 == 0, f'depth {depth} is not 6 n + 2'
        dd = {'device': device, 'dtype': dtype}
        num_blocks = (depth - 2) // 6
        rates = iter(calculate_drop_path_rates(drop_path_rate, num_blocks * len(_CHANNELS)))
        stages, in_channels = [], _CHANNELS[0]
        for out_channels, stride in zip(_CHANNELS, _STRIDES, strict=True):
            blocks = [
                ResidualBlock(
                    out_channels if block else in_channels,
                    out_channels,
                    stride=1 if block else stride,
                    drop_path_rate=next(rates),
                    **dd,
                )
                for block in range(num_blocks)
            ]
            stages.append(blocks)
            in_channels = out_channels
        stem = nn.Sequential(
            nn.Conv2d(in_chans, _CHANNELS[0], 3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(_CHANNELS[0], **dd),
            nn.ReLU(inplace=True),
        )
        super().__init__(
            stem,
            stages,
            norm=nn.Identity(),
            act=nn.Identity(),
            channels=_CHANNELS,
            strides=_STRIDES,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


_PAPER = 'arXiv:1512.03385'
default_cfgs = generate_default_cfgs(
    {
        'resnet18_cifar.untrained': cifar_cfg(pool_size=(4, 4), first_conv='conv1', paper_ids=_PAPER),
        'resnet50_cifar.untrained': cifar_cfg(pool_size=(4, 4), first_conv='conv1', paper_ids=_PAPER),
        'resnet110_cifar.untrained': cifar_cfg(first_conv='stem.0', paper_ids=_PAPER),
    }
)


@register_model
def resnet18_cifar(pretrained: bool = False, **kwargs) -> SmallStemResNet:
    """ResNet-18 for small images, 11.2 million parameters at 10 classes."""
    shape = {'block': BasicBlock, 'layers': (2, 2, 2, 2)}
    return build_model_with_cfg(SmallStemResNet, 'resnet18_cifar', pretrained, **{**shape, **kwargs})


@register_model
def resnet50_cifar(pretrained: bool = False, **kwargs) -> SmallStemResNet:
    """ResNet-50 for small images, 23.5 million parameters at 10 classes."""
    shape = {'block': Bottleneck, 'layers': (3, 4, 6, 3)}
    return build_model_with_cfg(SmallStemResNet, 'resnet50_cifar', pretrained, **{**shape, **kwargs})


@register_model
def resnet110_cifar(pretrained: bool = False, **kwargs) -> CifarResNet:
    """ResNet-110, 1.7 million parameters at 10 classes."""
    return create_staged(CifarResNet, 'resnet110_cifar', pretrained, **{'depth': 110, **kwargs})
