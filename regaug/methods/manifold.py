"""Manifold Mixup: mix the input or the features after a random layer.

Source: Verma et al., "Manifold Mixup: Better Representations by Interpolating Hidden States" (arXiv 1806.05236).
"""

import logging
import random
from argparse import Namespace
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

from regaug.augment.mix import blend, onto, soft_target
from regaug.errors import OptionError
from regaug.methods import Context, Method, Term
from regaug.seeds import derived_seed
from regaug.slimmable.structure import meta_copy

_logger = logging.getLogger('train')


class ManifoldMixup(Method):
    """Mixes a batch after one layer, with one lambda and one permutation.

    Args:
        layers: names of the modules after which features may be mixed, see `find_layers`; the input may be mixed too.
        alpha: parameter of Beta(alpha, alpha), from which lambda is drawn.
        seed: of the run.
        num_classes: classes of the soft targets.
        smoothing: label smoothing of the soft targets, as in timm's Mixup.
    """

    name = 'manifold_mixup'

    def __init__(self, layers: Sequence[str], *, alpha: float, seed: int, num_classes: int, smoothing: float):
        self.layers = layers
        self.alpha = alpha
        self.seed = seed
        self.num_classes = num_classes
        self.smoothing = smoothing

    def draw(self, batch_size: int, *key: int) -> tuple[str | None, float, torch.Tensor]:
        """Draw from the seed and the given values alone.

        Returns:
            (layer, lam, partners): module name or None for the input, share of each sample's own features, and partner
            of each sample, a permutation, int64 [batch_size].
        """
        rng = random.Random(derived_seed('manifold', self.seed, *key))
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        layer = rng.choice([None, *self.layers])
        return layer, rng.betavariate(self.alpha, self.alpha), torch.randperm(batch_size, generator=generator)

    def start_phase(self, phase: Any):
        self.alpha = phase.options.manifold_mixup

    def loss_terms(self, terms: list[Term], input: torch.Tensor, target: torch.Tensor, context: Context) -> list[Term]:
        """The terms with the full network's on mixed features and targets."""
        (name, full), *others = terms
        layer, lam, partners = self.draw(len(target), *context.key)
        partners = onto(target.device, partners)
        module = unwrap_model(context.network).get_submodule(layer) if layer else None
        mixed_input = blend(input, partners, lam) if module is None else input
        mixed_target = blend(soft_target(target, self.num_classes, self.smoothing), partners, lam)

        def mixed():
            with mixed_after(module, partners, lam):
                return full(input=mixed_input, target=mixed_target)

        return [(name, mixed), *others]


@contextmanager
def mixed_after(module: nn.Module | None, partners: torch.Tensor, lam: float):
    """Blend the module's output with the partners' as long as the context lasts; None for no module."""
    if module is None:
        yield
        return
    handle = module.register_forward_hook(lambda module, args, output: blend(output, partners, lam))
    with handle:
        yield


def find_layers(model: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    """Names of a model's feature layers (timm's `feature_info`) that are called as modules and give one tensor.

    Args:
        model: timm model; only shapes are computed.
        input_size: (C, H, W).

    Returns:
        Module names; none when the model has no `feature_info`.
    """
    info = getattr(model, 'feature_info', None) or []
    names = dict.fromkeys(layer['module'] for layer in info if layer.get('module'))
    shapes = meta_copy(model).eval()
    called = []

    def note(name):
        return lambda module, args, output: called.append(name) if torch.is_tensor(output) else None

    modules = dict(shapes.named_modules())
    for name in names:
        if name in modules:
            modules[name].register_forward_hook(note(name))
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        shapes(torch.empty((2, *input_size), dtype=dtype, device='meta'))
    return list(dict.fromkeys(called))


def create(args: Namespace, model: nn.Module, data_config: dict[str, Any]) -> ManifoldMixup | None:
    """Manifold Mixup for these options, None without.

    Raises:
        OptionError: when the model names no feature layers.
    """
    if not args.manifold_mixup:
        return None
    layers = find_layers(model, data_config['input_size'])
    if not layers:
        raise OptionError(f'--manifold-mixup {args.manifold_mixup:g}: --model {args.model} names no feature layers.')
    if args.rank == 0:
        _logger.info(f'Manifold Mixup: at the input or after one of {", ".join(layers)}.')
    return ManifoldMixup(
        layers,
        alpha=args.manifold_mixup,
        seed=args.seed,
        num_classes=args.num_classes,
        smoothing=args.smoothing,
    )


def adapt_phase(phase: Any, epoch: int, args: Namespace):
    """It is off in refinement; elsewhere targets are soft."""
    return replace(phase.on('manifold_mixup'), soft_targets=True) if phase.options.manifold_mixup else phase
