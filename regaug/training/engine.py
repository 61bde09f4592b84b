"""The training and evaluation loops: the only place that knows backward, accumulation and DDP synchronisation."""

import math
import time
from argparse import Namespace
from collections import OrderedDict
from contextlib import nullcontext
from typing import Any

import torch
from timm.utils import AverageMeter, reduce_tensor
from torch import nn

from regaug.data.counted import Counted
from regaug.device import to_device
from regaug.evaluators.accuracy import accumulate
from regaug.evaluators.ranks import sum_over_ranks
from regaug.training.averages import FULL, TermAverages, UpdateRecord, note_losses
from regaug.training.interrupt import Diverged, Interrupted


def accumulation(batch_idx: int, num_batches: int, grad_accum_steps: int):
    """Which micro-batches share an update.

    Args:
        batch_idx: micro-batch of the epoch, from 0.
        num_batches: micro-batches of the epoch; if they are no multiple of `grad_accum_steps` the rest is one update.
        grad_accum_steps: micro-batches per update.

    Returns:
        (group_size, completes): micro-batches in this one's update, and whether this one is the last of them.
    """
    tail = num_batches % grad_accum_steps
    if num_batches - tail <= batch_idx < num_batches:
        return tail, batch_idx == num_batches - 1
    return grad_accum_steps, (batch_idx + 1) % grad_accum_steps == 0


def updates_per_epoch(loader: Any, grad_accum_steps: int):
    return math.ceil(len(loader) / grad_accum_steps)


