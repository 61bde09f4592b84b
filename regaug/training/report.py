"""What a run tells: the console lines, and the same metrics to Weights & Biases."""

import logging
import os
import time
from argparse import Namespace
from datetime import timedelta
from typing import Any

import torch
from timm.utils import AverageMeter
from torchvision.utils import save_image

from regaug.training.averages import FULL

_logger = logging.getLogger('train')
_SLOW_DATA = 0.2  # share of the time


class Report:
    """Prints progress on the first rank and hands the metrics on.

    Args:
        args: training options.
        num_epochs: epochs of the whole run.
        primary: this process prints.
        output_dir: folder for timm's pictures of `--save-images`, or None.
        pictures: `pictures.Pictures` for the first batch of each phase, or None.
        wandb_log: `wandb_log.WandbLog`, or None.
    """

    def __init__(
        self,
        args: Namespace,
        *,
        num_epochs: int,
        primary: bool,
        output_dir: Any = None,
        pictures: Any = None,
        wandb_log: Any = None,
    ):
        self.args = args
        self.num_epochs = num_epochs
        self.primary = primary
        self.output_dir = output_dir
        self.pictures = pictures
        self.wandb_log = wandb_log
        self.eval_seconds = AverageMeter()
        self.eval_batch_seconds = 0.0
        self.phase = None
        self.last_record = None
        self.num_unreadable = 0
        self.num_views = 1
        self.start = time.monotonic()
        self._picture_due = False
        self._warned_of_data = False

    @property
    def wants_grad_norm(self):
        return self.args.log_wandb

    @property
    def wants_pictures(self) -> bool:
        """The next batch is the first of its phase, and somebody looks at it."""
        return self._picture_due and self.primary and (self.pictures is not None or self.wandb_log is not None)

    def start_phase(self, phase: Any):
        """Tell once what a new phase switches off; its first batch becomes a picture."""
        if self.phase is None or phase.name != self.phase:
            off = f': off from here on: {", ".join(phase.switched_off)}' if phase.switched_off else ''
            if self.primary and (self.phase is not None or off):
                _logger.info(f'Phase {phase.name}{off}.')
            self._picture_due = True
        if phase.num_views != self.num_views:
            self.num_views, self._warned_of_data = phase.num_views, False
        self.phase = phase.name

    def on_update(self, record: Any):
        """Print timm's line, with the time left and, on CUDA, the peak memory."""
        self.last_record = record
        if not self.primary:
            return
        left = self.seconds_left(record, epoch=record.epoch, updates_done=record.update_idx + 1)
        percent = 100.0 * (record.update_idx + 1) / record.updates_per_epoch
        seconds, waiting = record.update_time, record.data_time
        average_rate = record.epoch_samples / max(seconds.sum, 1e-9)
        _logger.info(
            f'Train: {record.epoch} [{record.update_idx:>4d}/{record.updates_per_epoch} ({percent:>3.0f}%)]  '
            f'Loss: {record.loss.val:#.3g} ({record.loss.avg:#.3g})  '
            f'Time: {seconds.val:.3f}s, {record.samples / max(seconds.val, 1e-9):>7.2f}/s  '
            f'({seconds.avg:.3f}s, {average_rate:>7.2f}/s)  '
            f'LR: {record.lr:.3e}  Data: {waiting.val:.3f} ({waiting.avg:.3f}){term_metrics(record)}  '
            f'Left: {timedelta(seconds=round(left))}{peak_memory()}'
        )
        self._warn_of_slow_data(record)
        if self.wandb_log is not None:
            self.wandb_log.on_update(record, self.phase)

    def seconds_left(self, record: Any, *, epoch: int, updates_done: int) -> float:
        """Seconds to the end of the run, from the averages so far.

        Args:
            record: the last one.
            epoch: the first that is not done, with its evaluation.
            updates_done: updates of this epoch that are done.
        """
        updates = (self.num_epochs - epoch) * record.updates_per_epoch - updates_done
        evaluations = count_evaluations(self.args, epoch, self.num_epochs)
        return updates * record.update_time.avg + evaluations * self.eval_seconds.avg

    def _warn_of_slow_data(self, record: Any):
        share = record.data_time.sum / max(record.update_time.sum, 1e-9)
        if share > _SLOW_DATA and record.num_updates > 10 and not self._warned_of_data:
            self._warned_of_data = True
            views = f' Each image is transformed {self.num_views} times.' if self.num_views > 1 else ''
            _logger.warning(
                f'{100 * share:.0f} % of the time goes into waiting for data; more --workers (now '
                f'{self.args.workers}), smaller images on disk or a faster disk may help.{views}'
            )

    def on_batch(self, input: torch.Tensor, target: torch.Tensor, batch_idx: int, more: Any = ()):
        """Keep pictures of a training batch: timm's of every one under `--save-images`, more of a phase's first.

        Args:
            input, target: what the full network trained on.
            more: pictures of the methods.
        """
        if not self.primary:
            return
        if not torch.is_tensor(input):  # patches of NaFlex
            return
        try:
            if self.args.save_images and self.output_dir:
                path = os.path.join(self.output_dir, f'train-batch-{batch_idx}.jpg')
                save_image(input, path, padding=0, normalize=True)
            if self.wants_pictures and self.pictures is not None:
                self.pictures.save(self.phase, input, target, more)
        except OSError as error:  # a full disk: the run is worth more than its pictures
            _logger.warning(f'No pictures any more: {error}.')
            self.output_dir = self.pictures = None
        if self.wants_pictures and self.wandb_log is not None:
            self.wandb_log.on_picture(input, target, self.phase)
        self._picture_due = False

    def on_unreadable(self, count: int):
        """Warn when images could not be read; `count` is over the whole run, on this rank."""
        if count > self.num_unreadable:
            _logger.warning(f'{count} times so far an unreadable image was replaced by another one.')
        self.num_unreadable = count

    def on_eval_batch(self, batch_idx: int, last_idx: int, batch_time: Any, metrics: dict[str, Any], *, ema: bool):
        self.eval_batch_seconds = batch_time.val
        if batch_idx == last_idx:
            self.eval_seconds.update(batch_time.sum)
        if self.primary:
            text = '  '.join(f'{label(name)}: {value:>7.3f}' for name, value in metrics.items())
            _logger.info(
                f'Test{" (EMA)" if ema else ""}: [{batch_idx:>4d}/{last_idx}]  '
                f'Time: {batch_time.val:.3f} ({batch_time.avg:.3f})  {text}'
            )

    def on_epoch(self, row: dict, *, metric: str, best: tuple[float | None, int | None]):
        """Print one line that sums up an epoch.

        Args:
            row: the epoch's row of the summary, and what goes to W&B beside it.
            metric: what checkpoints are ranked by.
            best: (value, epoch) of the best checkpoint so far, None where there is none.
        """
        if self.wandb_log is not None:
            self.wandb_log.on_epoch(row)
        parts = [f'{label(name)}: {row[name]:#.4g}' for name in ('train_loss', 'eval_loss') if name in row]
        if metric != 'loss':
            parts.append(f'{label(metric)}: {row[f"eval_{metric}"]:.2f}')
        if best[0] is not None:
            parts.append(f'Best: {best[0]:#.4g} (epoch {best[1]})')
        left = self.seconds_left(self.last_record, epoch=row['epoch'] + 1, updates_done=0)
        _logger.info(f'Epoch {row["epoch"]}: {"  ".join(parts)}  Left: {timedelta(seconds=round(left))}')

    def on_end(self, results: list[dict], *, metric: str, best: tuple[float | None, int | None]):
        """Print a small table: the best and the final epoch, the time, images a second.

        Args:
            results: of the epochs of this process that were evaluated, each with `epoch`, `train` and `validation`.
            metric: what checkpoints are ranked by.
            best: (value, epoch) of the best checkpoint, of earlier processes too.
        """
        final = results[-1]
        names = [name for name in final.get('validation', final['train']) if name != 'unreadable'][:4]
        widths = [max(12, len(label(name)) + 2) for name in names]
        titles = ''.join(f'{label(name):>{width}}' for name, width in zip(names, widths, strict=True))
        lines = [f'{"":>12}{"Epoch":>12}{titles}']
        known = {result['epoch']: result.get('validation', result['train']) for result in results}
        for title, epoch in (('best', best[1]), ('final', final['epoch'])):
            if epoch is None:
                continue
            values = known.get(epoch, {metric: best[0]})  # of an earlier process no more is known
            numbers = (f'{values[name]:.4f}' if name in values else '-' for name in names)
            cells = (f' {number:>{width - 1}}' for number, width in zip(numbers, widths, strict=True))
            lines.append(f'{title:>12}{epoch:>12}' + ''.join(cells))
        _logger.info('\n'.join(lines))
        record = self.last_record
        rate = record.epoch_samples / max(record.update_time.sum, 1e-9)
        spent = timedelta(seconds=round(time.monotonic() - self.start))
        _logger.info(f'Time: {spent}  Images: {rate:.1f}/s')
        _logger.info(f'*** Final metric: {final.get("validation", final["train"])[metric]} (epoch {final["epoch"]})')
        if best[0] is not None:
            _logger.info(f'*** Best metric: {best[0]} (epoch {best[1]})')


