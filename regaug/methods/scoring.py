"""Scores of candidate inputs: the loss of each sample, without gradient and without a trace in the model.

Source: Gong et al., "MaxUp: A Simple Way to Improve Generalization of Neural Network Training" (arXiv 2002.09024),
section 2: the worst candidate needs forward passes only. UADA's probes are scored in the same way.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
from torch import nn

from regaug.errors import OptionError
from regaug.methods import Context, Method, Metrics, Pictures
from regaug.slimmable.structure import batch_norms

SHOWN = 16  # images of a picture


def sample_losses(criterion: nn.Module, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The training loss of each sample; its mean is the criterion's value.

    Args:
        criterion: cross-entropy (plain, smoothed, of soft targets) or timm's `BinaryCrossEntropy`.
        output: logits [B, K].
        target: class indices [B] or soft targets [B, K].

    Returns:
        Losses [B], in float32 or better.
    """
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    if isinstance(criterion, BinaryCrossEntropy):
        losses = unreduced(criterion)(output, target)
        return losses.sum(dim=-1) if criterion.sum_classes else losses.mean(dim=-1)
    if target.ndim > 1:
        target = target.to(output.dtype)
    smoothing = criterion.smoothing if isinstance(criterion, LabelSmoothingCrossEntropy) else 0.0
    return F.cross_entropy(output, target, reduction='none', label_smoothing=smoothing)


def unreduced(criterion: BinaryCrossEntropy) -> BinaryCrossEntropy:
    """A copy of timm's binary cross-entropy that gives [B, K]."""
    criterion = copy.copy(criterion)
    criterion.reduction, criterion.sum_classes = 'none', False
    return criterion


def lowest_losses(criterion: nn.Module, target: torch.Tensor) -> torch.Tensor:
    """The smallest loss that any output could reach for each soft target: the entropy of the target.

    Args:
        criterion: as in `sample_losses`.
        target: soft targets [B, K], or class indices [B], which all candidates of a sample have in common.

    Returns:
        Losses [B].
    """
    if target.ndim == 1:
        return torch.zeros(len(target), device=target.device)
    if not isinstance(criterion, BinaryCrossEntropy):
        return torch.special.entr(target).sum(dim=-1)
    if criterion.smooth_dense:
        target = target * (1 - criterion.smoothing) + 0.5 * criterion.smoothing
    if criterion.target_threshold is not None:
        target = target.gt(criterion.target_threshold).to(target.dtype)
    positive = target if criterion.pos_weight is None else target * criterion.pos_weight
    negative = 1 - target
    best = torch.logit(positive / (positive + negative), eps=1e-6)
    losses = -positive * F.logsigmoid(best) - negative * F.logsigmoid(-best)
    return losses.sum(dim=-1) if criterion.sum_classes else losses.mean(dim=-1)


class Scorer:
    """Scores candidates with the network that a task trains, in training mode, under the task's autocast.

    Batch-norm uses the statistics of the candidates and keeps none. Every pass starts from the same random state, which
    is also that of the training pass after it: all of them see the same dropout and drop path.

    Args:
        task: has `full_network` (may be compiled, never wrapped for DDP), `criterion` and `autocast`.
    """

    def __init__(self, task: nn.Module):
        self.task = task
        self._norms = batch_norms(task.full_network)

    def autocast(self, input: torch.Tensor) -> AbstractContextManager:
        """The context in which a pass over a batch runs."""
        return self.task.autocast()

    @torch.no_grad()
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of a batch, in the autocast dtype."""
        module = self.task.full_network
        devices = [input.device] if input.device.type == 'cuda' else []
        with untracked_statistics(self._norms), torch.random.fork_rng(devices=devices), self.autocast(input):
            output = module(input)
        return output[0] if isinstance(output, (tuple, list)) else output

    def __call__(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Losses [B] of the samples of a batch."""
        return sample_losses(self.task.criterion, self.forward(input), target)

    def check(self, input_size: Sequence[int], option: str):
        """Run one pass and make sure that it leaves no trace in the model's buffers.

        Args:
            input_size: of an image, (C, H, W).
            option: what asked for such passes, for the message.

        Raises:
            OptionError: naming the buffer that a pass changes.
        """
        module = self.task.full_network
        before = {name: buffer.clone() for name, buffer in module.named_buffers()}
        parameter = next(module.parameters())
        self.forward(torch.zeros(2, *input_size, device=parameter.device, dtype=parameter.dtype))
        for name, buffer in module.named_buffers():
            if name not in before or not torch.equal(buffer.nan_to_num(), before[name].nan_to_num()):
                changed = f'the buffer {name!r} of {type(module).__name__}'
                raise OptionError(f'{option}: a scoring pass would change {changed}')


