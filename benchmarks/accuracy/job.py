"""One run of train.py in a process of its own, forked from a server that has imported everything already."""

import fcntl
import functools
import multiprocessing
import os
import signal
import sys
import threading
import time
from pathlib import Path

import torch

import train
from regaug import cli
from regaug.training.engine import Engine

LOG, TIMES = 'log.txt', 'times.csv'


def run(argv: list[str], folder: Path, threads: int):
    """Runs train.py and ends the process with its exit status; output goes to the folder's log.

    Args:
        argv: Its arguments.
        folder: The run's folder.
        threads: Threads of PyTorch.
    """
    with (folder / LOG).open('a') as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    # What an earlier harness left running here ends first; the system lets go of the lock with the process.
    lock = os.open(folder / 'lock', os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    threading.Thread(target=stop_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    Engine.train_one_epoch = timed(Engine.train_one_epoch, folder / TIMES)
    sys.argv = ['train.py', *argv]
    cli.run(functools.partial(train.main, argv))


def stop_with_parent():
    """Waits for the end of the harness, however it ends, and then asks train.py to stop with a recovery checkpoint."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


def timed(train_one_epoch, path: Path):
    """Wraps the training of an epoch (without evaluation) so that its duration is noted.

    Args:
        train_one_epoch: The engine's method.
        path: Gets `epoch,seconds,processor seconds` as a line.
    """

    @functools.wraps(train_one_epoch)
    def wrapper(engine, epoch, *args, **kwargs):
        start, processor_start = time.perf_counter(), time.process_time()
        result = train_one_epoch(engine, epoch, *args, **kwargs)
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        with path.open('a') as file:
            file.write(f'{epoch},{seconds:.6f},{processor_seconds:.6f}\n')
        return result

    return wrapper


def read_times(folder: Path) -> tuple[float, float]:
    """Seconds and processor seconds of all training epochs of a run; of an epoch that was repeated the last one."""
    by_epoch = {}
    for line in (folder / TIMES).read_text().splitlines():
        fields = line.split(',')
        if len(fields) == 3:  # the last line may be cut short by a kill
            by_epoch[int(fields[0])] = (float(fields[1]), float(fields[2]))
    return sum(seconds for seconds, _ in by_epoch.values()), sum(processor for _, processor in by_epoch.values())
