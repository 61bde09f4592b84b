"""Checkpoints: written whole or not at all, and only of weights that are finite."""

import contextlib
import logging
import math
import os
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

from timm.utils import CheckpointSaver

from regaug.errors import OptionError
from regaug.files import first_not_finite, read_checkpoint

_logger = logging.getLogger('train')
_TEMPORARY = ('tmp.pth.tar', 'recovery_tmp.pth.tar', '*.pth.tar.tmp', 'args.yaml.tmp', 'summary.csv.tmp')


class Saver(CheckpointSaver):
    """timm's saver, except that a file under its final name is always complete and its weights are finite.

    Recovery checkpoints are marked: the epoch in which they were written is not finished. `save_between` writes one of
    a finished epoch that is not evaluated and so has no place in the ranking.

    Attributes:
        earlier: see `resume.Resumed`; kept in the checkpoints.

    Raises:
        OptionError: from the save methods, when a file cannot be written (a full disk); earlier ones are intact.
    """

    earlier = 0
    _recovery = None  # while a recovery checkpoint is written: what its saver's state says beside the history

    def save_checkpoint(self, epoch: int, metric: Any = None):
        """Save an epoch, unless the weights are not finite; it has no rank if its metric is no number.

        Returns:
            What timm's saver gives, (best metric, its epoch); None if it was not saved.
        """
        if not self._check_finite(f'epoch {epoch}'):
            return None
        if metric is not None and math.isnan(metric):
            metric = None  # which nothing could beat
        return super().save_checkpoint(epoch, metric)

    def save_recovery(self, epoch: int, batch_idx: int = 0):
        """Save the middle of an epoch, unless the weights are not finite.

        Returns:
            Path of the file, None if it was not saved.
        """
        return self._recover(epoch, batch_idx, f'update {batch_idx} of epoch {epoch}', {'interrupted': True})

    def save_between(self, epoch: int):
        """Save a finished epoch beside the ranked ones, as `recovery-<epoch>-end`, unless the weights are not finite.

        Returns:
            Path of the file, None if it was not saved.
        """
        return self._recover(epoch, 'end', f'epoch {epoch}', {})

    def _recover(self, epoch: int, place: int | str, what: str, mark: dict) -> str | None:
        if not self._check_finite(what):
            return None
        self._recovery = mark
        try:
            super().save_recovery(epoch, place)
        finally:
            self._recovery = None
        return self.curr_recovery_file

    def state_dict(self, epoch: int | None = None, metric: Any = None):
        earlier = {'earlier': self.earlier} if self.earlier else {}
        if self._recovery is not None:  # no checkpoint of this epoch is about to join the history
            return {**super().state_dict(), **self._recovery, **earlier}
        return {**super().state_dict(epoch, metric), **earlier}

    def restore(self, path: str | Path):
        """Take up the history from a checkpoint of this folder, as if no kill had come between two steps of saving.

        What the last save left undone is done: a place in the ranking, `model_best`. What only a killed process leaves
        behind is removed: temporary files, and recovery checkpoints beyond timm's two.

        Args:
            path: the checkpoint that the run goes on from.
        """
        folder = Path(self.checkpoint_dir)
        checkpoint = read_checkpoint(path, '--resume', mmap=True)
        state = checkpoint.get('saver') or self._found_history()
        epoch, metric = state.get('pending', (None, None))
        super().load_state_dict({**state, 'pending': (None, None)})
        saved = None if epoch is None else self._checkpoint_path(epoch)
        if epoch is not None and saved not in [name for name, _ in self.checkpoint_files]:
            self._rank(path, epoch, metric)
            _logger.info(f'With the checkpoint itself: best metric {self.best_metric} (epoch {self.best_epoch}).')
        best = folder / f'model_best{self.extension}'
        source = None if self.best_epoch is None else Path(self._checkpoint_path(self.best_epoch))
        if source is not None and source.exists() and not (best.exists() and os.path.samefile(best, source)):
            self._duplicate(str(source), str(best))
        for pattern in _TEMPORARY:
            for leftover in folder.glob(pattern):
                leftover.unlink()
        recoveries = sorted(folder.glob(f'{self.recovery_prefix}-*{self.extension}'), key=os.path.getmtime)
        for old in recoveries[:-2]:
            old.unlink()
        kept = [str(name) for name in recoveries[-2:]]
        self.prev_recovery_file, self.curr_recovery_file = ['', '', *kept][-2:]
        self._check_measure(checkpoint.get('args'))

    def _found_history(self) -> dict[str, Any]:
        """The history that the files of the folder tell, where checkpoints have none (older versions of timm)."""
        found = []
        for path in Path(self.checkpoint_dir).glob(f'*{self.extension}'):
            if not path.name.startswith((f'{self.save_prefix}-', 'model_best')):
                continue
            with contextlib.suppress(OptionError):
                checkpoint = read_checkpoint(path, '--resume', mmap=True)
                metric = checkpoint.get('metric')
                if metric is not None and not math.isnan(metric):
                    found.append((path, float(metric), checkpoint['epoch']))
        if not found:
            return {}
        found.sort(key=lambda each: each[1], reverse=not self.decreasing)
        ranked = [(path.name, metric) for path, metric, _ in found if path.name.startswith(f'{self.save_prefix}-')]
        _, metric, epoch = found[0]
        return {'checkpoint_files': ranked, 'best_metric': metric, 'best_epoch': epoch}

    def _check_measure(self, before: Namespace | None):
        """Rank anew where the run measures otherwise than the one that it goes on from."""
        names = ('eval_metric', 'model_ema', 'model_ema_force_cpu')
        here = {name: getattr(self.args, name, None) for name in names}
        there = {name: getattr(before, name, here[name]) for name in names}
        if there != here:
            differing = [
                f'{name} {there[name]} before, {here[name]} now' for name in names if there[name] != here[name]
            ]
            options = ', '.join(differing)
            _logger.warning(f'Epochs are measured otherwise than in the checkpoint ({options}) and ranked anew.')
            self.restart_ranking()

    def _rank(self, path: str | Path, epoch: int, metric: Any):
        """Give a checkpoint that was written its place in the ranking, if it earns one (as timm does when saving)."""
        full = len(self.checkpoint_files) >= self.max_history
        worst = self.checkpoint_files[-1][1] if self.checkpoint_files else None
        if full and not (worst is None or (metric is not None and self.cmp(metric, worst))):
            return
        if full:
            self._cleanup_checkpoints(1)
        saved = self._checkpoint_path(epoch)
        if os.path.realpath(path) != os.path.realpath(saved):
            self._duplicate(path, saved)
        self._track_checkpoint(saved, epoch, metric, update_best_file=False)

    def restart_ranking(self):
        """Rank anew from the next checkpoint on; the earlier files stay until better ones take their places."""
        self.checkpoint_files = [(path, None) for path, _ in self.checkpoint_files]
        self.best_metric = self.best_epoch = None

    def _check_finite(self, what: str) -> bool:
        """Whether all weights are finite, with a warning if not."""
        states = {'state_dict': self.model.state_dict()}
        if self.task is not None:
            states |= self.task.get_checkpoint_state(ema=True)
        for key in ('state_dict', 'state_dict_ema'):
            name = first_not_finite(states.get(key, {}))
            if name is not None:
                _logger.warning(f'No checkpoint is written of {what}: {name} is not finite.')
                return False
        return True

    def _save(self, save_path: Any, epoch: int, metric: Any = None):
        try:
            super()._save(save_path, epoch, metric)
            with open(save_path, 'rb') as file:
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            raise self._failure(save_path, f'the checkpoint of epoch {epoch} cannot be written', error) from error

    def _replace(self, src: Any, dst: Any):
        os.replace(src, dst)

    def _duplicate(self, src: Any, dst: Any):
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

    def _failure(self, unfinished: Any, what: Any, error: Any):
        Path(unfinished).unlink(missing_ok=True)
        reason = str(error).splitlines()[0]
        return OptionError(f'--output {self.checkpoint_dir}: {what} ({reason}); earlier checkpoints are intact.')
