"""Wide residual networks for small images, `wrn<depth>_<factor>` in timm's registry.

Source: S. Zagoruyko and N. Komodakis, "Wide Residual Networks", BMVC 2016, arXiv 1605.07146 (section 2, table 1).
WRN-37-2 is the network of semi-supervised papers for the 96x96 images of STL-10 (D. Berthelot et al., "MixMatch", arXiv
1905.02249, and what followed): WRN-28-2 with a fourth stage and a stride of 2 in the first one, too.
timm's `wide_resnet50_2` is another network: an ImageNet ResNet with wider bottlenecks.
"""

from collections.abc import Sequence

from timm.models import generate_default_cfgs, register_model

from regaug.models.preact_resnet import PreActResNet
from regaug.models.staged import cifar_cfg, create_staged

__all__ = ['WideResNet']

_BASE_CHANNELS = 16


class WideResNet(PreActResNet):
    """Wide residual network of basic-wide blocks (figure 1c).

    Args:
        depth: Layers with weights, with the shortcuts that have some: 6 n + 4 for three stages of n blocks (28, 16,
            ...), 8 n + 5 for four (37).
        width_factor: Widening factor k; the stages have 16 k, 32 k, 64 k, ... channels.
        strides: Strides of the stages.
        **kwargs: Further arguments of `PreActResNet`.
    """

    def __init__(self, *, depth: int, width_factor: int, strides: Sequence[int] = (1, 2, 2), **kwargs):
        layers_per_stage, rest = divmod(depth - 1, len(strides))
        assert rest == 0 and layers_per_stage % 2 == 1, f'depth {depth} does not go into {len(strides)} stages'
        super().__init__(
            blocks_per_stage=(layers_per_stage - 1) // 2,
            channels=[_BASE_CHANNELS * width_factor * 2**stage for stage in range(len(strides))],
            strides=strides,
            stem_channels=_BASE_CHANNELS,
            **kwargs,
        )


def _cfg(**kwargs) -> dict:
    return cifar_cfg(paper_ids='arXiv:1605.07146', **kwargs)


# Mean and standard deviation of STL-10's images.
_STL10 = {
    'input_size': (3, 96, 96),
    'pool_size': (6, 6),
    'mean': (112.4 / 255, 109.1 / 255, 98.6 / 255),
    'std': (68.4 / 255, 66.6 / 255, 68.5 / 255),
}
default_cfgs = generate_default_cfgs(
    {
        'wrn28_10.untrained': _cfg(),
        'wrn28_2.untrained': _cfg(),
        'wrn16_2.untrained': _cfg(),
        'wrn37_2.untrained': _cfg(**_STL10),
    }
)


@register_model
def wrn28_10(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-28-10, 36.5 million parameters at 10 classes."""
    return create_staged(WideResNet, 'wrn28_10', pretrained, **{'depth': 28, 'width_factor': 10, **kwargs})


@register_model
def wrn28_2(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-28-2, 1.5 million parameters at 10 classes."""
    return create_staged(WideResNet, 'wrn28_2', pretrained, **{'depth': 28, 'width_factor': 2, **kwargs})


@register_model
def wrn16_2(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-16-2, 0.7 million parameters at 10 classes."""
    return create_staged(WideResNet, 'wrn16_2', pretrained, **{'depth': 16, 'width_factor': 2, **kwargs})


@register_model
def wrn37_2(pretrained: bool = False, **kwargs) -> WideResNet:
    """WRN-37-2 for 96x96 images, 5.9 million parameters at 10 classes."""
    shape = {'depth': 37, 'width_factor': 2, 'strides': (2, 2, 2, 2)}
    return create_staged(WideResNet, 'wrn37_2', pretrained, num_stages=4, **{**shape, **kwargs})
