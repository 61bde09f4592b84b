"""GradAug-semi: sub-networks learn the full network's output on unlabelled images, too.

Source: Yang et al., "GradAug: A New Regularization Method for Deep Neural Networks" (arXiv 2006.07989), section 4.6.
The full network's output is the pseudo-label of an unlabelled image, and the sub-networks, and only they, train on the
transformed image. Weight, ramp and cut-off are not in the paper; their words are those of later work (USB).
"""

import logging
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import nn

from regaug.data.unlabelled import UnlabelledData, create_unlabelled
from regaug.methods import Method
from regaug.methods.scoring import Scorer, sample_losses
from regaug.methods.subnetworks import taught

_logger = logging.getLogger('train')


def soft_label_losses(output: torch.Tensor, teacher_output: torch.Tensor, criterion: nn.Module) -> torch.Tensor:
    """Distance of each row of a sub-network's output [B, K] from the teacher's; its mean is GradAug's.

    Returns:
        Losses [B], in float32 or better.
    """
    output, teacher_output = precise(output), precise(teacher_output)
    if isinstance(criterion, BinaryCrossEntropy):
        return sample_losses(taught(criterion), output, teacher_output.sigmoid())
    losses = F.kl_div(output.log_softmax(dim=-1), teacher_output.softmax(dim=-1), reduction='none')
    return losses.sum(dim=-1)


def precise(output: torch.Tensor) -> torch.Tensor:
    """Logits in float32 or better."""
    return output.to(torch.promote_types(output.dtype, torch.float32))


def confidences(output: torch.Tensor, criterion: nn.Module) -> torch.Tensor:
    """The largest probability in each row of logits [B, K], by the link that the criterion has."""
    output = precise(output)
    probabilities = output.sigmoid() if isinstance(criterion, BinaryCrossEntropy) else output.softmax(dim=-1)
    return probabilities.amax(dim=-1)


