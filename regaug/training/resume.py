"""Going on from a checkpoint: which one, from which epoch, with clear messages."""

import argparse
import logging
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from timm.models import clean_state_dict
from timm.task import load_task_ema_checkpoint, resume_task_checkpoint
from torch import nn

from regaug.errors import OptionError
from regaug.files import check_finite, check_weights, read_checkpoint

_logger = logging.getLogger('train')
_NAMES = ('last.pth.tar', 'model_best.pth.tar', 'checkpoint-*.pth.tar', 'recovery-*.pth.tar')  # none of them temporary


class Resumed(NamedTuple):
    """Where a run goes on.

    Attributes:
        epoch: first epoch to run, None if the file does not say.
        interrupted: that epoch was interrupted before, and is repeated.
        earlier: epochs before them that the run does not count: it has no main phase and goes on from one that had.
    """

    epoch: int | None
    interrupted: bool
    earlier: int = 0


def next_epoch(checkpoint: dict[str, Any], refine_only: bool = False):
    """First epoch to run after a checkpoint; an interrupted epoch is repeated.

    Args:
        checkpoint: training checkpoint.
        refine_only: the run has no main phase (`--epochs 0`): after one that had, it starts with its first epoch.
    """
    if 'epoch' not in checkpoint:
        return Resumed(None, False)
    saver = checkpoint.get('saver', {})
    interrupted = bool(saver.get('interrupted'))
    finished = checkpoint.get('version', 1) > 1 and not interrupted
    epoch, earlier = checkpoint['epoch'] + finished, saver.get('earlier', 0)
    if refine_only and getattr(checkpoint.get('args'), 'epochs', 1):
        return Resumed(0, False, earlier + epoch)
    return Resumed(epoch, interrupted, earlier)


def resume(
    task: nn.Module,
    path: str | Path,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    args: argparse.Namespace | None = None,
    loss_scaler: Any = None,
    log_info: bool = True,
):
    """Continue from a checkpoint of ours or timm's.

    Args:
        task: task whose model (and own state) is loaded.
        optimizer: loaded too, unless None.
        args: options of the run, which the optimiser of the checkpoint is held against.
        loss_scaler: loaded too, unless None.

    Raises:
        OptionError: when the file is missing, truncated, foreign or does not fit.
    """
    checkpoint = read_checkpoint(path, '--resume', mmap=True)
    key = next((key for key in ('state_dict', 'model') if key in checkpoint), None)
    weights = clean_state_dict(checkpoint[key] if key else checkpoint)
    check_weights(weights, task.get_eval_model(), '--resume', path)
    check_finite(weights, '--resume', path)
    before = checkpoint.get('args')
    if optimizer is not None and args and getattr(before, 'opt', args.opt) != args.opt:
        names = f'{before.opt}, not {args.opt}'
        raise OptionError(f'--resume {path}: its optimiser is {names}; --no-resume-opt starts a new one.')
    given = settings_of(optimizer, args)
    try:
        resume_task_checkpoint(task, path, optimizer=optimizer, loss_scaler=loss_scaler, log_info=log_info)
    except (ValueError, KeyError) as error:
        raise OptionError(f'--resume {path}: {error}; --no-resume-opt starts a new optimiser.') from error
    if log_info:
        tell_kept(given, settings_of(optimizer, args))


def settings_of(optimizer: torch.optim.Optimizer | None, args: argparse.Namespace | None) -> dict[str, Any]:
    """What the options say of the last group of parameters; the peak learning rate where there is a schedule."""
    if optimizer is None or args is None:
        return {}
    group = optimizer.param_groups[-1]
    settings = {'lr': group.get('initial_lr', group['lr']) / group.get('lr_scale', 1.0)} if args.epochs else {}
    return settings | {name: group[name] for name in ('weight_decay', 'momentum', 'betas', 'eps') if name in group}


