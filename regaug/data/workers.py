"""Worker processes of the loaders: they leave signals to the main process."""

import functools
import signal
from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader

_GRACE = 60  # seconds for the main process to finish its update


def leave_signals_to_main(loader: Any):
    """Make a loader's workers outlive a signal to the whole process group, as schedulers and torchrun send it.

    Otherwise they end first, PyTorch raises in the main process, and no recovery checkpoint is written.

    Args:
        loader: timm's loader, with or without its prefetcher.
    """
    while not isinstance(loader, DataLoader):
        loader = loader.loader
    loader.worker_init_fn = functools.partial(start_worker, loader.worker_init_fn)


def start_worker(init: Callable[[int], None] | None, worker_id: int):
    """Run in a worker process: its handlers, then the initialisation it had before."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'SIGHUP'):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _pass_over_once)
    if init is not None:
        init(worker_id)


def _pass_over_once(signum: Any, frame: Any):
    """The first SIGTERM is for the main process; after a second one, or some time, the worker ends."""
    signal.signal(signum, signal.SIG_DFL)
    signal.alarm(_GRACE)
