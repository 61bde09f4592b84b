"""Residual networks with pre-activation for small images, `preactresnet<depth>_cifar` in timm's registry.

Source: K. He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016, arXiv 1603.05027 (section 4; batch-norm
and activation after the last block, appendix). PreActResNet-18 is that of the Mixup papers: the channels of ImageNet's
ResNet-18 behind a 3x3 stem. Public code leaves out its last batch-norm and activation; here they are, as in the paper.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from torch import nn

from regaug.models.staged import StagedNet, cifar_cfg, create_staged

__all__ = ['PreActBlock', 'PreActResNet']


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch-norm and ReLU, and a shortcut.

    Where the width or the resolution changes, the shortcut is a 1x1 convolution of the pre-activated input, as in the
    authors' code; elsewhere it is the input itself.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        conv_drop_rate: Probability of dropout between the convolutions, after the ReLU (wide residual networks,
            section 2.4).
        drop_path_rate: Probability of dropping the residual branch (stochastic depth).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        stride: int = 1,
        conv_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        self.norm1 = nn.BatchNorm2d(in_channels, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False, **dd)
        self.norm2 = nn.BatchNorm2d(out_channels, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(conv_drop_rate) if conv_drop_rate > 0 else nn.Identity()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False, **dd)
        self.drop_path = DropPath(drop_path_rate) if drop_path_rate > 0 else nn.Identity()
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        preact = self.act1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(preact)
        residual = self.conv2(self.drop(self.act2(self.norm2(self.conv1(preact)))))
        return self.drop_path(residual) + shortcut


class PreActResNet(StagedNet):
    """Residual network with pre-activation.

    Args:
        blocks_per_stage: Blocks of each stage.
        channels: Channels of the stages.
        strides: Strides of the stages.
        stem_channels: Channels of the first convolution.
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the input images.
        global_pool: timm's pooling type.
        drop_rate: Probability of dropout before the classifier, as in timm's other models (`--drop`).
        conv_drop_rate: Probability of dropout between the convolutions of a block, the papers' dropout
            (`--model-kwargs conv_drop_rate=0.3`).
        drop_path_rate: Probability of dropping the residual branch of the last block; it rises linearly from 0 at the
            first block.
    """

    def __init__(
        self,
        *,
        blocks_per_stage: int,
        channels: Sequence[int],
        strides: Sequence[int] = (1, 2, 2),
        stem_channels: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        conv_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | None = None,
        dtype: Any = None,
    ):
        dd = {'device': device, 'dtype': dtype}
        rates = iter(calculate_drop_path_rates(drop_path_rate, blocks_per_stage * len(channels)))
        stages, in_channels = [], stem_channels
        for out_channels, stride in zip(channels, strides, strict=True):
            blocks = [
                PreActBlock(
                    out_channels if block else in_channels,
                    out_channels,
                    stride=1 if block else stride,
                    conv_drop_rate=conv_drop_rate,
                    drop_path_rate=next(rates),
                    **dd,
                )
                for block in range(blocks_per_stage)
            ]
            stages.append(blocks)
            in_channels = out_channels
        super().__init__(
            nn.Conv2d(in_chans, stem_channels, 3, padding=1, bias=False, **dd),
            stages,
            norm=nn.BatchNorm2d(channels[-1], **dd),
            act=nn.ReLU(inplace=True),
            channels=channels,
            strides=strides,
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            drop_rate=drop_rate,
        )


default_cfgs = generate_default_cfgs(
    {
        'preactresnet18_cifar.untrained': cifar_cfg(pool_size=(4, 4), paper_ids='arXiv:1603.05027'),
        'preactresnet110_cifar.untrained': cifar_cfg(paper_ids='arXiv:1603.05027'),
    }
)


@register_model
def preactresnet18_cifar(pretrained: bool = False, **kwargs) -> PreActResNet:
    """PreActResNet-18, 11.2 million parameters at 10 classes."""
    shape = {
        'blocks_per_stage': 2,
        'channels': (64, 128, 256, 512),
        'strides': (1, 2, 2, 2),
        'stem_channels': 64,
    }
    return create_staged(PreActResNet, 'preactresnet18_cifar', pretrained, num_stages=4, **{**shape, **kwargs})


@register_model
def preactresnet110_cifar(pretrained: bool = False, **kwargs) -> PreActResNet:
    """PreActResNet-110, 1.7 million parameters at 10 classes."""
    shape = {'blocks_per_stage': 18, 'channels': (16, 32, 64)}
    return create_staged(PreActResNet, 'preactresnet110_cifar', pretrained, **{**shape, **kwargs})
