"""What is trained: timm's tasks, seen by the engine as an input selection and a sequence of loss terms.

The engine asks a task for three things (and knows no method by name):

- `begin_update(num_updates)`: which update comes next;
- `choose_input(input, target)`: the input to train on, chosen without gradient, and what to log about the choice;
- `loss_terms(input, target)`: named callables, each of which runs one forward pass and returns timm's dict with
  `loss`, `output` and anything worth logging.

What a method does in them lies behind the door that `regaug.methods` describes.
"""

import logging
from argparse import Namespace
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from timm.task import (
    ClassificationTask,
    FeatureDistillationTask,
    LogitDistillationTask,
    MultiLabelClassificationTask,
    TokenDistillationTask,
)
from timm.utils import unwrap_model
from torch import nn

from regaug.methods import Context
from regaug.training.averages import FULL
from regaug.training.model import keep_statistics

_logger = logging.getLogger('train')


class LossTerms:
    """Makes a task of timm one for the engine: methods may choose the input and change the list of loss terms.

    `forward` returns timm's dict (`loss` is the sum of the terms, `output` the full network's logits, each further
    term by its name), so that the task also works inside any loop written for `timm.task`. Sub-networks together with
    gradient checkpointing need the engine's way, term by term: one backward pass recomputes at one width only.

    Attributes:
        methods: `regaug.methods.Method`s of the run.
        active: those of them that are on in the phase; all before the first one starts.
        autocast: gives the context in which forward passes run.
        rank: this process among those that train together.
        freeze_bn: batch-norm keeps its statistics while everything else trains.
        num_updates, micro_batch: the update of the run and the micro-batch in it that come next.
    """

    methods = ()
    active = ()
    autocast = staticmethod(nullcontext)
    rank = 0
    freeze_bn = False
    num_updates = 0
    micro_batch = 0

    @property
    def full_network(self):
        """The module that trains, maybe compiled, outside of what DDP and methods put around it."""
        module = self.trainable_module
        while hasattr(module, 'module'):
            module = module.module
        return module

    @property
    def keep_pictures(self) -> bool:
        """Whether the methods keep what they do to the next micro-batch, for pictures."""
        return any(method.keep_pictures for method in self.active)

    @keep_pictures.setter
    def keep_pictures(self, keep: bool):
        for method in self.active:
            method.keep_pictures = keep

    def pictures(self):
        """What the methods have kept: list of (name, images, captions)."""
        return [picture for method in self.active for picture in method.pictures()]

    @property
    def context(self) -> Context:
        """What methods may know about the next micro-batch."""
        return Context(
            num_updates=self.num_updates,
            rank=self.rank,
            micro_batch=self.micro_batch,
            criterion=self.criterion,
            autocast=self.autocast,
            network=self.trainable_module,
        )

    def use(self, methods: Iterable[Any]):
        """Take the methods of a run; each gets hold of the task."""
        self.methods = self.active = tuple(methods)
        for method in self.methods:
            method.attach(self)

    def prepare_distributed(self, device_ids: Any = None, **ddp_kwargs):
        for method in self.methods:
            self.trainable_module = method.wrap(self.trainable_module)
        return super().prepare_distributed(device_ids=device_ids, **ddp_kwargs)

    def start_phase(self, phase: Any, criterion: nn.Module):
        """Called when a `phases.Phase` begins, with the criterion that holds in it."""
        self.criterion = criterion
        self.active = tuple(method for method in self.methods if method.name in phase.methods)
        for method in self.active:
            method.start_phase(phase)

    def start_epoch(self, epoch: int):
        for method in self.active:
            method.start_epoch(epoch)

    def begin_update(self, num_updates: int):
        """Called before the first micro-batch of each update; `num_updates` counts from 0 over the whole run."""
        self.num_updates = num_updates
        self.micro_batch = 0

    def train(self, mode: bool = True):
        super().train(mode)
        if self.freeze_bn:
            keep_statistics(self.full_network)
        for method in self.methods:
            method.train(mode)
        return self

    def choose_input(self, input: torch.Tensor, target: torch.Tensor):
        metrics = {}
        for method in self.active:
            input, target, chosen = method.select(input, target, self.context)
            metrics |= chosen
        return input, target, metrics

    def loss_terms(self, input: torch.Tensor, target: torch.Tensor):
        def full(input=input, target=target):
            with self.autocast():
                return super(LossTerms, self).forward(input, target)

        terms, context = [(FULL, full)], self.context
        self.micro_batch += 1
        for method in self.active:
            terms = method.loss_terms(terms, input, target, context)
        return terms

    def forward(self, input: torch.Tensor, target: torch.Tensor):
        input, target, _ = self.choose_input(input, target)
        terms = self.loss_terms(input, target)
        if len(terms) > 1 and any(getattr(part, 'grad_checkpointing', False) for part in self.full_network.modules()):
            raise RuntimeError(
                'forward() cannot sum several terms under gradient checkpointing; run loss_terms() one by one.'
            )
        (_, full), *others = terms
        result = dict(full())
        result['loss'] = result['loss'] * result.pop('weight', 1)
        for name, term in others:
            part = term()
            result[name] = part['loss'] * part.pop('weight', 1)
            result['loss'] = result['loss'] + result[name]
        return result


class RegAugTask(LossTerms, ClassificationTask):
    """Classification."""


class MultiLabelTask(LossTerms, MultiLabelClassificationTask):
    """Classification with several labels an image, targets float [B, K]."""


class LogitDistillation(LossTerms, LogitDistillationTask):
    """timm's distillation from logits, as one loss term."""


class FeatureDistillation(LossTerms, FeatureDistillationTask):
    """timm's distillation from features, as one loss term."""


class TokenDistillation(LossTerms, TokenDistillationTask):
    """timm's distillation through a token, as one loss term."""


def create_task(args: Namespace, model: nn.Module, criterion: nn.Module, *, device: torch.device, precision: Any):
    """The task for these options: classification, or one of timm's distillation tasks under `--kd-model-name`."""
    common = dict(device=device, dtype=precision.model_dtype, verbose=args.rank == 0)
    if args.task == 'multilabel':
        task = MultiLabelTask(model, criterion, threshold=args.multilabel_threshold, **common)
    elif args.kd_model_name is None:
        task = RegAugTask(model, criterion, **common)
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


def fit_teacher(args: Namespace, task: nn.Module, data_config: dict[str, Any]):
    """Give the teacher's images the normalisation that it knows, and warn of one whose classifier is untrained.

    timm takes for granted that the student's images are normalised as its published weights ask for.

    Args:
        data_config: timm's data configuration of the run.
    """
    channels = data_config['input_size'][0]
    for key in ('mean', 'std'):
        expected = getattr(task.teacher, f'{key}_kd')
        values = expected.new_tensor(data_config[key]).view(1, -1, 1, 1)
        setattr(task, f'student_{key}', values)
        if expected.shape[1] != channels:
            setattr(task.teacher, f'{key}_kd', expected.mean().expand(1, channels, 1, 1))
    known = unwrap_model(task.teacher.model).pretrained_cfg.get('num_classes')
    if args.kd_distill_type != 'feature' and known != args.num_classes and args.rank == 0:
        _logger.warning(
            f'--kd-model-name {args.kd_model_name}: its weights are for {known} classes, so that its classifier of '
            f'{args.num_classes} is untrained and teaches nothing; --kd-distill-type feature needs none.'
        )
