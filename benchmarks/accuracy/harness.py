"""Runs what a spec asks for, a bounded number of processes at a time, and keeps what is finished."""

import fcntl
import functools
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

import yaml

from benchmarks.accuracy import processes
from benchmarks.accuracy.digits import write_digits
from benchmarks.accuracy.results import Result, collect, failure, load, read_csv, save, seconds_left
from benchmarks.accuracy.spec import Spec, difference_to
from benchmarks.report import device_kind
from regaug.errors import OptionError
from regaug.files import write_whole

SPEC = 'spec.yaml'
REFUSED = 2  # exit status of train.py for options; whatever else goes wrong is a failed run
COST_SEEDS = 3  # pairs of runs from which the length of the base for the time of a method is taken


class Stopped(Exception):
    """A signal asked the harness to stop."""


@dataclass
class Harness:
    """The runs of a spec in a folder.

    Args:
        spec: The spec.
        out: Folder of all runs; made, or gone on with.
        data_dir: Folder of the data, '' with the embedded digits.
        jobs: Processes at a time.
        threads: Threads of each.
        runs: Files `runs.csv` of other folders, whose finished runs count as done.
        say: Gets a line at every run's end.

    Attributes:
        results: By variant and seed, failed ones included.
        on_result: Called after every run.
    """

    spec: Spec
    out: Path
    data_dir: str
    jobs: int
    threads: int
    runs: Sequence[Path] = ()
    say: Callable = print
    results: dict[tuple[str, int], Result] = field(default_factory=dict)
    on_result: Callable = lambda: None

    def check_folder(self):
        """Compares the folder with the spec; writes nothing.

        Raises:
            OptionError: It holds runs of another spec, or something else.
        """
        path = self.out / SPEC
        if path.exists():
            difference = difference_to(self.spec, yaml.safe_load(path.read_text()))
            if difference:
                raise OptionError(f'--out {self.out}: holds runs of another spec ({difference} differs).')
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise OptionError(f'--out {self.out}: is neither an empty folder nor one of this benchmark.')

    def check_variants(self):
        """Lets train.py build every variant of which no run has finished (`--dry-run`), in a folder that goes away.

        Raises:
            OptionError: The first refusal, with the variant's name.
        """
        known = {variant for (variant, _), result in self.results.items() if result.finished}
        with tempfile.TemporaryDirectory() as folder:
            for variant in [name for name in self.spec.variants if name not in known]:
                place = Path(folder) / variant
                place.mkdir()
                data = write_digits(Path(folder) / 'data', self.spec.digits, 0) if self.spec.digits else self.data_dir
                argv = [*self.spec.argv(variant), '--data-dir', str(data), '--dry-run']
                process = processes.start(argv, place, self.threads)
                process.join()
                if process.exitcode == REFUSED:
                    raise OptionError(f'variant {variant}: {failure(place, process.exitcode)}')

    def open(self):
        """Takes the folder and reads what an earlier harness finished in it; failed runs are tried again.

        Raises:
            OptionError: Another harness is at work there.
        """
        self.check_folder()
        self.read_results()
        self.check_variants()
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.out / 'lock', os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OptionError(f'--out {self.out}: another harness is at work in this folder.') from None
        path = self.out / SPEC
        earlier = yaml.safe_load(path.read_text())['variants'] if path.exists() else {}
        values = {**vars(self.spec), 'equal_time': list(self.spec.equal_time)}
        values['variants'] = {**earlier, **self.spec.variants}  # those that this spec leaves out may come again
        write_whole(path, yaml.safe_dump(values, sort_keys=False, width=120))

    def close(self):
        """Lets another harness have the folder."""
        os.close(self._lock)

    def read_results(self):
        """Reads the results of the runs that ended before, here and elsewhere."""
        for variant in self.spec.rows:
            for seed in range(self.spec.seeds):
                result = load(self.folder(variant, seed))
                if result is not None:
                    self.results[variant, seed] = result
        for path in self.runs:
            self.adopt(path)

    def adopt(self, path: Path):
        """Counts the finished runs of another folder's `runs.csv` as done where this one has none of its own.

        Raises:
            OptionError: The file cannot be read, or a run in it was made with other options or data than the spec's.
        """
        for result in read_csv(path):
            run = result.variant, result.seed
            wanted = result.variant in self.spec.rows and result.seed < self.spec.seeds and result.finished
            if not wanted or (run in self.results and self.results[run].finished):
                continue
            if not self.spec.matches(result.variant, result.options):
                raise OptionError(
                    f'--runs {path}: {result.variant}, seed {result.seed}: made with other options or data.'
                )
            self.results[run] = result

    def folder(self, variant: str, seed: int) -> Path:
        return self.out / 'runs' / variant / f'seed{seed}'

    def pending(self) -> list[tuple[str, int]]:
        """Runs that are left, in order: seed by seed, so that an early end leaves every variant with as many seeds.

        Runs whose length depends on a cost come last among the first seeds, whose runs tell the cost.
        """
        first = range(min(COST_SEEDS, self.spec.seeds))
        rest = range(len(first), self.spec.seeds)
        longer = [self.spec.longer(method) for method in self.spec.equal_time]
        order = [(variant, seed) for seed in first for variant in self.spec.variants]
        order += [(variant, seed) for seed in first for variant in longer]
        order += [(variant, seed) for seed in rest for variant in self.spec.rows]
        return [run for run in order if not (run in self.results and self.results[run].finished)]

    def cost(self, method: str) -> float | None:
        """Time of a method relative to the base: the median over the first seeds; None while one of them is missing.

        Pairs on different kinds of devices do not count. Processor time on the CPU, where other programs share the
        machine; wall time elsewhere.
        """
        ratios = []
        for seed in range(min(COST_SEEDS, self.spec.seeds)):
            pair = [self.results.get((variant, seed)) for variant in (method, self.spec.base)]
            if None in pair:
                return None
            if all(result.finished for result in pair) and pair[0].device == pair[1].device:
                ratios.append(self.duration(pair[0]) / self.duration(pair[1]))
        return statistics.median(ratios) if ratios else None

    def duration(self, result: Result) -> float:
        """Seconds of training by the clock that counts on this device."""
        return result.processor_seconds if self.on_cpu else result.seconds

    @functools.cached_property
    def on_cpu(self) -> bool:
        return self.spec.args(self.spec.base).device == 'cpu'

    def argv(self, variant: str, seed: int) -> list[str]:
        """Arguments of train.py for a run.

        Raises:
            OptionError: The cost that its length follows from could not be measured.
        """
        data = self.data_dir
        if self.spec.digits:
            data = write_digits(self.out / 'data' / f'split{seed}', self.spec.digits, seed)
        own = ['--data-dir', str(data), '--seed', str(seed), '--resume', 'auto', '--exact-resume']
        if self.spec.args(self.spec.base).labels_per_class:
            own += ['--label-split', str(seed)]
        own += ['--output', str(self.out / 'runs' / variant), '--experiment', f'seed{seed}']
        return [*self.words(variant), *own]

    def words(self, variant: str) -> list[str]:
        """Arguments of a row of the table, without data, seed and folders.

        Raises:
            OptionError: The cost that its length follows from could not be measured.
        """
        return self.spec.argv(variant) if variant in self.spec.variants else self.longer_argv(variant)

    def longer_argv(self, variant: str) -> list[str]:
        """The base's arguments with as many epochs as the time of a method allows, evaluated as many times."""
        method = next(name for name in self.spec.equal_time if self.spec.longer(name) == variant)
        cost = self.cost(method)
        if cost is None:
            raise OptionError(f'the cost of {method} could not be measured: its runs or those of the base failed.')
        words = self.spec.argv(self.spec.base)
        args = self.spec.args(self.spec.base)
        epochs = max(1, round(args.epochs * cost))
        interval = max(1, round(args.val_interval * cost))
        return [*words, '--epochs', str(epochs), '--val-interval', str(interval)]

    def run(self):
        """Runs everything that is left.

        Raises:
            Stopped: A signal came; the running processes have ended with recovery checkpoints.
        """
        queue, running = self.pending(), {}
        total = len(self.spec.rows) * self.spec.seeds
        done = total - len(queue)
        if done:
            self.say(f'{done} of {total} runs are finished already.')
        handlers = {number: signal.signal(number, raise_stopped) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            while queue or running:
                while queue and len(running) < self.jobs and self.ready(queue[0], running):
                    variant, seed = queue.pop(0)
                    started = self.start(variant, seed)
                    if started is None:
                        done += 1
                        self.tell(variant, seed, done, total, queue, running)
                    else:
                        running[started.sentinel] = (started, variant, seed, time.monotonic())
                for sentinel in wait(list(running)) if running else []:
                    process, variant, seed, begin = running.pop(sentinel)
                    process.join()
                    self.finish(variant, seed, process.exitcode, time.monotonic() - begin)
                    done += 1
                    self.tell(variant, seed, done, total, queue, running)
        finally:
            for process, *_ in running.values():
                process.terminate()
            for process, *_ in running.values():
                process.join()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ready(self, run: tuple[str, int], running: dict) -> bool:
        """Whether a run can start: one whose length follows from a cost waits for the runs that tell it."""
        needed = [(self.spec.base, method) for method in self.spec.equal_time if self.spec.longer(method) == run[0]]
        seeds = range(min(COST_SEEDS, self.spec.seeds))
        waiting = {(variant, seed) for pair in needed for variant in pair for seed in seeds}
        return not any((variant, seed) in waiting for _, variant, seed, _ in running.values())

    def start(self, variant: str, seed: int):
        """Starts a run; None if it cannot even start, which is a failed run."""
        folder = self.folder(variant, seed)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            argv = self.argv(variant, seed)
        except OptionError as error:
            self.results[variant, seed] = Result(variant, seed, status='failed', reason=str(error))
            save(self.results[variant, seed], folder)
            return None
        return processes.start(argv, folder, self.threads)

    def finish(self, variant: str, seed: int, exit_status: int, wall_seconds: float):
        """Keeps the result of a run that ended, and of its files those that are small."""
        folder = self.folder(variant, seed)
        result = collect(folder, variant, seed, exit_status=exit_status, wall_seconds=wall_seconds)
        result.device, result.options = device_kind(self.on_cpu), self.spec.line(self.words(variant))
        save(result, folder)
        self.results[variant, seed] = result
        if result.finished:
            for path in folder.glob('*.pth.tar'):
                path.unlink()

    def tell(self, variant, seed, done, total, queue, running):
        """Says how a run ended and how long the others will take."""
        result = self.results[variant, seed]
        outcome = f'{result.final:.2f} %' if result.finished else f'failed: {result.reason}'
        left = timedelta(seconds=round(seconds_left(self.results, queue, running) / self.jobs))
        self.say(f'[{done}/{total}] {variant} seed {seed}: {outcome}; about {left} left')
        self.on_result()


def raise_stopped(number, frame):
    raise Stopped
