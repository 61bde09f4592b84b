"""Manifold Mixup: mix the input or the features after a random stage.

Source: Verma et al., "Manifold Mixup: Better Representations by Interpolating Hidden States" (arXiv 1806.05236).
"""

import logging
import random
from contextlib import contextmanager
from dataclasses import replace

import torch
from timm.data.mixup import one_hot
from timm.utils import unwrap_model
from torch import nn

from regaug.errors import OptionError
from regaug.methods import Method
from regaug.seeds import derived_seed
from regaug.slimmable.structure import meta_copy

_logger = logging.getLogger('train')


class ManifoldMixup(Method):
    """Mixes one batch at one place, with one ratio and one permutation.

    Args:
        stages: names of the modules after which features may be mixed, see `find_stages`; the input may be mixed too.
        alpha: parameter of Beta(alpha, alpha), from which the ratio is drawn.
        seed: of the run.
        num_classes: classes of the soft targets.
        smoothing: label smoothing of the soft targets, as in timm's Mixup.
    """

    name = 'manifold_mixup'

    def __init__(self, stages, *, alpha, seed, num_classes, smoothing):
        self.stages = stages
        self.alpha = alpha
        self.seed = seed
        self.num_classes = num_classes
        self.smoothing = smoothing

    def draw(self, batch_size, *key):
        """Draw from the seed and the given values alone.

        Returns:
            (stage, ratio, permutation): module name or None for the input, share of the batch's own images, and
            partner of each sample, int64 [batch_size].
        """
        rng = random.Random(derived_seed('manifold', self.seed, *key))
        generator = torch.Generator().manual_seed(rng.getrandbits(63))
        stage = rng.choice([None, *self.stages])
        return stage, rng.betavariate(self.alpha, self.alpha), torch.randperm(batch_size, generator=generator)

    def start_phase(self, phase):
        self.alpha = phase.options.manifold_mixup

    def loss_terms(self, terms, input, target, context):
        """The terms with the full network's on mixed features and targets."""
        (name, full), *others = terms
        stage, ratio, permutation = self.draw(len(target), *context.key)
        module = unwrap_model(context.network).get_submodule(stage) if stage else None
        mixed_input = mix(input, ratio, permutation) if module is None else input
        mixed_target = self.mix_target(target, ratio, permutation)

        def mixed():
            with mixed_after(module, ratio, permutation):
                return full(input=mixed_input, target=mixed_target)

        return [(name, mixed), *others]

    def mix_target(self, target, ratio, permutation):
        """Soft targets [B, K] for class indices [B], or for targets [B, K] that are soft already."""
        if target.ndim == 1:
            off = self.smoothing / self.num_classes
            target = one_hot(target, self.num_classes, on_value=1 - self.smoothing + off, off_value=off)
        return mix(target, ratio, permutation)


def mix(values, ratio, permutation):
    """`ratio` of each sample and the rest of its partner; values [B, ...]."""
    return values * ratio + values[permutation.to(values.device)] * (1 - ratio)


@contextmanager
def mixed_after(module: nn.Module, ratio, permutation):
    """Mix the module's output as long as the context lasts; None for no module."""
    if module is None:
        yield
        return
    handle = module.register_forward_hook(lambda module, args, output: mix(output, ratio, permutation))
    with handle:
        yield


def find_stages(model, input_size):
    """Names of timm's feature stages of a model that are called as modules and give one tensor.

    Args:
        model: timm model; only shapes are computed.
        input_size: (C, H, W).

    Returns:
        List of module names, empty when the model has no `feature_info`.
    """
    info = getattr(model, 'feature_info', None) or []
    names = dict.fromkeys(stage['module'] for stage in info if stage.get('module'))
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


def create(args, model, data_config):
    """Manifold Mixup for these options, None without.

    Raises:
        OptionError: when the model names no stages.
    """
    if not args.manifold_mixup:
        return None
    stages = find_stages(model, data_config['input_size'])
    if not stages:
        raise OptionError(f'--manifold-mixup {args.manifold_mixup:g}: --model {args.model} names no feature stages.')
    if args.rank == 0:
        _logger.info(f'Manifold Mixup: at the input or after one of {", ".join(stages)}.')
    return ManifoldMixup(
        stages,
        alpha=args.manifold_mixup,
        seed=args.seed,
        num_classes=args.num_classes,
        smoothing=args.smoothing,
    )


def adapt_phase(phase, epoch, args):
    """It is off in refinement; elsewhere targets are soft."""
    return replace(phase.on('manifold_mixup'), soft_targets=True) if phase.options.manifold_mixup else phase
