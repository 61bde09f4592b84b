"""Pyramidal residual networks for small images, `pyramidnet200_a240_cifar` in timm's registry.

Source: D. Han et al., "Deep Pyramidal Residual Networks", CVPR 2017, arXiv 1610.02915 (sections 2 and 3, additive
widening), with ShakeDrop (Y. Yamada et al., arXiv 1802.02375) on request.
"""

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F

from regaug.models.shake import ShakeDrop
from regaug.models.staged import StagedNet, add_padded, cifar_cfg, create_staged

__all__ = ['PyramidNet']

_STEM_CHANNELS = 16
_STRIDES = (1, 2, 2)
_EXPANSION = 4


class PyramidBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch-norm before the first one and after each (figure 6d).

    The shortcut has no weights: a smaller map is the mean of every four pixels, and zeros stand for the channels that
    are new.

    Args:
        in_channels: Channels of the input.
        channels: Channels of the bottleneck; the output has four times as many.
        stride: Stride of the 3x3 convolution and of the shortcut.
        shakedrop: Probability with which ShakeDrop gives the residual branch a random weight.
        drop_path_rate: Probability of dropping the residual branch (stochastic depth).
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int = 1,
        shakedrop: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.stride = stride
        self.norm1 = nn.BatchNorm2d(in_channels, **dd)
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(channels, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=stride, padding=1, bias=False, **dd)
        self.norm3 = nn.BatchNorm2d(channels, **dd)
        self.act3 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(channels, _EXPANSION * channels, 1, bias=False, **dd)
        self.norm4 = nn.BatchNorm2d(_EXPANSION * channels, **dd)
        self.shake_drop = ShakeDrop(shakedrop) if shakedrop > 0 else nn.Identity()
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(self.norm1(x))
        residual = self.conv2(self.act2(self.norm2(residual)))
        residual = self.norm4(self.conv3(self.act3(self.norm3(residual))))
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, self.stride, ceil_mode=True)
        return add_padded(self.drop_path(self.shake_drop(residual)), shortcut)


class PyramidNet(StagedNet):
    """Pyramidal residual network of bottlenecks: every block is wider than the one before.

    Args:
        depth: Layers with weights, 9 n + 2 for n blocks a stage (164, 200, ...).
        alpha: Channels that all the blocks together add to the 16 of the stem.
        shakedrop: Probability with which ShakeDrop gives the residual branch of the last block a random weight; it
            rises linearly from the first block (0.5 in the papers, `--model-kwargs shakedrop=0.5`).
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
        alpha: int,
        shakedrop: float = 0.0,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        assert (depth - 2) % 9 == 0, f'depth {depth} is not 9 n + 2'
        dd = {'device': device, 'dtype': dtype}
        num_blocks = (depth - 2) // 9
        total = num_blocks * len(_STRIDES)
        rates = calculate_drop_path_rates(drop_path_rate, total)
        blocks, in_channels = [], _STEM_CHANNELS
        for index in range(total):
            channels = round(_STEM_CHANNELS + alpha * (index + 1) / total)
            block = PyramidBottleneck(
                in_channels,
                channels,
                stride=1 if index % num_blocks else _STRIDES[index // num_blocks],
                shakedrop=shakedrop * (index + 1) / total,
                drop_path_rate=rates[index],
                **dd,
            )
            blocks.append(block)
            in_channels = _EXPANSION * channels
        stages = [blocks[start : start + num_blocks] for start in range(0, total, num_blocks)]
        stem = nn.Sequential(
            nn.Conv2d(in_chans, _STEM_CHANNELS, 3, padding=1, bias=False, **dd),
            nn.BatchNorm2d(_STEM_CHANNELS, **dd),
        )
        super().__init__(
            stem,
            stages,
            norm=nn.BatchNorm2d(in_channels, **dd),
            act=nn.ReLU(inplace=True),
            channels=[stage[-1].conv3.out_channels for stage in stages],
            strides=_STRIDES,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


default_cfgs = generate_default_cfgs(
    {'pyramidnet200_a240_cifar.untrained': cifar_cfg(first_conv='stem.0', paper_ids='arXiv:1610.02915')}
)


@register_model
def pyramidnet200_a240_cifar(pretrained: bool = False, **kwargs) -> PyramidNet:
    """PyramidNet-200 with a widening of 240, 26.8 million parameters at 10 classes."""
    shape = {'depth': 200, 'alpha': 240}
    return create_staged(PyramidNet, 'pyramidnet200_a240_cifar', pretrained, **{**shape, **kwargs})
