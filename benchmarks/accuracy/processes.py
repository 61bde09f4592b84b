"""Processes that run train.py: forked from a server that has imported it once, with their threads bounded."""

import multiprocessing
import os
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def start(argv: list[str], folder: Path, threads: int) -> BaseProcess:
    """Starts train.py; the first call starts the server too.

    Args:
        argv: Arguments of train.py.
        folder: Gets its log and times; there already.
        threads: Threads of PyTorch and of the libraries below it.
    """
    for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
        os.environ[name] = str(threads)
    paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    if str(ROOT) not in paths:
        os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), *paths]))
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['benchmarks.accuracy.job'])
    process = context.Process(target=run_job, args=(argv, folder, threads))
    process.start()
    return process


def run_job(argv: list[str], folder: Path, threads: int):
    """Runs in the child; the import costs nothing there, since the server has made it."""
    from benchmarks.accuracy.job import run

    run(argv, folder, threads)
