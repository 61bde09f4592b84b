"""What is trained: timm's tasks, seen by the engine as an input selection and a sequence of loss terms.

The engine asks a task for three things (and knows no method by name):

- `begin_update(num_updates)`: which update comes next;
- `choose_input(input, target)`: the input to train on, chosen without gradient, and what to log about the choice;
- `loss_terms(input, target)`: named callables, each of which runs one forward pass and returns timm's dict with
  `loss`, `output` and anything worth logging.
"""

import logging
from contextlib import nullcontext

from timm.loss import (
    BinaryCrossEntropy,
    JsdCrossEntropy,
    LabelSmoothingCrossEntropy,
    SoftTargetCrossEntropy,
)
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    TokenDistillationTask,
)
from timm.utils import unwrap_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from regaug.data.loaders import mixing_active
from regaug.methods.gradaug import SubnetSwitch
from regaug.methods.manifold import mix, mixed_after
from regaug.training.averages import FULL
from regaug.training.model import keep_statistics

_logger = logging.getLogger('train')


class LossTerms:
    """Makes a task of timm one for the engine: the input as it comes, one loss term.

    Attributes:
        selector: chooses what to train on, or None: function (input, target, key) -> (input, target, figures), where
            the key is (update of the run, rank, micro-batch of the update) and the figures are for the log.
        autocast: gives the context in which forward passes run.
        rank: this process among those that train together.
        freeze_bn: batch-norm keeps its statistics while everything else trains.
        num_updates, micro_batch: the update of the run and the micro-batch in it that come next.
    """

    selector = None
    autocast = staticmethod(nullcontext)
    rank = 0
    freeze_bn = False
    num_updates = 0
    micro_batch = 0

    @property
    def full_network(self):
        """The module that trains, maybe compiled, outside of what DDP needs around it."""
        module = self.trainable_module
        if isinstance(module, DistributedDataParallel):
            module = module.module
        return module.module if isinstance(module, SubnetSwitch) else module

    def begin_update(self, num_updates):
        """Called before the first micro-batch of each update; `num_updates` counts from 0 over the whole run."""
        self.num_updates = num_updates
        self.micro_batch = 0

    def start_phase(self, phase, criterion, selector=None):
        """Called when a `phases.Phase` begins, with the criterion and the selector that hold in it."""
        self.criterion = criterion
        self.selector = selector

    def train(self, mode=True):
        super().train(mode)
        if self.freeze_bn:
            keep_statistics(self.full_network)
        return self

    def choose_input(self, input, target):
        if self.selector is None:
            return input, target, {}
        return self.selector(input, target, (self.num_updates, self.rank, self.micro_batch))

    def loss_terms(self, input, target):
        def full():
            with self.autocast():
                return super(LossTerms, self).forward(input, target)

        self.micro_batch += 1
        return [(FULL, full)]


