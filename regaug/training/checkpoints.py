"""Checkpoints: written whole or not at all, read with clear messages, found again by `--resume auto`."""

import argparse
import logging
import os
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from timm.models import clean_state_dict, load_state_dict
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from timm.utils import CheckpointSaver

from regaug.errors import OptionError

_logger = logging.getLogger('train')
_NUMPY = ('.npz', '.npy')  # read by timm's models themselves


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


def read_checkpoint(path, option, mmap=False):
    """Read a training checkpoint or a file of weights, tensors and plain values only.

    Raises:
        OptionError: naming `option`, when the file is missing, truncated or no checkpoint.
    """
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # PyTorch's older format cannot be mapped
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise OptionError(f'{option} {path}: there is no such file.') from error
    except Exception as error:  # on bytes that are no checkpoint the unpickler raises whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(f'{option} {path}: truncated, or no checkpoint of PyTorch ({reason}).') from error
    if not isinstance(checkpoint, dict):
        raise OptionError(f'{option} {path}: holds a {type(checkpoint).__name__}, not a dict of weights.')
    return checkpoint


def read_weights(path, option, *, use_ema=True):
    """The weights in a file by name: a checkpoint of timm's or ours, a state dict, or safetensors.

    Args:
        path: the file.
        option: the option that named it, for messages.
        use_ema: take the moving average where there is one, as timm does.

    Raises:
        OptionError: when the file is missing, truncated or foreign.
    """
    if not Path(path).is_file():
        raise OptionError(f'{option} {path}: there is no such file.')
    if Path(path).suffix.lower() != '.safetensors':
        read_checkpoint(path, option, mmap=True)
    try:
        return load_state_dict(str(path), use_ema=use_ema)
    except SafetensorError as error:
        raise OptionError(f'{option} {path}: truncated, or no safetensors file ({error}).') from error


def check_weights(state_dict, model, option, path):
    """Compare weights with a model before they are loaded.

    Raises:
        OptionError: naming `option`, with a summary of the names and shapes that differ.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state_dict.items() if torch.is_tensor(value)}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f'{name} {found[name]} for {shape}'
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    differences = [
        f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for names, what in ((missing, 'missing'), (unexpected, 'unexpected'), (shapes, 'of another shape'))
        if names
    ]
    if differences:
        raise OptionError(f'{option} {path}: does not fit {type(model).__name__}: {"; ".join(differences)}.')


def load_weights(model, path, *, use_ema, option):
    """Load the weights of a checkpoint (timm's or ours, `.pth.tar`, `.pth`, `.safetensors`, `.npz`) into a model.

    Args:
        use_ema: take the moving average where the checkpoint has one.
        option: the option that named the file, for messages.

    Raises:
        OptionError: when the file is missing, truncated, foreign or does not fit.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _NUMPY:
        if not Path(path).is_file():
            raise OptionError(f'{option} {path}: there is no such file.')
        if not hasattr(model, 'load_pretrained'):
            raise OptionError(f'{option} {path}: {type(model).__name__} cannot read NumPy checkpoints.')
        model.load_pretrained(str(path))
        return
    state_dict = read_weights(path, option, use_ema=use_ema)
    check_weights(state_dict, model, option, path)
    model.load_state_dict(state_dict)


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
