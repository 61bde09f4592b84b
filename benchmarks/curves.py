"""Learning curves, read from the summary.csv of a run of ours or of timm's script."""

import csv
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from regaug.errors import OptionError

LAST = 5  # evaluations whose median is reported beside the final one


def read_curve(folder: Path) -> list[dict[str, float]]:
    """The evaluated epochs of a run, by ascending epoch.

    timm's script repeats the header, and epochs, in a resumed run: rows of the epochs that it went back over do not
    count, whether it has come to them again or not.

    Args:
        folder: A run's folder.

    Returns:
        One dict per epoch: `epoch` and every other column that is a number there.

    Raises:
        OptionError: There is no summary.csv, or no epoch in it.
    """
    path = folder / 'summary.csv'
    try:
        with path.open(newline='', encoding='utf-8') as file:
            rows = [numbers(row) for row in csv.DictReader(file)]
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f'{folder}: no run of train.py (summary.csv: {getattr(error, "strerror", error)}).') from None
    curve = []
    for row in rows:
        if 'epoch' in row:
            curve = [*(earlier for earlier in curve if earlier['epoch'] < row['epoch']), row]
    if not curve:
        raise OptionError(f'{folder}: summary.csv holds no epoch yet.')
    return curve


def numbers(row: dict) -> dict[str, float]:
    """The columns of a CSV row whose values are numbers."""
    found = {}
    for name, value in row.items():
        try:
            found[name] = float(value)
        except (TypeError, ValueError):
            continue
    return found


def last_median(values: Sequence[float], count: int = LAST) -> float:
    """Median of the last values."""
    return statistics.median(values[-count:])


def best_epoch(curve: Sequence[dict[str, float]], metric: str) -> dict[str, float]:
    """The row with the best value of a metric: the smallest loss, the largest of anything else; NaN never."""
    sign = -1 if metric.endswith('loss') else 1
    return max(curve, key=lambda row: -math.inf if math.isnan(row[metric]) else sign * row[metric])