def tell_kept(given: dict[str, Any], kept: dict[str, Any]):
    """Warn of options whose values those of the checkpoint's optimiser have replaced."""
    differing = [name for name in given if name in kept and kept[name] != given[name]]
    if differing:
        there = ', '.join(f'{name} {kept[name]:g}' if name == 'lr' else f'{name} {kept[name]}' for name in differing)
        here = ', '.join(f'{given[name]:g}' if name == 'lr' else f'{given[name]}' for name in differing)
        _logger.warning(
            f'The optimiser goes on as it was saved: {there}; what is given ({here}) has no effect on it without '
            f'--no-resume-opt.'
        )


def resume_ema(task: nn.Module, path: str | Path, *, earlier_updates: int = 0):
    """Load the moving average of a checkpoint, or its plain weights if it has none.

    Args:
        earlier_updates: what it averages that this run's number of updates leaves out. timm's first update of a run
            replaces an average by the weights, and `--model-ema-warmup` counts from there.
    """
    load_task_ema_checkpoint(task, path)
    task.get_trainable_module(ema=True).update_after_step = -earlier_updates


def find_newest(folder: str | Path, *, finished_only: bool) -> str | None:
    """The newest good checkpoint of an experiment's folder (`--resume auto`).

    Args:
        folder: where a saver keeps its files.
        finished_only: leave out those of interrupted epochs (`--exact-resume`).

    Returns:
        Path of the one from which the fewest epochs remain, the latest of these, or None. Bad ones are passed over
        with a warning: unreadable, damaged, of foreign content, or with weights that are not finite.
    """
    found = []
    for path in {path for name in _NAMES for path in Path(folder).glob(name)}:
        try:
            checkpoint = read_checkpoint(path, '--resume auto', mmap=True)
            check_metadata(checkpoint, path)
        except OptionError as error:
            _logger.warning(f'Skipped: {error}')
            continue
        epoch, interrupted, _ = next_epoch(checkpoint)
        if not (interrupted and finished_only):
            found.append((epoch, path.stat().st_mtime, path.name == 'last.pth.tar', str(path)))
    for *_, path in sorted(found, reverse=True):
        try:
            check_content(path)
            return path
        except OptionError as error:
            _logger.warning(f'Skipped: {error}')
    return None


def newest_for_all(folder: str | Path, *, finished_only: bool, rank: int, distributed: bool) -> str | None:
    """What `find_newest` gives on the first process, on all of them.

    Raises:
        OptionError: another process does not have that file.
    """
    found = [find_newest(folder, finished_only=finished_only) if rank == 0 else None]
    if distributed:
        dist.broadcast_object_list(found)
    (path,) = found
    if path and not Path(path).is_file():
        raise OptionError(
            f'--resume auto: {path}, from which the first process goes on, is not there for process {rank}; '
            f'--output must be a folder that all machines share.'
        )
    return path


def check_metadata(checkpoint: dict, path: str | Path):
    """Make sure that what a run goes on from has the keys and types of a training checkpoint.

    Raises:
        OptionError: naming the first entry that has not.
    """
    types = {
        'epoch': int,
        'version': int,
        'state_dict': dict,
        'optimizer': dict,
        'saver': dict,
        'args': argparse.Namespace,
    }
    for key, kind in types.items():
        if key in checkpoint and not isinstance(checkpoint[key], kind):
            raise OptionError(f'--resume auto {path}: its {key} is a {type(checkpoint[key]).__name__}.')
    missing = [key for key in ('epoch', 'state_dict') if key not in checkpoint]
    if missing:
        raise OptionError(f'--resume auto {path}: no training checkpoint, it has no {missing[0]}.')


def check_content(path: str | Path):
    """Read a checkpoint through: the checksums of its archive, and its weights.

    Raises:
        OptionError: when it is damaged, or weights are not finite.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise OptionError(f'--resume auto {path}: damaged ({damaged} has another checksum).')
    checkpoint = read_checkpoint(path, '--resume auto', mmap=True)
    for key in ('state_dict', 'state_dict_ema'):
        check_finite(checkpoint.get(key, {}), '--resume auto', path)
