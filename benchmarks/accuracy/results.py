"""Results of runs, one file a run, and how one is made of what train.py left in the run's folder."""

import json
import signal
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
        curve: (epochs trained, top-1) of every evaluation.
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
    curve: list = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.status == 'finished'


COLUMNS = [column.name for column in fields(Result) if column.name != 'curve']


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
    result.curve = [(int(row['epoch']) + 1, row['eval_top1']) for row in curve]
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
