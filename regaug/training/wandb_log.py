"""Weights & Biases: timm's epoch metrics by their names, and finer ones per log interval."""

import logging
import shlex
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch

from regaug.errors import OptionError, one_line
from regaug.training.averages import flat_name
from regaug.training.pictures import MAX_IMAGES, captions_of, draw

_logger = logging.getLogger('train')
_SECONDS = 12  # before the run goes on without the service; wandb takes twice as long


class WandbLog:
    """One run of W&B, on the first rank.

    Epoch metrics (`train_loss`, `eval_top1`, `lr`, ...) are drawn against `epoch`, those of a log interval (`step/...`)
    against `update`.

    Args:
        args: training options.
        name: name of the experiment.
        mean: channel means of the normalisation, for pictures.
        std: channel deviations.
    """

    def __init__(self, args: Namespace, *, name: str, mean: Sequence[float], std: Sequence[float]):
        import wandb

        self.wandb = wandb
        self.mean, self.std = mean, std
        self._broken = False
        wanted = dict(
            project=args.wandb_project,
            name=name,
            config=vars(args),
            tags=args.wandb_tags,
            id=args.wandb_resume_id or None,
            resume='must' if args.wandb_resume_id else None,
        )
        patience = dict(init_timeout=_SECONDS, finish_timeout=2 * _SECONDS, finish_timeout_raises=True)
        refusals = (wandb.errors.Error, ValueError)
        try:
            self.run = wandb.init(**wanted, settings=wandb.Settings(**patience))
        except refusals as error:
            reason = one_line(error)
            if args.wandb_resume_id and args.wandb_resume_id in reason:
                raise OptionError(f'--wandb-resume-id {args.wandb_resume_id}: {reason}') from error
            try:
                self.run = wandb.init(**{**wanted, 'resume': None}, mode='offline')
            except refusals as refused:  # by the package itself: a project's, a tag's or a variable's value
                raise OptionError(f'--log-wandb: {one_line(refused)}') from refused
            self._warn('cannot be reached', error)
        self.run.define_metric('epoch')
        self.run.define_metric('update')
        for pattern in ('train_*', 'eval_*', 'lr', 'phase'):
            self.run.define_metric(pattern, step_metric='epoch')
        self.run.define_metric('step/*', step_metric='update')

    def on_update(self, record: Any, phase: Any):
        """Log a `averages.UpdateRecord`."""
        seconds = max(record.update_time.val, 1e-9)
        metrics = {
            'loss': record.loss.val,
            'lr': record.lr,
            'images_per_second': record.samples / seconds,
            'data_wait_share': record.data_time.val / seconds,
            'grad_norm': record.grad_norm,
            'epoch': record.epoch + (record.update_idx + 1) / record.updates_per_epoch,
            'phase': phase,
            **{flat_name(*name): value for name, value in record.terms.items()},
        }
        self._log({'update': record.num_updates, **{f'step/{name}': value for name, value in metrics.items()}})

    def on_picture(self, input: torch.Tensor, target: torch.Tensor, phase: Any):
        """Log the first images of an augmented batch, normalisation undone, with their labels."""
        captions = captions_of(target[:MAX_IMAGES])
        picture = draw(input, captions, self.mean, self.std)
        self._log({f'batch/{phase}': self.wandb.Image(picture, caption=' '.join(captions))})

    def on_epoch(self, row: dict[str, Any]):
        self._log(row)

    def finish(self):
        """Upload what is left, as long as that takes no more than half a minute."""
        try:
            self.run.finish()
        except Exception as error:  # a service that is gone raises whatever it stumbles over
            self._warn('took not all of the log', error)

    def _log(self, values: Any):
        try:
            self.run.log(values)
        except Exception as error:
            self._warn('has failed', error)

    def _warn(self, what: Any, error: Any):
        """Say once what is wrong, and how the log gets there later; the training goes on."""
        if not self._broken:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            folder = self.run.settings.sync_dir
            _logger.warning(f'Weights & Biases {what} ({reason}). Upload later: wandb sync {shlex.quote(str(folder))}')
        self._broken = True