class Engine:
    """Runs epochs of training and evaluation.

    Args:
        task: a task with `begin_update`, `choose_input` and `loss_terms` (see `task.py`).
        updater: `updates.Updater`.
        args: training options.
        device: device of the batches.
        precision: `device.Precision`.
        stop: `interrupt.StopRequest`.
        report: gets every `UpdateRecord` (`on_update`), batch worth a picture (`on_batch`) and evaluation step.
        scheduler: timm's learning rate scheduler, stepped after every update, or None.
        save_recovery: function (epoch, update_idx) called every `--recovery-interval` updates, or None.
    """

    def __init__(
        self,
        task: nn.Module,
        updater: Any,
        args: Namespace,
        *,
        device: torch.device,
        precision: Any,
        stop: Any,
        report: Any,
        scheduler: Any = None,
        save_recovery: Any = None,
    ):
        self.task = task
        self.updater = updater
        self.args = args
        self.device = device
        self.precision = precision
        self.stop = stop
        self.report = report
        self.scheduler = scheduler
        self.save_recovery = save_recovery
        self.bad_updates = 0

    def train_one_epoch(self, epoch: int, loader: Any, mixup_fn: Any = None):
        """Train for one pass over the loader.

        Args:
            epoch: number of the epoch, from 0.
            loader: timm's train loader.
            mixup_fn: timm's mixing for batches that the collate function leaves alone, or None.

        Returns:
            Averages over the epoch: `loss` (the first term's criterion), then each further term by its name.

        Raises:
            Interrupted: a signal asked for a stop; the running update is finished.
            Diverged: loss or gradient was not finite for `--max-bad-updates` updates in a row.
        """
        args, task = self.args, self.task
        steps = args.grad_accum_steps
        num_batches, total_updates = len(loader), updates_per_epoch(loader, steps)
        num_updates = epoch * total_updates
        losses, update_time, data_time = AverageMeter(), AverageMeter(), AverageMeter()
        terms = TermAverages()
        task.train()
        self.updater.optimizer.zero_grad()
        update_idx = samples = epoch_samples = 0
        pending = []  # losses and sizes of the update's micro-batches
        waited = 0.0
        update_start = data_start = time.perf_counter()
        for batch_idx, (input, target) in enumerate(loader):
            group_size, completes = accumulation(batch_idx, num_batches, steps)
            input, target = self._prepare(input, target, mixup_fn)
            waited += time.perf_counter() - data_start
            if batch_idx % steps == 0:
                task.begin_update(num_updates)
            task.keep_pictures = self.report.wants_pictures
            input, target, metrics = task.choose_input(input, target)
            batch_size = len(target)
            terms.update(FULL, metrics, batch_size)
            scale = self._gradient_scale(loader, batch_size)
            loss = self._backward(input, target, terms, group_size=group_size, completes=completes, scale=scale)
            pending.append((loss, group_size, batch_size))
            samples += batch_size
            epoch_samples += batch_size
            if not completes:
                data_start = time.perf_counter()
                continue

            last = update_idx == total_updates - 1
            log_now = last or update_idx % args.log_interval == 0
            grad_norm = self.updater.step(measure_norm=log_now and self.report.wants_grad_norm)
            num_updates += 1
            task.update_ema(step=num_updates)
            scales = self.updater.loss_scaler is not None
            # The one place that waits for the device, beside the loss scaler.
            grad_norm, finite = note_losses(losses, pending, grad_norm, may_overflow=scales)
            if args.synchronize_step and self.device.type == 'cuda':
                torch.cuda.synchronize()
            update_time.update(time.perf_counter() - update_start)
            data_time.update(waited)
            if log_now:
                self.report.on_update(
                    UpdateRecord(
                        epoch=epoch,
                        update_idx=update_idx,
                        updates_per_epoch=total_updates,
                        num_updates=num_updates,
                        loss=self._average_over_ranks(losses),
                        terms=terms.last_values(),
                        lr=mean_lr(self.updater.optimizer),
                        samples=samples * args.world_size,
                        epoch_samples=epoch_samples * args.world_size,
                        update_time=update_time,
                        data_time=data_time,
                        grad_norm=grad_norm if self.report.wants_grad_norm else None,
                    )
                )
                self.report.on_batch(input, target, batch_idx, task.pictures())
            stop, bad = self.stop.agree(bad=not finite or self.updater.stuck)
            self._count_bad_update(bad, losses.val)
            if self.save_recovery and (update_idx + 1) % args.recovery_interval == 0 and not self.bad_updates:
                self.save_recovery(epoch, update_idx)
            if self.scheduler is not None:
                self.scheduler.step_update(num_updates=num_updates, metric=losses.avg)
            update_idx += 1
            if stop and not last:
                raise Interrupted(update_idx)
            samples, pending, waited = 0, [], 0.0
            update_start = data_start = time.perf_counter()

        if hasattr(self.updater.optimizer, 'sync_lookahead'):
            self.updater.optimizer.sync_lookahead()
        return OrderedDict(
            loss=self._average_over_ranks(losses).avg, **terms.compute(args.world_size, device=self.device)
        )

    def _prepare(self, input: torch.Tensor, target: torch.Tensor, mixup_fn: Any):
        """Move and mix a batch where the prefetcher does not, and lay it out in memory."""
        if self.args.no_prefetcher:
            input = to_device(input, self.device, self.precision.input_dtype)
            target = target.to(device=self.device)
            if mixup_fn is not None:
                input, target = mixup_fn(input, target)
        if self.args.channels_last:
            input = input.contiguous(memory_format=torch.channels_last)
        return input, target

    def _backward(
        self, input: torch.Tensor, target: torch.Tensor, terms: Any, *, group_size: int, completes: bool, scale: Any
    ):
        """Run forward and backward of each loss term in turn, so that one graph is alive at a time.

        Returns:
            The first term's loss: the full network's criterion on this micro-batch, on the device.
        """
        loss_terms = self.task.loss_terms(input, target)
        main_loss = None
        for index, (name, term) in enumerate(loss_terms):
            synchronise = completes and index == len(loss_terms) - 1
            with nullcontext() if synchronise else self.task.no_sync():
                result = term()
                loss = result['loss']
                if group_size > 1:
                    loss = loss / group_size
                if main_loss is None:
                    main_loss = loss.detach()
                if 'weight' in result:
                    loss = loss * result.pop('weight')
                self.updater.backward(loss if scale is None else loss * scale)
            terms.update(name, result, len(target))
        return main_loss

    def _gradient_scale(self, loader: Any, batch_size: int):
        """Factor on the gradient of a batch whose size varies, or None."""
        args = self.args
        if args.naflex_loader:
            scale = relative_scale(batch_size / args.batch_size, args.naflex_loss_scale)
            if args.distributed:
                size = torch.tensor(batch_size, device=self.device, dtype=torch.float32)
                scale = scale * args.world_size * batch_size / reduce_tensor(size, 1).item()
            return scale
        if args.variable_batch_loss_scale != 'none' and args.train_img_sizes:
            average = loader.batch_sampler.average_batch_size
            return relative_scale(batch_size / average, args.variable_batch_loss_scale)
        return None

    def _average_over_ranks(self, meter: Any):
        if self.args.world_size == 1:
            return meter
        values = torch.tensor([meter.val, meter.avg], device=self.device, dtype=torch.float32)
        averaged = AverageMeter()
        averaged.val, averaged.avg = reduce_tensor(values, self.args.world_size).tolist()
        return averaged

    def _count_bad_update(self, bad: Any, loss: torch.Tensor):
        self.bad_updates = self.bad_updates + 1 if bad else 0
        if self.args.max_bad_updates and self.bad_updates >= self.args.max_bad_updates:
            raise Diverged(
                f'loss (now {loss:g}) or gradient was not finite in {self.bad_updates} updates in a row '
                f'(--max-bad-updates {self.args.max_bad_updates}); a lower --lr or --clip-grad may help.'
            )

    @torch.inference_mode()
    def evaluate(self, loader: Any, model: nn.Module, *, ema: bool = False):
        """Evaluate a model.

        Args:
            loader: timm's evaluation loader.
            model: the model, outside of DDP.
            ema: it is the moving average (for the log).

        Returns:
            timm's metrics over all ranks: `loss` and, in per cent, `top1` and `top5` (for several labels an image
            `map` and F1 scores); also `unreadable`, the number of images left out, if some cannot be read.

        Raises:
            Interrupted: a signal asked for a stop.
        """
        args = self.args
        evaluator = self.task.create_evaluator()
        counted = Counted(loader)
        iterable = isinstance(loader.dataset, torch.utils.data.IterableDataset)
        batch_time = AverageMeter()
        last_idx = len(loader) - 1
        model.eval()
        start = time.perf_counter()

        def forward(input, target):
            input, target = self._prepare(input, target, mixup_fn=None)
            with self.precision.autocast():
                output = model(input)
                if isinstance(output, (tuple, list)):
                    output = output[0]
                if args.tta > 1:
                    output = output.unfold(0, args.tta, args.tta).mean(dim=2)
                    target = target[:: args.tta]
            index = counted(target)
            return output[index], target[index]

        def after_batch(batch_idx, target):
            nonlocal start
            batch_time.update(time.perf_counter() - start)
            start = time.perf_counter()
            if batch_idx == last_idx or batch_idx % args.log_interval == 0:
                self.report.on_eval_batch(batch_idx, last_idx, batch_time, evaluator.summary(), ema=ema)
            if not iterable and self.stop.agree()[0]:  # iterable data may be shared out unevenly
                raise Interrupted(0)

        accumulate([evaluator], loader, forward, after_batch)
        metrics = evaluator.compute(distributed=args.distributed)
        unreadable = sum_over_ranks(torch.tensor(counted.unreadable, device=self.device), args.distributed)
        return metrics | ({'unreadable': int(unreadable)} if unreadable else {})


def mean_lr(optimizer: torch.optim.Optimizer):
    """Learning rate averaged over the parameter groups, as timm reports it."""
    rates = [group['lr'] for group in optimizer.param_groups]
    return sum(rates) / len(rates)


def relative_scale(ratio: float, mode: Any):
    """Gradient factor for a batch of `ratio` times the usual size; `mode` is `none`, `sqrt` or `linear`."""
    return {'none': 1.0, 'sqrt': ratio**0.5, 'linear': ratio}[mode]