class Selector:
    """Chooses what to train on.

    Attributes:
        keep_pictures: keep what the next call chooses from, for `pictures`.
    """

    keep_pictures = False

    def __call__(
        self, input: torch.Tensor, target: torch.Tensor, key: tuple[int, int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, Metrics]:
        """Choose by means of draws that depend on the run's seed and the key alone; returns metrics as well."""
        raise NotImplementedError

    def pictures(self) -> Pictures:
        """What the last call with `keep_pictures` chose from, see `Method.pictures`."""
        return []


class Selection(Method):
    """A method that chooses the input by scores, built anew for every phase.

    Args:
        name: of the method.
        build: function (phase, task) -> selector.
        data_config: timm's data configuration.
        option: what asked for it, for messages.
        scores: it will score candidates.
    """

    def __init__(
        self, name: str, build: Callable[..., Selector], data_config: dict[str, Any], *, option: str, scores: bool
    ):
        self.name = name
        self.build = build
        self.data_config = data_config
        self.option = option
        self.scores = scores
        self.task = self.selector = None

    def attach(self, task: nn.Module):
        """Run one scoring pass, which must leave the model as it is.

        Raises:
            OptionError: naming the buffer that a pass changes.
        """
        self.task = task
        if not self.scores:
            return
        Scorer(task.train()).check(self.data_config['input_size'], self.option)

    def start_phase(self, phase: Any):
        self.selector = self.build(phase, self.task)

    def select(self, input: torch.Tensor, target: torch.Tensor, context: Context):
        self.selector.keep_pictures = self.keep_pictures
        # Not autocast itself, but around that of the scoring passes: what they cast of the weights they cast once.
        with torch.autocast(input.device.type, enabled=False):
            return self.selector(input, target, context.key)

    def pictures(self) -> Pictures:
        return self.selector.pictures() if self.keep_pictures else []


@contextmanager
def untracked_statistics(norms: Iterable[nn.Module]):
    """Batch-norm layers in training mode keep no running statistics as long as the context lasts."""
    tracking = [norm for norm in norms if norm.training and norm.track_running_stats]
    for norm in tracking:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in tracking:
            norm.track_running_stats = True


@dataclass(frozen=True)
class Choice:
    """For each of B samples, the worst of m candidates.

    Attributes:
        chosen: tensors [B, ...], the parts of each sample's worst candidate.
        index: which candidate that is, int64 [B].
        losses: of all candidates, [m, B].
        scores: what is compared: the losses, above their floor where there is one, [m, B].
    """

    chosen: tuple[torch.Tensor, ...]
    index: torch.Tensor
    losses: torch.Tensor
    scores: torch.Tensor

    @property
    def chosen_losses(self) -> torch.Tensor:
        """Losses of the chosen candidates, [B]."""
        return self.losses.gather(0, self.index[None])[0]


def worst_of(
    candidates: Iterable[tuple[torch.Tensor, ...]],
    score: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    floor: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Choice:
    """Choose for each sample the candidate with the largest score that is a number; of equal ones the first.

    Args:
        candidates: (input, target, further parts), tensors [B, ...]; candidate j of sample b is row b of the j-th. Only
            the worst so far and the next one are alive at a time.
        score: from input and target to losses [B].
        floor: from the target to what is subtracted from the losses before they are compared, [B].
    """
    worst, worst_rank, index, losses, scores = None, None, None, [], []
    for number, candidate in enumerate(candidates):
        loss = score(*candidate[:2])
        losses.append(loss)
        scores.append(loss if floor is None else loss - floor(candidate[1]))
        rank = without_nan(scores[-1])
        if worst is None:
            worst, worst_rank, index = candidate, rank, torch.zeros_like(rank, dtype=torch.long)
            continue
        worse = rank > worst_rank
        worst = tuple(select(worse, new, old) for new, old in zip(candidate, worst, strict=True))
        worst_rank = torch.where(worse, rank, worst_rank)
        index = torch.where(worse, number, index)
        del candidate
    return Choice(worst, index, torch.stack(losses), torch.stack(scores))


def without_nan(ranks: torch.Tensor) -> torch.Tensor:
    """Ranks by which what is no number comes last: a candidate of that loss would end the training."""
    return ranks.masked_fill(ranks.isnan(), -torch.inf)


def select(condition: torch.Tensor, new: torch.Tensor, old: torch.Tensor) -> torch.Tensor:
    """Rows of `new` where the condition [B] holds, else of `old`; tensors [B, ...]."""
    return torch.where(condition.view(-1, *[1] * (new.ndim - 1)), new, old)
