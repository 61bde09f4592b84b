"""Results of runs: made of what train.py left in a run's folder, kept as a file there, all of them as one CSV."""

import csv
import io
import json
import signal
import statistics
import time
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from benchmarks.accuracy.job import LOG, read_times
from benchmarks.curves import best_epoch, last_median, read_curve
from regaug.errors import OptionError
from regaug.files import write_whole

RESULT = 'result.json'


@dataclass
class Result:
    """A run that ended.

    Attributes:
        variant, seed: Which one.
        epochs: Epochs of training, or None if it failed.
        status: `finished` or `failed`.
        reason: Why it failed.
        final: Top-1 in per cent after the last epoch.
        last_median: Median top-1 of the last evaluations.
        best, best_at: Best top-1 and its epoch: chosen on the test images, so no estimate of anything.
        train_loss: Mean loss of the last epoch.
        seconds, processor_seconds: Of training, without evaluation and start.
        wall_seconds: Of the whole process.
        device: What it ran on; '' in files of older versions.
        options: Of train.py, without data, seed and folders, after `digits=N` where the data are N digits of each
            class; '' in files of older versions.
        curve: [epochs trained, top-1] of every evaluation.
    """

    variant: str
    seed: int
    epochs: int | None = None
    status: str = 'finished'
    reason: str = ''
    final: float | None = None
    last_median: float | None = None
    best: float | None = None
    best_at: int | None = None
    train_loss: float | None = None
    seconds: float | None = None
    processor_seconds: float | None = None
    wall_seconds: float | None = None
    device: str = ''
    options: str = ''
    curve: list = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status == 'finished'


COLUMNS = [column.name for column in fields(Result)]


def collect(folder: Path, variant: str, seed: int, *, exit_status: int, wall_seconds: float) -> Result:
    """Makes the result of a run that ended, failed or not.

    Args:
        folder: The run's folder.
        variant, seed: Which run it was.
        exit_status: Of its process; negative for a signal.
        wall_seconds: How long the process ran.
    """
    result = Result(variant, seed, wall_seconds=round(wall_seconds, 3))
    try:
        if exit_status:
            raise OptionError(failure(folder, exit_status))
        curve = read_curve(folder)
        best = best_epoch(curve, 'eval_top1')
    except (OptionError, KeyError) as error:
        result.status, result.reason = 'failed', ' '.join(str(error).split())
        return result
    result.curve = [[int(row['epoch']) + 1, row['eval_top1']] for row in curve]
    result.epochs, result.final = result.curve[-1]
    result.last_median = last_median([top1 for _, top1 in result.curve])
    result.best, result.best_at = best['eval_top1'], int(best['epoch']) + 1
    result.train_loss = curve[-1]['train_loss']
    result.seconds, result.processor_seconds = (round(value, 3) for value in read_times(folder))
    return result


def failure(folder: Path, exit_status: int) -> str:
    """Why a run failed: the last line of its log, or the signal that ended it."""
    if exit_status < 0:
        return f'ended by {signal.Signals(-exit_status).name}'
    lines = [line for line in (folder / LOG).read_text(errors='replace').splitlines() if line.strip()]
    return lines[-1].removeprefix('train.py: error: ') if lines else f'exit status {exit_status}'


def save(result: Result, folder: Path):
    write_whole(folder / RESULT, json.dumps(asdict(result)))


def load(folder: Path) -> Result | None:
    """The result of a run that ended before, or None."""
    path = folder / RESULT
    if not path.exists():
        return None
    return Result(**json.loads(path.read_text()))


def seconds_left(found: dict, queue: list, running: dict) -> float:
    """Wall seconds of what is left, one run after the other.

    A run takes the mean of its variant's, or of all, as long as none of its variant has ended.

    Args:
        found: Results by (variant, seed).
        queue: (variant, seed) of the runs that wait.
        running: (process, variant, seed, start by time.monotonic) of the runs at work, by anything.
    """
    known = {}
    for (variant, _), result in found.items():
        if result.finished:
            known.setdefault(variant, []).append(result.wall_seconds)
    if not known:
        return 0.0
    overall = statistics.fmean(value for values in known.values() for value in values)
    means = {variant: statistics.fmean(values) for variant, values in known.items()}
    seconds = sum(means.get(variant, overall) for variant, _ in queue)
    for _, variant, _, begin in running.values():
        seconds += max(0.0, means.get(variant, overall) - (time.monotonic() - begin))
    return seconds


def write_csv(found: list[Result], path: Path):
    """Writes results as CSV, with everything that `read_csv` needs to make them again."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=COLUMNS, lineterminator='\n')
    writer.writeheader()
    for result in found:
        writer.writerow({**vars(result), 'curve': ' '.join(f'{epoch}:{top1}' for epoch, top1 in result.curve)})
    write_whole(path, text.getvalue())


def read_csv(path: Path) -> list[Result]:
    """Results of a CSV file.

    Raises:
        OptionError: It cannot be read, or is none that `write_csv` wrote.
    """
    try:
        with path.open(newline='', encoding='utf-8') as file:
            reader = csv.DictReader(file)
            if reader.fieldnames != COLUMNS:
                raise ValueError(f'its columns are not {", ".join(COLUMNS)}')
            return [_result(row, reader.line_num) for row in reader]
    except (OSError, ValueError) as error:
        raise OptionError(f'{path}: no runs.csv of this benchmark ({error}).') from None


def _result(row: dict, line: int) -> Result:
    if row.keys() != set(COLUMNS) or None in row.values():
        raise ValueError(f'line {line} has more or fewer cells than columns')
    return Result(**{name: _value(name, text) for name, text in row.items()})


def _value(name: str, text: str):
    """A cell's value by its column; an empty number is None."""
    if name == 'curve':
        return [[int(epoch), float(top1)] for epoch, top1 in (point.split(':') for point in text.split())]
    if name in ('variant', 'status', 'reason', 'device', 'options'):
        return text
    if text == '':
        return None
    return int(text) if name in ('seed', 'epochs', 'best_at') else float(text)
