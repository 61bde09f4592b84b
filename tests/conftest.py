"""Fixtures that several test modules share: a fixed seed, a small folder of images, and train.py run on it."""

import contextlib
import gc
import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.training import CLASSES, SIDE, TRAIN_PER_CLASS, VAL_PER_CLASS, run_train, train_argv

ROOT = Path(__file__).resolve().parent.parent
SECONDS, SLOW_SECONDS = 900, 3600  # of a single test, which takes seconds unless the machine is very busy
torch.set_num_threads(1)  # sums in another order are other numbers
os.environ.setdefault('OMP_NUM_THREADS', '1')  # the same for the programs that tests start


@pytest.fixture(autouse=True)
def fixed_seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def log_levels():
    """A program that ran in this process may have silenced the log, or sent it to what pytest closes afterwards."""
    loggers = [logging.getLogger(name) for name in (None, 'train')]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler:  # pytest's own ones are of classes derived from it
            logging.getLogger().removeHandler(handler)


@pytest.hookimpl(tryfirst=True)  # before what is slow is left out
def pytest_collection_modifyitems(items):
    """Make cases of a test slow, but for the first ones that `few` names."""
    seen = Counter()
    for item in items:
        few = item.get_closest_marker('few')
        if few is not None:
            seen[item.path, item.originalname] += 1
            if seen[item.path, item.originalname] > few.args[0]:
                item.add_marker('slow')


def pytest_collection_finish():
    """Spare the collector what the imports have made, a million objects that stay."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Let no test wait for ever."""
    seconds = SLOW_SECONDS if item.get_closest_marker('slow') else SECONDS

    def give_up(signum, frame):
        pytest.fail(f'still running after {seconds} s')

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        return (yield)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope='session')
def image_folder(tmp_path_factory):
    """64 training and 16 validation images in 4 classes, each class with a colour of its own under noise."""
    root = tmp_path_factory.mktemp('image_folder')
    generator = np.random.default_rng(3)
    colours = generator.uniform(60, 190, (CLASSES, 3))
    for split, count in (('train', TRAIN_PER_CLASS), ('val', VAL_PER_CLASS)):
        for index in range(CLASSES * count):
            label = index // count
            path = root / split / f'class{label}' / f'{index:03d}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = generator.normal(colours[label], 60, (SIDE, SIDE, 3)).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    return root


@pytest.fixture
def train(image_folder, tmp_path):
    """`run_train` on the image folder, in a folder of the test's own."""
    return partial(run_train, image_folder, tmp_path)


class Program:
    """A running program in a process group of its own, which writes its output into a file.

    Attributes:
        process: its `subprocess.Popen`.
    """

    def __init__(self, command, log, environment):
        self.log = log
        with log.open('w') as file:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
            )

    def output(self):
        return self.log.read_text()

    def wait_for(self, text, seconds=300):
        """Wait until the output contains `text`."""
        end = time.monotonic() + seconds
        while text not in self.output():
            assert self.process.poll() is None, f'ended without {text!r}:\n{self.output()}'
            assert time.monotonic() < end, f'no {text!r} after {seconds} s:\n{self.output()}'
            time.sleep(0.05)

    def finish(self, seconds=300):
        """Wait for the end and return (exit status, output)."""
        try:
            return self.process.wait(seconds), self.output()
        except subprocess.TimeoutExpired:
            pytest.fail(f'still running after {seconds} s:\n{self.output()}')

    def end_group(self):
        """Kill what is left of the program and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(tmp_path):
    """Starts a Python program in the project's root and returns it as a `Program`; it is killed when the test ends."""
    started = []

    def start(*arguments, environment=None):
        command = [sys.executable, *map(str, arguments)]
        log = tmp_path / f'program-{len(started)}.log'
        started.append(Program(command, log, process_environment(**(environment or {}))))
        return started[-1]

    yield start
    for program in started:
        program.end_group()


@pytest.fixture
def start_train(start, image_folder, tmp_path):
    """Starts train.py as a program of its own on the image folder, with the defaults of `train`.

    Args:
        launcher: arguments of Python before the script's name (torchrun and its options).
    """

    def start_train(*options, experiment='run', launcher=(), environment=None):
        argv = train_argv(image_folder, tmp_path, '--experiment', experiment, *options)
        return start(*launcher, 'train.py', *argv, environment=environment)

    return start_train


def process_environment(**extra):
    """Environment of a program under test: one thread, no process group, no Weights & Biases server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('SLURM_', 'WORLD_SIZE'))}
    return {**kept, 'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1', 'WANDB_MODE': 'offline', **extra}
