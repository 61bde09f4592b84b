"""The learning rate schedule of a run: timm's, from the epoch on at which the run starts."""

from argparse import Namespace

import torch
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.scheduler.scheduler import Scheduler


def start_schedule(
    args: Namespace, optimizer: torch.optim.Optimizer, epoch: int, *, updates_per_epoch: int, decreasing: bool
) -> tuple[Scheduler | None, int]:
    """timm's schedule, at the start of an epoch, and its number of epochs; (None, 0) with `--epochs 0`.

    Args:
        decreasing: the metric that a plateau schedule waits for is better when smaller.
    """
    if not args.epochs:
        return None, 0
    rates = [group['lr'] for group in optimizer.param_groups]
    kwargs = scheduler_kwargs(args, decreasing_metric=decreasing)
    scheduler, epochs = create_scheduler_v2(optimizer, **kwargs, updates_per_epoch=updates_per_epoch)
    if args.sched == 'plateau' and epoch > args.warmup_epochs:  # of which it knows no rate by the epoch
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group['lr'] = rate
    advance_schedule(scheduler, epoch, args, updates_per_epoch=updates_per_epoch)
    return scheduler, epochs


def advance_schedule(scheduler: Scheduler | None, epoch: int, args: Namespace, *, updates_per_epoch: int):
    """Give the learning rate that a schedule has at the start of an epoch."""
    if scheduler is None or not epoch:
        return
    if args.sched_on_updates:
        scheduler.step_update(epoch * updates_per_epoch)
    else:
        scheduler.step(epoch)
