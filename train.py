#!/usr/bin/env python
"""Train an image classifier with timm, and with regaug's regularisation by augmentation.

timm's options, files and numbers; `--help` lists what is added.
"""

import json
import logging
from typing import Any

import torch.distributed as dist
from timm.utils import distribute_bn
from torch import nn

from regaug import cli, options
from regaug.errors import OptionError
from regaug.seeds import reseed_epoch
from regaug.training.dry_run import dry_run
from regaug.training.engine import mean_lr
from regaug.training.interrupt import Diverged, Interrupted, command_to_go_on
from regaug.training.phases import phase_at
from regaug.training.report import is_evaluated
from regaug.training.resume import find_newest
from regaug.training.run import Run
from regaug.training.summary import epoch_row

_logger = logging.getLogger('train')


def main(argv: Any = None):
    args = options.parse_train(argv)
    run = Run(args).build()
    try:
        if args.dry_run:
            return dry_run(run)
        if run.finished:
            where = f' in {args.resume}' if args.resume else ''
            _logger.info(f'Nothing is left to train: {run.start_epoch} of {run.num_epochs} epochs are done{where}.')
            return 0
        run.stop.install()
        return train(run)
    finally:
        run.close()


def train(run: Any):
    """Run the epochs that remain; on SIGTERM or SIGINT stop after the running update with a recovery checkpoint.

    Returns:
        Exit status: 0, or 128 and the signal's number.
    """
    results = []
    epoch = run.start_epoch
    try:
        for epoch in range(run.start_epoch, run.num_epochs):
            if run.stop.agree()[0]:
                raise Interrupted(0)
            result = run_epoch(run, epoch)
            if result is not None:
                results.append(result)
    except Interrupted as interrupted:
        return save_interrupted(run, epoch, interrupted)
    except Diverged as diverged:
        good = find_newest(run.folder, finished_only=False)
        where = f'The last good checkpoint is {good}.' if good else 'There is no good checkpoint.'
        raise OptionError(f'Epoch {epoch}: {diverged} {where}') from diverged
    except RuntimeError:
        # A loader's worker that ended on the same signal: the update cannot be finished, the run can.
        if run.stop.signum is None or run.args.distributed:
            raise
        return save_interrupted(run, epoch, Interrupted(0))
    finally:
        if run.wandb_log is not None:
            run.wandb_log.finish()
    if run.args.distributed:
        dist.destroy_process_group()
    report_results(run, results)
    return 0


def run_epoch(run: Any, epoch: int):
    """Train, evaluate, note, save and schedule one epoch.

    Returns:
        The epoch's metrics, or None when evaluation and saving are skipped.
    """
    args, task = run.args, run.task
    phase = phase_at(epoch, args)
    run.start_phase(phase)
    if epoch == run.first_refining and run.eval_loader is None and run.primary:
        run.saver.restart_ranking()  # train losses with and without augmentation do not compare
    if args.exact_resume:
        reseed_epoch(args.seed, epoch, args.rank)
    run.train_data.set_epoch(epoch)
    task.start_epoch(epoch)
    train_metrics = run.engine.train_one_epoch(epoch, run.train_data.loader, run.train_data.mixup_fn)
    run.report.on_unreadable(getattr(run.train_set, 'num_unreadable', 0))
    share_batch_norm(run, task.get_trainable_module())

    if not is_evaluated(args, epoch, run.num_epochs):
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric=None)
        return None

    eval_metrics = None
    if run.eval_loader is not None:
        eval_metrics = run.engine.evaluate(run.eval_loader, run.eval_model)
        if task.has_ema() and not args.model_ema_force_cpu:
            ema_model = task.get_eval_model(ema=True)
            share_batch_norm(run, ema_model)
            eval_metrics = run.engine.evaluate(run.eval_loader, ema_model, ema=True)
    metric = (eval_metrics or train_metrics)[args.eval_metric]
    if run.primary:
        row = epoch_row(epoch, train_metrics, eval_metrics, mean_lr(run.optimizer), phase.name)
        run.summary.add(row)
        run.saver.save_checkpoint(epoch, metric=metric)
        run.report.on_epoch(row, metric=args.eval_metric, best=run.best)
    if run.scheduler is not None:
        run.scheduler.step(epoch + 1, metric)
    return {'epoch': epoch, 'train': train_metrics, **({'validation': eval_metrics} if eval_metrics else {})}


def share_batch_norm(run: Any, model: nn.Module):
    """Give every rank the same batch-norm statistics (`--dist-bn`)."""
    if run.args.distributed and run.args.dist_bn in ('broadcast', 'reduce'):
        distribute_bn(model, run.args.world_size, run.args.dist_bn == 'reduce')


def save_interrupted(run: Any, epoch: int, interrupted: Any):
    """Write a recovery checkpoint and say how to go on."""
    if run.primary:
        path = run.saver.save_recovery(epoch, interrupted.update_idx)
        if path is None or run.args.exact_resume:  # the middle of an epoch is no place to resume exactly from
            path = find_newest(run.folder, finished_only=run.args.exact_resume) or run.args.resume
        command = command_to_go_on(run.experiment, path)
        _logger.warning(f'Stopped in epoch {epoch}, which will be repeated from its start. Go on with:\n{command}')
    if run.args.distributed:
        dist.barrier()  # torchrun ends all processes when the first one is gone
        dist.destroy_process_group()
    return 128 + (run.stop.signum or 0)


def report_results(run: Any, results: list[dict[str, Any]]):
    """Print the best and the final epoch, and the ten best as JSON for other programs to read."""
    if not run.primary:
        return
    name = run.args.eval_metric
    if results:
        run.report.on_end(results, metric=name, best=run.best)
    ranked = sorted(
        results, key=lambda result: result.get('validation', result['train']).get(name, 0), reverse=run.decreasing
    )
    print(f'--result\n{json.dumps(ranked[-10:], indent=4)}')


if __name__ == '__main__':
    cli.run(main)