def is_evaluated(args: Namespace, epoch: int, num_epochs: int):
    """True for an epoch after which there is an evaluation and a checkpoint."""
    return (epoch + 1) % args.val_interval == 0 or epoch == num_epochs - 1


def count_evaluations(args: Namespace, first_epoch: int, num_epochs: int):
    """Passes over the evaluation data from `first_epoch` to the end; a moving average needs one of its own."""
    passes = 2 if args.model_ema and not args.model_ema_force_cpu else 1
    return passes * sum(is_evaluated(args, epoch, num_epochs) for epoch in range(first_epoch, num_epochs))


def label(name: str) -> str:
    """A metric's name as the console shows it: `eval_top1` is "Eval top1"."""
    return name[:1].upper() + name[1:].replace('_', ' ')


def term_metrics(record: Any) -> str:
    """Metrics of the further loss terms as part of a console line, one group for each kind of metric."""
    groups = {}
    for (term, key), value in record.terms.items():
        if '/' in key:  # one of many, for W&B
            continue
        kind = '' if term == FULL else term.rstrip('0123456789') + '_'
        groups.setdefault(kind + key.rstrip('0123456789'), []).append(f'{value:.3g}')
    return ''.join(f'  {label(key)}: {" ".join(values)}' for key, values in groups.items())


def peak_memory():
    """Peak memory of this process on CUDA as part of a console line, empty elsewhere."""
    if not torch.cuda.is_available():
        return ''
    return f'  Mem: {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB'
