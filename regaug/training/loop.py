"""The loop over epochs: train, evaluate, note, save, schedule; what a signal or a divergence makes of it.

A `run.Run` says how its model is evaluated, whether epochs are seeded, and how an interrupted run is gone on with.
"""

import json
import logging
from argparse import Namespace
from typing import Any

import torch.distributed as dist
from timm.utils import distribute_bn
from torch import nn

from regaug.errors import OptionError
from regaug.seeds import derived_seed, reseed_epoch
from regaug.training.engine import mean_lr
from regaug.training.interrupt import Diverged, Interrupted
from regaug.training.phases import phase_at
from regaug.training.report import is_evaluated
from regaug.training.resume import find_newest
from regaug.training.summary import epoch_row

_logger = logging.getLogger('train')


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
    args = run.args
    phase = phase_at(epoch, args)
    run.start_phase(phase)
    if epoch == run.first_refining and run.eval_loader is None and run.primary:
        run.saver.restart_ranking()  # train losses with and without augmentation do not compare
    if run.reseeds:
        reseed_epoch(args.seed, epoch, args.rank)
        if run.task.has_ema():  # it rounds bfloat16 by a generator of its own, which all ranks have alike
            run.task.get_trainable_module(ema=True)._sr_generator.manual_seed(derived_seed('ema', args.seed, epoch))
    run.train_data.set_epoch(epoch)
    run.task.start_epoch(epoch)
    train_metrics = run.engine.train_one_epoch(epoch, run.train_data.loader, run.train_data.mixup_fn)
    run.report.on_unreadable(getattr(run.train_set, 'num_unreadable', 0))
    share_batch_norm(run.args, run.task.get_trainable_module())
    if run.reseeds:  # from the first rank's average, which is saved, all would go on
        share_average(run)

    if not is_evaluated(args, epoch, run.num_epochs):
        if run.primary and args.exact_resume:
            run.saver.save_between(epoch)  # the middle of the next epoch will be no place to resume exactly from
        if run.scheduler is not None:
            run.scheduler.step(epoch + 1, metric=None)
        return None

    eval_metrics = run.evaluate(epoch)
    metric = (eval_metrics or train_metrics).get(args.eval_metric)  # of what the first rank alone measures
    if run.primary:
        row = epoch_row(epoch, train_metrics, eval_metrics, mean_lr(run.optimizer), phase.name)
        run.summary.add(row)
        run.saver.save_checkpoint(epoch, metric=metric)
        run.report.on_epoch(row, metric=args.eval_metric, best=run.best)
    if run.scheduler is not None:
        run.scheduler.step(epoch + 1, metric)
    return {'epoch': epoch, 'train': train_metrics, **({'validation': eval_metrics} if eval_metrics else {})}


def evaluate(run: Any) -> dict[str, float] | None:
    """Metrics of the model on the evaluation data, or of its moving average; None without such data."""
    if run.eval_loader is None:
        return None
    metrics = run.engine.evaluate(run.eval_loader, run.eval_model)
    ema_model = share_average(run)
    if ema_model is not None:
        metrics = run.engine.evaluate(run.eval_loader, ema_model, ema=True)
    return metrics


def share_average(run: Any) -> nn.Module | None:
    """The moving average, with the same batch-norm statistics on every rank; None where there is none to evaluate."""
    if not run.task.has_ema() or run.args.model_ema_force_cpu:
        return None
    ema_model = run.task.get_eval_model(ema=True)
    share_batch_norm(run.args, ema_model)
    return ema_model


def share_batch_norm(args: Namespace, model: nn.Module):
    """Give every rank the same batch-norm statistics (`--dist-bn`)."""
    if args.distributed and args.dist_bn in ('broadcast', 'reduce'):
        distribute_bn(model, args.world_size, args.dist_bn == 'reduce')


def save_interrupted(run: Any, epoch: int, interrupted: Any):
    """Write a recovery checkpoint and say how to go on."""
    if run.primary:
        try:
            path = run.saver.save_recovery(epoch, interrupted.update_idx)
        except OptionError as error:  # a full disk
            _logger.warning(str(error))
            path = None
        written = path is not None
        if path is None or run.args.exact_resume:  # the middle of an epoch is no place to resume exactly from
            path = find_newest(run.folder, finished_only=run.args.exact_resume) or run.args.resume
            written = epoch > run.start_epoch
        text = f'Stopped in epoch {epoch}, which will be repeated from its start. Go on with:'
        _logger.warning(f'{text}\n{run.command_to_go_on(path, written=written)}')
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