class RegAugTask(LossTerms, ClassificationTask):
    """Classification with the methods of regaug.

    `forward` returns timm's dict (`loss` is the sum of the terms, `output` the full network's logits, each further
    term by its name), so that the task also works inside any loop written for `timm.task`. Sub-networks together with
    gradient checkpointing need the engine's way, term by term: one backward pass recomputes at one width only.

    Args:
        gradaug: `GradAug`, or None.
        manifold_mixup: `ManifoldMixup`, or None.
        rank: this process among those that train together.
    """

    def __init__(self, model, criterion, *, gradaug=None, manifold_mixup=None, rank=0, **kwargs):
        super().__init__(model, criterion, **kwargs)
        self.manifold_mixup = manifold_mixup
        self.manifold_mixup_on = manifold_mixup is not None
        self.gradaug = gradaug
        self.gradaug_on = gradaug is not None
        self.rank = rank

    def start_phase(self, phase, criterion, selector=None):
        super().start_phase(phase, criterion, selector)
        self.gradaug_on = self.gradaug is not None and phase.gradaug
        self.manifold_mixup_on = self.manifold_mixup is not None and phase.options.manifold_mixup > 0

    def loss_terms(self, input, target):
        noise = (self.rank, self.micro_batch)
        terms = self._mixed_terms(input, target) if self.manifold_mixup_on else super().loss_terms(input, target)
        if self.gradaug_on and self.gradaug.runs_in(self.num_updates):
            [(_, full)] = terms
            terms = self.gradaug.loss_terms(
                full,
                self._forward_subnet,
                input,
                target,
                criterion=self.criterion,
                num_updates=self.num_updates,
                noise=noise,
                autocast=self.autocast,
            )
        return terms

    def _mixed_terms(self, input, target):
        """The full network's term under Manifold Mixup."""
        manifold_mixup = self.manifold_mixup
        stage, ratio, permutation = manifold_mixup.draw(len(target), self.num_updates, self.rank, self.micro_batch)
        module = unwrap_model(self.trainable_module).get_submodule(stage) if stage else None
        if module is None:
            input = mix(input, ratio, permutation)
        [(name, full)] = super().loss_terms(input, manifold_mixup.mix_target(target, ratio, permutation))

        def mixed():
            with mixed_after(module, ratio, permutation):
                return full()

        return [(name, mixed)]

    def _forward_subnet(self, input):
        if isinstance(self.trainable_module, DistributedDataParallel):
            return self.trainable_module(input, use_subnet=True)
        return self.gradaug.subnet(input)

    def prepare_distributed(self, device_ids=None, **ddp_kwargs):
        if self.gradaug is not None:
            self.trainable_module = SubnetSwitch(self.trainable_module, self.gradaug.subnet)
        return super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)

    def train(self, mode=True):
        super().train(mode)
        if self.gradaug is not None and self.gradaug.subnet is not None:
            self.gradaug.subnet.train(mode)
        return self

    def forward(self, input, target):
        input, target, _ = self.choose_input(input, target)
        result = None
        terms = self.loss_terms(input, target)
        if len(terms) > 1 and any(
            getattr(part, 'grad_checkpointing', False) for part in self.trainable_module.modules()
        ):
            raise RuntimeError(
                'forward() cannot sum several terms under gradient checkpointing; run loss_terms() one by one.'
            )
        for name, term in terms:
            part = term()
            if result is None:
                result = dict(part)
            else:
                result['loss'] = result['loss'] + part['loss']
                result[name] = part['loss']
        return result


class LogitDistillation(LossTerms, LogitDistillationTask):
    """timm's distillation from logits, as one loss term."""


class FeatureDistillation(LossTerms, FeatureDistillationTask):
    """timm's distillation from features, as one loss term."""


class TokenDistillation(LossTerms, TokenDistillationTask):
    """timm's distillation through a token, as one loss term."""


def create_criterion(options):
    """The training loss for the options of a phase, chosen as timm's script chooses it."""
    binary = dict(
        target_threshold=options.bce_target_thresh,
        sum_classes=options.bce_sum,
        pos_weight=options.bce_pos_weight,
    )
    if options.jsd_loss:
        return JsdCrossEntropy(num_splits=options.aug_splits, smoothing=options.smoothing)
    if mixing_active(options) or options.manifold_mixup > 0:
        return BinaryCrossEntropy(**binary) if options.bce_loss else SoftTargetCrossEntropy()
    if options.smoothing:
        if options.bce_loss:
            return BinaryCrossEntropy(smoothing=options.smoothing, **binary)
        return LabelSmoothingCrossEntropy(smoothing=options.smoothing)
    if options.bce_loss:
        _logger.warning('--bce-loss has no effect with --smoothing 0 and no mixing, as in timm: cross-entropy is used.')
    return nn.CrossEntropyLoss()


def create_task(args, model, criterion, *, device, precision, gradaug=None, manifold_mixup=None):
    """The task for these options: classification, or one of timm's distillation tasks under `--kd-model-name`."""
    common = dict(device=device, dtype=precision.model_dtype, verbose=args.rank == 0)
    if args.kd_model_name is None:
        task = RegAugTask(model, criterion, gradaug=gradaug, manifold_mixup=manifold_mixup, rank=args.rank, **common)
    else:
        distillation = dict(
            student_model=model,
            teacher_model=args.kd_model_name,
            criterion=criterion,
            distill_loss_weight=args.distill_loss_weight,
            task_loss_weight=args.task_loss_weight,
            **common,
        )
        if args.kd_distill_type == 'logit':
            task = LogitDistillation(loss_type=args.kd_loss_type, temperature=args.kd_temperature, **distillation)
        elif args.kd_distill_type == 'feature':
            task = FeatureDistillation(
                student_feature_dim=args.kd_student_feature_dim,
                teacher_feature_dim=args.kd_teacher_feature_dim,
                **distillation,
            )
        else:
            task = TokenDistillation(
                distill_type=args.kd_token_distill_type, temperature=args.kd_temperature, **distillation
            )
    task.autocast = precision.autocast
    task.rank = args.rank
    task.freeze_bn = args.freeze_bn
    return task
