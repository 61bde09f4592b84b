"""What the networks for small images share: stem, stages of blocks, pooled classifier, and timm's model interface."""

from collections.abc import Sequence

import torch
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq
from torch import nn
from torch.nn import functional as F

# Of CIFAR-10's training images, as in the authors' code of the wide residual networks.
CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)


class StagedNet(nn.Module):
    """A network of stages with timm's model interface: stem, stages, norm, activation, pooling, classifier.

    Args:
        stem: From the images to the input of the first stage.
        stages: The blocks of each stage.
        norm: After the last stage; `nn.Identity` where the blocks end with an activation.
        act: After `norm`.
        channels: Channels that each stage gives.
        strides: By how much each stage makes the map smaller.
        num_classes: Outputs of the classifier; 0 for none.
        in_chans: Channels of the input images.
        global_pool: timm's pooling type.
        drop_rate: Probability of dropout before the classifier, as in timm's other models (`--drop`).
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Sequence[Sequence[nn.Module]],
        *,
        norm: nn.Module,
        act: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        num_classes: int,
        in_chans: int,
        global_pool: str,
        drop_rate: float,
    ):
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False

        self.stem = stem
        self.stages = nn.Sequential(*(nn.Sequential(*blocks) for blocks in stages))
        self.norm = norm
        self.act = act
        self.feature_info, reduction = [], 1
        for index, (num_chs, stride) in enumerate(zip(channels, strides, strict=True)):
            reduction *= stride
            self.feature_info.append({'num_chs': num_chs, 'reduction': reduction, 'module': f'stages.{index}'})
        self.num_features = channels[-1]
        self._create_classifier(num_classes, global_pool)
        self.init_weights()

    def _create_classifier(self, num_classes: int, global_pool: str) -> None:
        like = next(self.parameters())
        self.global_pool, self.fc = create_classifier(
            self.num_features, num_classes, pool_type=global_pool, device=like.device, dtype=like.dtype
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Draws convolutions from a normal distribution scaled by the fan-out and zeroes the classifier's bias.

        As all the papers' authors do in their code; the classifier's weights keep torch's uniform distribution.
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
        """Images [B, C, H, W] to activated features [B, `num_features`, H / r, W / r], r the product of the strides."""
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


def add_padded(residual: torch.Tensor, shortcut: torch.Tensor) -> torch.Tensor:
    """Adds a shortcut of equally many or fewer channels as if it were padded with zeros at the end.

    Args:
        residual: [B, C, H, W].
        shortcut: [B, c, H, W] with c <= C.
    """
    channels = shortcut.shape[1]
    if channels == residual.shape[1]:
        return residual + shortcut
    # No tensor of zeros: channels that meet a constant could not be left out of sub-networks.
    return torch.cat([residual[:, :channels] + shortcut, residual[:, channels:]], dim=1)


def cifar_cfg(**kwargs) -> dict:
    """timm's configuration of a network for CIFAR's images."""
    return {
        'num_classes': 10,
        'input_size': (3, 32, 32),
        'pool_size': (8, 8),
        'crop_pct': 1.0,
        'interpolation': 'bicubic',
        'mean': CIFAR_MEAN,
        'std': CIFAR_STD,
        'first_conv': 'stem',
        'classifier': 'fc',
        'license': 'apache-2.0',
        **kwargs,
    }


def create_staged(network: type, variant: str, pretrained: bool, *, num_stages: int = 3, **kwargs) -> nn.Module:
    """Builds a registered `StagedNet` as timm builds its own."""
    feature_cfg = {'out_indices': tuple(range(num_stages)), 'flatten_sequential': True}
    return build_model_with_cfg(network, variant, pretrained, feature_cfg=feature_cfg, **kwargs)
