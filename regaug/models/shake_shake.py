"""Shake-Shake networks for small images, `shake_shake26_2x<width>d_cifar` in timm's registry.

Source: X. Gastaldi, "Shake-Shake regularization", arXiv 1705.07485 (section 2.1), and the author's code for the order
of the layers.
"""

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F

from regaug.models.shake import ShakeShake
from regaug.models.staged import StagedNet, cifar_cfg, create_staged

__all__ = ['ShakeShakeNet']

_STEM_CHANNELS = 16
_STRIDES = (1, 2, 2)


class Branch(nn.Sequential):
    """A residual branch: 3x3 convolution, batch-norm, ReLU, 3x3 convolution, batch-norm."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, **dd):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False, **dd),
            nn.BatchNorm2d(out_channels, **dd),
            nn.ReLU(inplace=True),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(out_channels, **dd),
        )


class TwoPathShortcut(nn.Module):
    """Shortcut to another width: half of the channels see every second pixel, the others the pixels between."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, **dd):
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False, **dd)
        self.conv2 = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False, **dd)
        self.norm = nn.BatchNorm2d(out_channels, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shifted = F.pad(x, (1, -1, 1, -1))  # one pixel to the right and down
        paths = [
            conv(path[:, :, :: self.stride, :: self.stride]) for conv, path in ((self.conv1, x), (self.conv2, shifted))
        ]
        return self.norm(torch.cat(paths, dim=1))


class ShakeShakeBlock(nn.Module):
    """Two residual branches behind a ReLU, mixed at random, and a shortcut.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolutions and of the shortcut.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.branch1 = Branch(in_channels, out_channels, stride, **dd)
        self.branch2 = Branch(in_channels, out_channels, stride, **dd)
        self.shake = ShakeShake()
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = TwoPathShortcut(in_channels, out_channels, stride, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        active = F.relu(x)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return shortcut + self.shake(self.branch1(active), self.branch2(active))


class ShakeShakeNet(StagedNet):
    """Shake-Shake network with two residual branches.

    Args:
        depth: Layers with weights, 6 n + 2 for n blocks a stage (26).
        width: Channels of the first stage; the others have 2 and 4 times as many.
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the input images.
        global_pool: timm's pooling type.
        drop_rate: Probability of dropout before the classifier, as in timm's other models (`--drop`).
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        assert (depth - 2) % 6 == 0, f'depth {depth} is not 6 n + 2'
        dd = {'device': device, 'dtype': dtype}
        channels = [width, 2 * width, 4 * width]
        stages, in_channels = [], _STEM_CHANNELS
        for out_channels, stride in zip(channels, _STRIDES, strict=True):
            blocks = [
                ShakeShakeBlock(
                    out_channels if block else in_channels, out_channels, stride=1 if block else stride, **dd
                )
                for block in range((depth - 2) // 6)
            ]
            stages.append(blocks)
            in_channels = out_channels
        stem = nn.Sequential(
            nn.Conv2d(in_chans, _STEM_CHANNELS, 3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(_STEM_CHANNELS, **dd),
        )
        super().__init__(
            stem,
            stages,
            norm=nn.Identity(),
            act=nn.ReLU(inplace=True),
            channels=channels,
            strides=_STRIDES,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


_CFG = cifar_cfg(first_conv='stem.0', paper_ids='arXiv:1705.07485')
default_cfgs = generate_default_cfgs(
    {'shake_shake26_2x32d_cifar.untrained': _CFG, 'shake_shake26_2x96d_cifar.untrained': _CFG}
)


@register_model
def shake_shake26_2x32d_cifar(pretrained: bool = False, **kwargs) -> ShakeShakeNet:
    """Shake-Shake 26 2x32d, 2.9 million parameters at 10 classes."""
    shape = {'depth': 26, 'width': 32}
    return create_staged(ShakeShakeNet, 'shake_shake26_2x32d_cifar', pretrained, **{**shape, **kwargs})


@register_model
def shake_shake26_2x96d_cifar(pretrained: bool = False, **kwargs) -> ShakeShakeNet:
    """Shake-Shake 26 2x96d, 26.2 million parameters at 10 classes."""
    shape = {'depth': 26, 'width': 96}
    return create_staged(ShakeShakeNet, 'shake_shake26_2x96d_cifar', pretrained, **{**shape, **kwargs})
