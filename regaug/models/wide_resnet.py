"""Wide residual networks for 32x32 images, `wrn<depth>_<factor>` in timm's registry.

Source: S. Zagoruyko and N. Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146 (section 2, table 1).
timm's `wide_resnet50_2` is another network: an ImageNet ResNet with wider bottlenecks.
"""

import torch
from timm.layers import DropPath, calculate_drop_path_rates, create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import nn
from torch.nn import functional as F

__all__ = ['WideResNet']

_STEM_CHANNELS = 16
_STAGE_CHANNELS = (16, 32, 64)
_STAGE_STRIDES = (1, 2, 2)


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after batch-norm and ReLU, and a shortcut (basic-wide block, figure 1c).

    Where the width or the resolution changes, the shortcut is a 1x1 convolution of the pre-activated input, as in the
    authors' code; elsewhere it is the input itself.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        stride: Stride of the first convolution and of the shortcut.
        conv_drop_rate: Probability of dropout between the convolutions, after the ReLU (section 2.4).
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
        device=None,
        dtype=None,
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


class WideResNet(nn.Module):
    """Wide residual network with timm's model interface.

    Args:
        depth: Layers with weights, 6 n + 4 for n blocks a stage (28, 16, ...).
        width_factor: Widening factor k; the stages have 16 k, 32 k and 64 k channels.
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
        depth: int,
        width_factor: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = 'avg',
        drop_rate: float = 0.0,
        conv_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device=None,
        dtype=None,
    ):
        super().__init__()
        assert (depth - 4) % 6 == 0, f'depth {depth} is not 6 n + 4'
        dd = {'device': device, 'dtype': dtype}
        num_blocks = (depth - 4) // 6
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.stem = nn.Conv2d(in_chans, _STEM_CHANNELS, 3, padding=1, bias=False, **dd)
        channels, reduction = _STEM_CHANNELS, 1
        stages, self.feature_info = [], []
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, num_blocks * len(_STAGE_CHANNELS))
        for index, (base_channels, stride) in enumerate(zip(_STAGE_CHANNELS, _STAGE_STRIDES, strict=True)):
            out_channels = base_channels * width_factor
            blocks = [
                PreActBlock(
                    out_channels if block else channels,
                    out_channels,
                    stride=1 if block else stride,
                    conv_drop_rate=conv_drop_rate,
                    drop_path_rate=drop_path_rates[index * num_blocks + block],
                    **dd,
                )
                for block in range(num_blocks)
            ]
            stages.append(nn.Sequential(*blocks))
            channels, reduction = out_channels, reduction * stride
            self.feature_info.append({'num_chs': channels, 'reduction': reduction, 'module': f'stages.{index}'})
        self.stages = nn.Sequential(*stages)
        self.norm = nn.BatchNorm2d(channels, **dd)
        self.act = nn.ReLU(inplace=True)

        self.num_features = channels
        self._create_classifier(num_classes, global_pool)
        self.init_weights()

    def _create_classifier(self, num_classes: int, global_pool: str) -> None:
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            device=self.stem.weight.device,
            dtype=self.stem.weight.dtype,
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draws convolutions from a normal distribution scaled by the fan-out and zeroes the classifier's bias.

        As in the authors' code; the classifier's weights keep torch's uniform distribution.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
            elif isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict:
        """Regular expressions by which timm groups parameters into layers (layer decay)."""
        blocks = r'^stages\.(\d+)' if coarse else [(r'^stages\.(\d+)\.(\d+)', None), (r'^norm', (99999,))]
        return {'stem': r'^stem', 'blocks': blocks}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the blocks' activations in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """The classifier, or its name."""
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replaces the classifier, and the pooling if one is given."""
        self.num_classes = num_classes
        self._create_classifier(num_classes, self.global_pool.pool_type if global_pool is None else global_pool)
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] to activated features [B, 64 k, H / 4, W / 4]."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq(self.stages, x, flatten=True)
        else:
            x = self.stages(x)
        return self.act(self.norm(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Features to logits [B, K], or to what the classifier gets with `pre_logits`."""
        x = self.global_pool(x)
        if self.drop_rate > 0:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _cfg(**kwargs) -> dict:
    return {
        'num_classes': 10,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'crop_pct': 1.0,
        'interpolation': 'bicubic',
        # Of CIFAR-10's training images, as in the authors' code.
        'mean': (125.3 / 255, 123.0 / 255, 113.9 / 255),
        'std': (63.0 / 255, 62.1 / 255, 66.7 / 255),
        'first_conv': 'stem',
        'classifier': 'fc',
        'license': 'apache-2.0',
        'paper_ids': 'arXiv:1605.07146',
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {'wrn28_10.untrained': _cfg(), 'wrn28_2.untrained': _cfg(), 'wrn16_2.untrained': _cfg()}
)


def _create_wide_resnet(variant: str, pretrained: bool, **kwargs) -> WideResNet:
    return build_model_with_cfg(
        WideResNet,
        variant,
        pretrained,
        feature_cfg={'out_indices': (0, 1, 2), 'flatten_sequential': True},
        **kwargs,
    )


@register_model
def wrn28_10(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-28-10, 36.5 million parameters at 10 classes."""
    return _create_wide_resnet('wrn28_10', pretrained, **{'depth': 28, 'width_factor': 10, **kwargs})


@register_model
def wrn28_2(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-28-2, 1.5 million parameters at 10 classes."""
    return _create_wide_resnet('wrn28_2', pretrained, **{'depth': 28, 'width_factor': 2, **kwargs})


@register_model
def wrn16_2(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-16-2, 0.7 million parameters at 10 classes."""
    return _create_wide_resnet('wrn16_2', pretrained, **{'depth': 16, 'width_factor': 2, **kwargs})
