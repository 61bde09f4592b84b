"""Stopping on SIGTERM or SIGINT after the running update, all ranks at the same one."""

import os
import signal

import torch
import torch.distributed as dist


class Interrupted(Exception):
    """The run was asked to stop; raised by the engine between two updates.

    Attributes:
        update_idx: updates of the running epoch that are done.
    """

    def __init__(self, update_idx):
        super().__init__(f'stopped after {update_idx} updates of the epoch')
        self.update_idx = update_idx


class Diverged(Exception):
    """The loss was not finite for too many updates in a row."""


class StopRequest:
    """Remembers SIGTERM and SIGINT, and lets the ranks agree on what one of them saw.

    A second SIGINT raises `KeyboardInterrupt` at once. Worker processes inherit the handlers: there, SIGINT is left to
    the main process, and SIGTERM ends the worker as usual.

    Attributes:
        signum: the signal received by this process, or None.
    """

    def __init__(self, *, device=None, distributed=False):
        self.device = device
        self.distributed = distributed
        self.signum = None
        self._pid = os.getpid()

    def install(self):
        signal.signal(signal.SIGTERM, self._receive)
        signal.signal(signal.SIGINT, self._receive)

    def _receive(self, signum, frame):
        if os.getpid() != self._pid:
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
        elif self.signum == signum == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.signum = signum

    def agree(self, bad_loss=False):
        """Combine over all ranks what each of them saw; every rank must call this at the same point.

        Args:
            bad_loss: this rank's loss was not finite.

        Returns:
            (stop, bad_loss), each true if it is so on any rank.
        """
        stop = self.signum is not None
        if self.distributed:
            flags = torch.tensor([stop, bad_loss], dtype=torch.int32, device=self.device)
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
            stop, bad_loss = map(bool, flags.tolist())
        return stop, bad_loss
