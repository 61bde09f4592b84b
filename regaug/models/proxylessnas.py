"""ProxylessNAS, `proxylessnas_<target>` in timm's registry, by timm's builder of such networks.

Source: H. Cai et al., "ProxylessNAS: Direct Neural Architecture Search on Target Task and Hardware", ICLR 2019, arXiv
1812.00332 (figure 4), and the authors' released configurations. Table 2 of MaxUp gives the CPU network 7.12 million
parameters and the GPU network 4.36; the authors' logs say 4.36 for the CPU and 7.12 for the GPU, and so do the
layers: the two are exchanged in MaxUp. Its "Mobile" network (6.86 million) is the 1.4 times wider one, not the authors'
`proxyless_mobile` (4.08 million).
"""

from functools import partial

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args
from timm.models.efficientnet import EfficientNet, _create_effnet
from torch import nn

__all__ = []

_BN_EPS = 1e-3  # of the authors' networks; timm's default is 1e-5

# Each network: channels of the stem, of the stages, of the features, and the blocks of stages 2 to 7 as (expansion,
# kernel size). Where the search chose no layer there is none.
_CPU = (
    (40, (24, 32, 48, 88, 104, 216, 360), 1432),
    [
        [(6, 3), (3, 3), (3, 3), (3, 3)],
        [(6, 3), (3, 3), (3, 3), (3, 5)],
        [(6, 3), (3, 3)],
        [(6, 5), (3, 3), (3, 3), (3, 3)],
        [(6, 5), (3, 5), (3, 5), (3, 3)],
        [(6, 5)],
    ],
)
_GPU = (
    (40, (24, 32, 56, 112, 128, 256, 432), 1728),
    [
        [(3, 5)],
        [(3, 7), (3, 3)],
        [(6, 7), (3, 5)],
        [(6, 5), (3, 3), (3, 5)],
        [(6, 7), (6, 7), (6, 7), (6, 5)],
        [(6, 7)],
    ],
)
_MOBILE = (
    (48, (24, 40, 56, 112, 136, 256, 448), 1792),
    [
        [(3, 5), (3, 3)],
        [(3, 7), (3, 3), (3, 5), (3, 5)],
        [(6, 7), (3, 5), (3, 5), (3, 5)],
        [(6, 5), (3, 5), (3, 5), (3, 5)],
        [(6, 7), (6, 7), (3, 7), (3, 7)],
        [(6, 7)],
    ],
)
_STAGE_STRIDES = (2, 2, 2, 1, 2, 1)


def _cfg() -> dict:
    return {
        'num_classes': 1000,
        'input_size': (3, 224, 224),
        'pool_size': (7, 7),
        'crop_pct': 0.875,
        'interpolation': 'bilinear',
        'mean': IMAGENET_DEFAULT_MEAN,
        'std': IMAGENET_DEFAULT_STD,
        'first_conv': 'conv_stem',
        'classifier': 'classifier',
        'license': 'mit',
        'paper_ids': 'arXiv:1812.00332',
    }


default_cfgs = generate_default_cfgs(
    {
        'proxylessnas_cpu.untrained': _cfg(),
        'proxylessnas_gpu.untrained': _cfg(),
        'proxylessnas_mobile.untrained': _cfg(),
    }
)


def _create(variant: str, pretrained: bool, network: tuple, **kwargs) -> EfficientNet:
    (stem, channels, features), stages = network
    arch_def = [[f'ds_r1_k3_s1_e1_c{channels[0]}_noskip']]
    for width, stride, blocks in zip(channels[1:], _STAGE_STRIDES, stages, strict=True):
        arch_def.append(
            [
                f'ir_r1_k{kernel}_s{1 if index else stride}_e{expansion}_c{width}'
                for index, (expansion, kernel) in enumerate(blocks)
            ]
        )
    norm_args = {'eps': _BN_EPS, **resolve_bn_args(kwargs)}
    return _create_effnet(
        variant,
        pretrained,
        block_args=decode_arch_def(arch_def),
        stem_size=stem,
        fix_stem=True,
        num_features=features,
        act_layer=resolve_act_layer(kwargs, 'relu6'),
        norm_layer=kwargs.pop('norm_layer', None) or partial(nn.BatchNorm2d, **norm_args),
        **kwargs,
    )


@register_model
def proxylessnas_cpu(pretrained: bool = False, **kwargs) -> EfficientNet:
    """ProxylessNAS for CPUs, 4.4 million parameters."""
    return _create('proxylessnas_cpu', pretrained, _CPU, **kwargs)


@register_model
def proxylessnas_gpu(pretrained: bool = False, **kwargs) -> EfficientNet:
    """ProxylessNAS for GPUs, 7.1 million parameters."""
    return _create('proxylessnas_gpu', pretrained, _GPU, **kwargs)


@register_model
def proxylessnas_mobile(pretrained: bool = False, **kwargs) -> EfficientNet:
    """ProxylessNAS for phones, 1.4 times as wide as the searched one, 6.9 million parameters."""
    return _create('proxylessnas_mobile', pretrained, _MOBILE, **kwargs)
