"""Stopping on a signal after the running update, all ranks at the same one, and the command that goes on."""

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# What schedulers, terminals and torchrun send. A second SIGINT ends the run at once.
_SIGNALS = [getattr(signal, name) for name in ('SIGTERM', 'SIGINT', 'SIGHUP') if hasattr(signal, name)]

_OF_THE_START = {'--resume': 1, '--start-epoch': 1, '--no-resume-opt': 0, '--overwrite': 0}  # and how many values


class Interrupted(Exception):
    """The run was asked to stop; raised by the engine between two updates.

    Attributes:
        update_idx: updates of the running epoch that are done.
    """

    def __init__(self, update_idx: int):
        super().__init__(f'stopped after {update_idx} updates of the epoch')
        self.update_idx = update_idx


class Diverged(Exception):
    """Loss or gradient was not finite for too many updates in a row."""


class StopRequest:
    """Remembers SIGTERM, SIGHUP and SIGINT, and lets the ranks agree on what one of them saw.

    A second SIGINT raises `KeyboardInterrupt` at once. The loader's workers leave all three to the main process (see
    `data.workers`), whoever of the process group is signalled.

    Attributes:
        signum: the signal received by this process, or None.
    """

    def __init__(self, *, device: torch.device | None = None, distributed: bool = False):
        self.device = device
        self.distributed = distributed
        self.signum = None
        self._pid = os.getpid()

    def install(self):
        for signum in _SIGNALS:
            if signal.getsignal(signum) != signal.SIG_IGN:  # under nohup SIGHUP stays ignored
                signal.signal(signum, self._receive)

    def _receive(self, signum: Any, frame: Any):
        if os.getpid() != self._pid:  # a forked child, which inherits the handlers: only SIGTERM is for it
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        elif self.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum

    def agree(self, bad: bool = False) -> tuple[bool, bool]:
        """Combine over all ranks what each of them saw; every rank must call this at the same point.

        Args:
            bad: this rank's update was bad.

        Returns:
            (stop, bad), each true if it is so on any rank.
        """
        stop = self.signum is not None
        if self.distributed:
            flags = torch.tensor([stop, bad], dtype=torch.int32, device=self.device)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            stop, bad = map(bool, flags.tolist())
        return stop, bad


def command_line() -> list[str]:
    """The command that started this run, torchrun included."""
    if 'TORCHELASTIC_RUN_ID' not in os.environ:
        return [sys.executable, *sys.argv]
    with contextlib.suppress(OSError):
        launcher = Path(f'/proc/{os.getppid()}/cmdline').read_bytes().decode().rstrip('\0').split('\0')
        if sys.argv[0] in launcher:
            return launcher
    sizes = [os.environ.get(name, '1') for name in ('GROUP_WORLD_SIZE', 'LOCAL_WORLD_SIZE')]
    return ['torchrun', '--nnodes', sizes[0], '--nproc-per-node', sizes[1], *sys.argv]


def command_to_go_on(experiment: str, checkpoint: str | None, *, written: bool = True, auto: bool = False) -> str:
    """The same command with `--resume`; without a checkpoint it starts anew in the same folder.

    Args:
        experiment: name of the run's folder.
        checkpoint: the newest to go on from, or None.
        written: by the run itself; otherwise it starts from that one again, as it did.
        auto: the run was started with `--resume auto`, which needs no `--overwrite`.
    """
    words, rest = command_line(), [] if auto else ['--overwrite']
    if checkpoint:
        words, rest = without_start(words) if written else words, ['--resume', str(checkpoint)]
    return shlex.join([*words, '--experiment', experiment, *rest])


def without_start(words: Iterable[str]) -> list[str]:
    """A command without the options that say how a run started, which would hold again."""
    kept, values = [], 0
    for word in words:
        name, equals, _ = word.partition('=')
        if values:
            values -= 1
        elif option := next((each for each in _OF_THE_START if each.startswith(name) and name.startswith('--')), ''):
            values = 0 if equals else _OF_THE_START[option]  # argparse takes abbreviations, too
        else:
            kept.append(word)
    return kept
