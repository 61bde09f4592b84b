"""The folder of an experiment: who may write into it, and what of an earlier run goes first."""

import contextlib
import os
import socket
from pathlib import Path

from regaug.errors import OptionError
from regaug.files import read_checkpoint
from regaug.training.resume import check_content, next_epoch

try:
    import fcntl
except ImportError:  # not on Windows: there, nothing keeps a second run away
    fcntl = None

_LOCK = '.lock'
_UNFINISHED = ('tmp', 'recovery_tmp')
_NAMES = ('last', 'model_best', 'checkpoint-*', 'recovery-*', *_UNFINISHED)
_FILES = ('args.yaml', 'summary.csv', *(f'{name}.pth.tar' for name in _NAMES))


def run_files(folder: str | Path) -> list[Path]:
    """What a run has written into a folder: options, summary and checkpoints."""
    return sorted(path for pattern in _FILES for path in Path(folder).glob(pattern))


def check_writable(output: str, experiment: str):
    """Make sure that the folder of an experiment can be made and written, before anything is built.

    Raises:
        OptionError: naming `--output` and `--experiment`.
    """
    path = Path(output) / experiment
    options = f'--output {output}' + (f' --experiment {experiment}' if experiment else '')
    existing = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not existing.is_dir():
        raise OptionError(f'{options}: {existing} is a file, not a folder.')
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OptionError(f'{options}: {existing} cannot be written.')


def check_unused(folder: str | Path, experiment: str):
    """Refuse to start anew where a run has left its files.

    Raises:
        OptionError: naming the ways on.
    """
    found = [path.name for path in run_files(folder)]
    if found:
        raise OptionError(
            f'--experiment {experiment}: {folder} holds a run already ({", ".join(found[:3])}'
            f'{", ..." if len(found) > 3 else ""}); go on with --resume auto, or start anew with another --experiment, '
            f'or with --overwrite, which removes its files.'
        )


def later_checkpoints(folder: str | Path, start_epoch: int, *, begun: bool = False) -> list[Path]:
    """Checkpoints of the epochs that a run is about to repeat, but for broken ones, from which nobody goes on.

    Args:
        begun: those too that were written in the middle of the first of these epochs.
    """
    found = []
    for path in run_files(folder):
        if path.name.endswith('.pth.tar') and not path.name.startswith(_UNFINISHED):
            with contextlib.suppress(OptionError):
                reached = next_epoch(read_checkpoint(path, '--resume', mmap=True))
                if (reached.epoch or 0) + (begun and reached.interrupted) > start_epoch:
                    found.append(path)
    return found


def check_newest(folder: str | Path, start_epoch: int, option: str, *, auto: bool = False, back: bool = False):
    """Refuse to go on from an old checkpoint beside good ones of later epochs, which `--resume auto` would prefer.

    Args:
        auto: `--resume auto` found the checkpoint, and does not go with `--overwrite`.
        back: the run begins before the epoch that follows on the checkpoint, as a refinement of a finished run does.

    Raises:
        OptionError: naming the first of them, and the ways on.
    """
    ways = ['go on with --resume auto'] * (not back) + ['give another --experiment']
    ways += ['--overwrite, which removes it'] * (not auto)
    for path in later_checkpoints(folder, start_epoch):
        try:
            check_content(path)
        except OptionError:
            continue  # broken: what is resumed is the newest good one
        raise OptionError(f'{option}: {path} is of a later epoch; {", or ".join(ways)}.')


def lock(folder: str | Path, experiment: str) -> int | None:
    """Keep other runs out of a folder until this process ends, however it ends.

    The lock belongs to the process, so that workers that outlive a killed one do not hold it. It reaches as far as the
    file system's POSIX locks do, over NFS too.

    Returns:
        Descriptor that holds the lock: keep it open. None where there are no such locks.

    Raises:
        OptionError: another process holds it.
    """
    if fcntl is None:
        return None
    descriptor = os.open(Path(folder) / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors='replace').strip()
        os.close(descriptor)
        raise OptionError(f'--experiment {experiment}: {folder} is in use by a running process ({owner}).') from None
    except OSError:  # a file system without locks
        os.close(descriptor)
        return None
    with contextlib.suppress(OSError):  # on a full disk it holds without a name
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f'{os.getpid()} on {socket.gethostname()}\n'.encode())
    return descriptor


def unlock(folder: str | Path, descriptor: int):
    """Let go of a folder at the end of a run; one that is killed leaves the file, which keeps nobody away."""
    (Path(folder) / _LOCK).unlink(missing_ok=True)
    os.close(descriptor)


def clear(folder: str | Path, *, start_epoch: int = 0, keep: str | Path | None = None):
    """Remove the files of an earlier run (`--overwrite`), from an epoch on.

    Args:
        start_epoch: with 0 everything of the run goes, else the checkpoints of this epoch and later ones.
        keep: file to leave alone: the checkpoint that the run goes on from.
    """
    for path in later_checkpoints(folder, start_epoch, begun=True) if start_epoch else run_files(folder):
        if keep is None or not path.samefile(keep):
            path.unlink()