class GradAugSemi(Method):
    """One more loss term for each sub-network of GradAug, on unlabelled images.

    Args:
        data: `UnlabelledData`.
        input_size: of its images, (C, H, W).
        loss_ratio: weight of these terms beside the sub-networks' own.
        warmup_updates: updates in which the weight rises linearly from 0.
        cutoff: pseudo-labels of less confidence are left out; 0 for none.
        teacher: `full` or `ema`, who gives the pseudo-labels.
        labels_known: the data has the labels; they are for the log alone.
        grad_accum_steps: micro-batches of an update.
        channels_last: memory format of the images.

    Attributes:
        gradaug: the `GradAug` whose sub-networks train.
    """

    name = 'semi'
    order = 1  # after GradAug

    def __init__(
        self,
        data: UnlabelledData,
        *,
        input_size: Sequence[int],
        loss_ratio: float = 1.0,
        warmup_updates: int = 0,
        cutoff: float = 0.0,
        teacher: str = 'full',
        labels_known: bool = False,
        grad_accum_steps: int = 1,
        channels_last: bool = False,
    ):
        self.data = data
        self.input_size = input_size
        self.loss_ratio = loss_ratio
        self.warmup_updates = warmup_updates
        self.cutoff = cutoff
        self.teacher = teacher
        self.labels_known = labels_known
        self.grad_accum_steps = grad_accum_steps
        self.channels_last = channels_last
        self.gradaug = None
        self._pseudo_label: Callable[[torch.Tensor], torch.Tensor] | None = None

    def attach(self, task: nn.Module):
        """Find the sub-networks, and run one pass of the teacher, which must leave the network as it is.

        Raises:
            OptionError: naming the buffer that a pass changes.
        """
        [self.gradaug] = [method for method in task.methods if method.name == 'gradaug']

        @torch.no_grad()
        def average(input):
            with task.autocast():
                return task.get_eval_model(ema=True).eval()(input)

        self._pseudo_label = average
        if self.teacher == 'full':
            scorer = Scorer(task.train())
            scorer.check(self.input_size, '--unlabeled-split with --ulb-teacher full')
            self._pseudo_label = scorer.forward

    def start_phase(self, phase: Any):
        self.data.use(phase)

    def start_epoch(self, epoch: int):
        self.data.restart()

    def close(self):
        self.data.close()

    def weight(self, num_updates: int) -> float:
        """Weight of the terms in an update, counted from 0."""
        ramp = min(1.0, num_updates / self.warmup_updates) if self.warmup_updates else 1.0
        return self.loss_ratio * ramp

    def loss_terms(self, terms: Any, input: torch.Tensor, target: torch.Tensor, context: Any):
        """The terms so far, then one on unlabelled images for each sub-network of the update."""
        gradaug = self.gradaug
        if not gradaug.runs_in(context.num_updates):
            return terms
        number = context.num_updates * self.grad_accum_steps + context.micro_batch
        unlabelled, labels = self.data.next(number)
        unlabelled = unlabelled.to(input.device, input.dtype)
        if self.channels_last:
            unlabelled = unlabelled.contiguous(memory_format=torch.channels_last)
        pseudo, metrics = {}, {}

        def teach():
            output = self._pseudo_label(unlabelled)
            confidence = confidences(output, context.criterion)
            pseudo.update(output=output, kept=(confidence >= self.cutoff).float())
            metrics.update(confidence=confidence.mean(), kept=pseudo['kept'].mean())
            if self.labels_known:
                metrics['accuracy'] = (output.argmax(dim=-1) == labels.to(output.device)).float().mean()

        def unlabelled_term(draw, index):
            def term():
                if not pseudo:
                    teach()
                output, rows = gradaug.run_subnet(draw, index, unlabelled, context, 'unlabelled')
                taught = pseudo['output'][rows]
                losses = soft_label_losses(output, taught, context.criterion) * pseudo['kept'][rows]
                agreement = (output.argmax(dim=-1) == taught.argmax(dim=-1)).float().mean()
                result = {'loss': gradaug.weight * losses.mean(), 'output': output, 'agreement': agreement}
                return {**result, **(metrics if index == 1 else {}), 'weight': self.weight(context.num_updates)}

            return term

        draws = enumerate(gradaug.draw(context.num_updates, unlabelled.shape[-2]), start=1)
        return [*terms, *((f'ulb{index}', unlabelled_term(draw, index)) for index, draw in draws)]


def create(args: Namespace, model: nn.Module, data_config: dict[str, Any]):
    """GradAug-semi for these options; None without unlabelled images, or where they have no weight."""
    if not (args.unlabeled_split and args.uratio and args.ulb_loss_ratio):
        return None
    dataset, labels_known = create_unlabelled(args, data_config)
    batch_size = round(args.uratio * args.batch_size)
    data = UnlabelledData(
        dataset,
        data_config,
        batch_size=batch_size,
        device=torch.device(args.device),
        img_dtype=getattr(torch, args.model_dtype or 'float32'),
        num_classes=args.num_classes,
    )
    if args.rank == 0:
        known = 'their labels are for the log alone' if labels_known else 'their labels are not known'
        share = f'{batch_size} beside {args.batch_size} in a batch'
        _logger.info(f'GradAug-semi: {len(dataset)} unlabelled images, {share}; {known}.')
    return GradAugSemi(
        data,
        input_size=data_config['input_size'],
        loss_ratio=args.ulb_loss_ratio,
        warmup_updates=args.ulb_warmup_updates,
        cutoff=args.p_cutoff,
        teacher=args.ulb_teacher,
        labels_known=labels_known,
        grad_accum_steps=args.grad_accum_steps,
        channels_last=args.channels_last,
    )


def adapt_phase(phase: Any, epoch: int, args: Namespace):
    """Unlabelled images train whenever GradAug's sub-networks do."""
    on = args.unlabeled_split and args.uratio and args.ulb_loss_ratio and 'gradaug' in phase.methods
    return phase.on('semi') if on else phase
