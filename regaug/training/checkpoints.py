"""Checkpoints: written whole or not at all, read with clear messages, found again by `--resume auto`."""

import logging
import os
import shutil
from pathlib import Path
from typing import NamedTuple

from timm.models import clean_state_dict
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

from regaug.errors import OptionError
from regaug.files import check_weights, read_checkpoint

_logger = logging.getLogger('train')


class Saver(CheckpointSaver):
    """timm's saver, except that a file under its final name is always complete.

    Recovery checkpoints are marked: the epoch in which they were written is not finished.

    Raises:
        OptionError: from the save methods, when a file cannot be written (a full disk); earlier ones are intact.
    """

    _interrupted = False

    def save_recovery(self, epoch, batch_idx=0):
        self._interrupted = True
        try:
            super().save_recovery(epoch, batch_idx)
        finally:
            self._interrupted = False
        return self.curr_recovery_file

    def state_dict(self, epoch=None, metric=None):
        state = super().state_dict(epoch, metric)
        return {**state, 'interrupted': True} if self._interrupted else state

    def restart_ranking(self):
        """Rank anew from the next checkpoint on; the earlier files stay until better ones take their places."""
        self.checkpoint_files = [(path, None) for path, _ in self.checkpoint_files]
        self.best_metric = self.best_epoch = None

    def _save(self, save_path, epoch, metric=None):
        try:
            super()._save(save_path, epoch, metric)
            with open(save_path, 'rb') as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise self._failure(save_path, f'the checkpoint of epoch {epoch} cannot be written', error) from error

    def _replace(self, src, dst):
        os.replace(src, dst)

    def _duplicate(self, src, dst):
        temporary = f'{dst}.tmp'
        Path(temporary).unlink(missing_ok=True)
        try:
            os.link(src, temporary)
        except OSError:  # no hard links on this file system
            try:
                shutil.copy2(src, temporary)
            except OSError as error:
                raise self._failure(temporary, f'{os.path.basename(dst)} cannot be written', error) from error
        os.replace(temporary, dst)

    def _failure(self, unfinished, what, error):
        Path(unfinished).unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        return OptionError(f'--output {self.checkpoint_dir}: {what} ({reason}); earlier checkpoints are intact.')


class Resumed(NamedTuple):
    """Where a run goes on.

    Attributes:
        epoch: first epoch to run, None if the file does not say.
        interrupted: that epoch was interrupted before, and is repeated.
    """

    epoch: int | None
    interrupted: bool


def next_epoch(checkpoint, refine_only=False):
    """First epoch to run after a checkpoint; an interrupted epoch is repeated.

    Args:
        checkpoint: training checkpoint.
        refine_only: the run has no main phase (`--epochs 0`): after one that had, it starts with its first epoch.
    """
    if 'epoch' not in checkpoint:
        return Resumed(None, False)
    if refine_only and getattr(checkpoint.get('args'), 'epochs', 1):
        return Resumed(0, False)
    interrupted = bool(checkpoint.get('saver', {}).get('interrupted'))
    finished = checkpoint.get('version', 1) > 1 and not interrupted
    return Resumed(checkpoint['epoch'] + finished, interrupted)


def resume(task, path, *, optimizer=None, loss_scaler=None, log_info=True):
    """Continue from a checkpoint of ours or timm's.

    Args:
        task: task whose model (and own state) is loaded.
        optimizer: loaded too, unless None.
        loss_scaler: loaded too, unless None.

    Raises:
        OptionError: when the file is missing, truncated, foreign or does not fit.
    """
    checkpoint = read_checkpoint(path, '--resume', mmap=True)
    key = next((key for key in ('state_dict', 'model') if key in checkpoint), None)
    weights = clean_state_dict(checkpoint[key] if key else checkpoint)
    check_weights(weights, task.get_eval_model(), '--resume', path)
    try:
        resume_task_checkpoint(task, path, optimizer=optimizer, loss_scaler=loss_scaler, log_info=log_info)
    except (ValueError, KeyError) as error:
        raise OptionError(f'--resume {path}: {error}; --no-resume-opt starts a new optimiser.') from error


def resume_ema(task, path):
    """Load the moving average of a checkpoint, or its plain weights if it has none."""
    load_task_ema_checkpoint(task, path)


def find_newest(folder, *, finished_only):
    """The newest good checkpoint of an experiment's folder (`--resume auto`).

    Args:
        folder: where a saver keeps its files.
        finished_only: leave out those of interrupted epochs (`--exact-resume`).

    Returns:
        Path of the one from which the fewest epochs remain, the latest of these, or None. Unreadable ones are skipped
        with a warning.
    """
    found = []
    for path in Path(folder).glob('*.pth.tar'):
        try:
            checkpoint = read_checkpoint(path, '--resume auto', mmap=True)
        except OptionError as error:
            _logger.warning(f'Skipped: {error}')
            continue
        epoch, interrupted = next_epoch(checkpoint)
        if 'state_dict' in checkpoint and epoch is not None and not (interrupted and finished_only):
            found.append((epoch, path.stat().st_mtime, path.name == 'last.pth.tar', str(path)))
    return max(found)[-1] if found else None
