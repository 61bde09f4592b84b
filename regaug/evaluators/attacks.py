"""Accuracy under attacks that see the network: FGSM (Goodfellow et al., arXiv 1412.6572) and PGD (Madry et al.,
arXiv 1706.06083).

GradAug's table 7 (arXiv 2006.07989) attacks by FGSM without saying in which space its epsilons 0.05 to 0.25 are
measured; as changes of normalised images they fit its numbers better. A network that was not trained against attacks
has an accuracy near 0 under PGD; whoever claims a defence needs AutoAttack.
"""

import logging
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from timm.task import ClassificationEvaluator
from torch import nn
from torch.nn import functional

from regaug.evaluators.evaluator import CONDITION, Needs
from regaug.evaluators.progress import Progress
from regaug.seeds import derived_seed

_logger = logging.getLogger('validate')
FGSM_EPS = (0.05, 0.1, 0.15, 0.2, 0.25)  # GradAug, table 7
PGD_EPS = (4 / 255,)  # the field's choice for ImageNet


def input_gradient(
    logits: Callable[[torch.Tensor], torch.Tensor], input: torch.Tensor, target: torch.Tensor
) -> torch.Tensor:
    """Gradient of the cross-entropy with the hard labels with respect to the input: [B, C, H, W].

    Summed over the batch, so that every image has the gradient of its own loss.
    """
    with torch.enable_grad():
        input = input.detach().requires_grad_()
        loss = functional.cross_entropy(logits(input), target, reduction='sum')
        return torch.autograd.grad(loss, input)[0]


def perturb(
    input: torch.Tensor, gradient: torch.Tensor, step: torch.Tensor, low: torch.Tensor, high: torch.Tensor
) -> torch.Tensor:
    """Move each value by `step` in the direction that raises the loss, within [low, high]."""
    return (input + step * gradient.sign()).clamp(low, high)


def random_start(eps: torch.Tensor, shape: torch.Size, seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """Offsets uniform in [-eps, eps], one generator an image: the same whatever batch and process it is in."""
    offsets = []
    for seed in seeds:
        generator = torch.Generator(device).manual_seed(seed)
        offsets.append(torch.rand(shape[1:], generator=generator, device=device))
    return (2 * torch.stack(offsets) - 1) * eps


class Attack:
    """Accuracy after FGSM or PGD, one row for each epsilon.

    Batch-norm uses its running statistics, autocast is off, and attacked images stay images: values from 0 to 1 before
    normalisation.

    Args:
        kind: 'fgsm' or 'pgd'.
        eps: Largest changes of a value.
        space: What they change: 'normalized' images, or 'pixel' values in [0, 1].
        steps: Steps of PGD.
        step_size: Change at each of them, in the same space; None for a quarter of epsilon.
        restarts: Random starts of PGD; an image counts as right if it is so after each of them.
        seed: Of the random starts.
        log_freq: Batches from one log line to the next.
    """

    needs = Needs(gradients=True, float32=True)

    def __init__(
        self,
        kind: str,
        *,
        eps: Sequence[float],
        space: str,
        steps: int = 10,
        step_size: float | None = None,
        restarts: int = 1,
        seed: int = 42,
        log_freq: int = 10,
    ):
        self.kind = kind
        self.eps = tuple(eps)
        self.space = space
        self.steps = steps
        self.step_size = step_size
        self.restarts = restarts
        self.seed = seed
        self.log_freq = log_freq

    def check(self, model: nn.Module, data: Any):
        """Nothing of the model or the data can be wrong."""

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Yield top-1 and top-5 accuracy for each epsilon."""
        mean, std = (
            torch.tensor(data.data_config[key], device=data.device).view(1, -1, 1, 1) for key in ('mean', 'std')
        )
        low, high = (0 - mean) / std, (1 - mean) / std
        unit = torch.ones_like(std) if self.space == 'normalized' else 1 / std

        def logits(input):
            return data.logits(network, input)

        judges = [ClassificationEvaluator(data.device) for _ in self.eps]
        loader = data.loader(data.dataset)
        progress = Progress(self.kind.upper(), len(loader), self.log_freq)
        for input, target, indices in data.placed_batches(loader):
            if self.kind == 'fgsm':
                gradient = input_gradient(logits, input, target)
                attacked = (logits(perturb(input, gradient, eps * unit, low, high)) for eps in self.eps)
            else:
                attacked = (self._pgd(logits, input, target, eps, unit, (low, high), indices) for eps in self.eps)
            for judge, output in zip(judges, attacked):
                judge.update(output, target)
            progress.step(len(target))
        for eps, judge in zip(self.eps, judges):
            metrics = judge.compute(distributed=data.distributed)
            yield CONDITION, f'{self.kind} {self.space} {eps:g}'
            yield 'top1', metrics['top1']
            yield 'top5', metrics['top5']

    def _pgd(
        self, logits: Any, input: torch.Tensor, target: torch.Tensor, eps: Any, unit: Any, bounds: Any, indices: Any
    ) -> torch.Tensor:
        """Logits [B, K] of the attacked images: of the start that misleads the network, otherwise of the last one."""
        step = (eps / 4 if self.step_size is None else self.step_size) * unit
        low, high = (input - eps * unit).maximum(bounds[0]), (input + eps * unit).minimum(bounds[1])
        result = misled = None
        for restart in range(self.restarts):
            seeds = [derived_seed('attack', self.seed, restart, index) for index in indices]
            attacked = (input + random_start(eps * unit, input.shape, seeds, input.device)).clamp(low, high)
            for _ in range(self.steps):
                attacked = perturb(attacked, input_gradient(logits, attacked, target), step, low, high)
            output = logits(attacked)
            result = output if result is None else torch.where(misled[:, None], result, output)
            misled = result.argmax(dim=1) != target
        return result


def create(args: Namespace) -> Attack | None:
    """Build the evaluator from the options of validate.py."""
    if not args.attack:
        return None
    pgd = args.attack == 'pgd'
    if pgd:
        _logger.info('PGD: a network without a defence is expected near 0; a defence needs AutoAttack to be shown.')
    return Attack(
        args.attack,
        eps=args.attack_eps or (PGD_EPS if pgd else FGSM_EPS),
        space=args.attack_space or ('pixel' if pgd else 'normalized'),
        steps=args.attack_steps,
        step_size=args.attack_step_size,
        restarts=args.attack_restarts,
        seed=args.seed,
        log_freq=args.log_freq,
    )
