"""The certificate of an image under randomised smoothing: its bound, its file, and what many of them come to.

Source: Cohen, Rosenfeld and Kolter, arXiv 1902.02918, whose file format this is.
"""

import csv
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import NormalDist

import torch

from regaug.errors import OptionError

ABSTAIN = -1
RADII = tuple(step / 4 for step in range(12))  # 0 to 2.75; MaxUp's table 8 begins at 0.25
HEADER = 'idx\tlabel\tpredict\tradius\tcorrect\ttime\n'


@functools.cache
def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """One-sided Clopper-Pearson bound: the probability that `successes` or more are seen under it is alpha.

    That is the alpha quantile of Beta(k, n - k + 1), found by bisection on the binomial tail summed in log space.

    Args:
        successes: k of the n trials.
        trials: n.
        alpha: Probability that the true probability is lower.
    """
    if successes == 0:
        return 0.0
    count = torch.arange(successes, trials + 1, dtype=torch.float64)
    log_choose = math.lgamma(trials + 1) - torch.lgamma(count + 1) - torch.lgamma(trials - count + 1)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        log_terms = log_choose + count * math.log(middle) + (trials - count) * math.log1p(-middle)
        if log_terms.logsumexp(0) < math.log(alpha):
            low = middle
        else:
            high = middle
    return low


def certified_radius(successes: int, trials: int, alpha: float, sigma: float) -> float | None:
    """L2 radius within which the smoothed network keeps its class, None where it abstains."""
    bound = lower_bound(successes, trials, alpha)
    return sigma * NormalDist().inv_cdf(bound) if bound > 0.5 else None


@dataclass
class Certificate:
    """What is known of one image: its place in the data set, label, predicted class (-1: none), radius, seconds."""

    idx: int
    label: int
    predict: int
    radius: float
    seconds: float

    @property
    def correct(self) -> bool:
        return self.predict == self.label

    def line(self) -> str:
        """A line of the field's file format; the radius is whole, because a rounded one may not be certified."""
        values = (self.idx, self.label, self.predict, self.radius, int(self.correct))
        return '\t'.join(map(str, (*values, timedelta(seconds=self.seconds)))) + '\n'


def read_certificates(path: str | Path) -> list[Certificate]:
    """Read a file of certificates, ours or that of another tool with the same columns.

    Raises:
        OptionError: It cannot be read, or is of another kind.
    """
    try:
        with open(path, newline='') as file:
            rows = csv.reader(file, delimiter='\t')
            if next(rows, None) != HEADER.split():
                raise ValueError('the first line does not name the columns')
            return [Certificate(int(r[0]), int(r[1]), int(r[2]), float(r[3]), 0.0) for r in rows]
    except (OSError, IndexError, ValueError) as error:
        raise OptionError(f'{path}: no file of certificates ({type(error).__name__}: {error}).') from error


def certified_accuracy(certificates: Sequence[Certificate], radius: float) -> float:
    """Share of images in per cent that are right and certified within a radius."""
    return 100 * sum(each.correct and each.radius >= radius for each in certificates) / max(1, len(certificates))


def table(files: Sequence[str]) -> str:
    """Certified accuracy of each file at each radius, and of the best of them."""
    radii = RADII[1:]
    rows = [(file, [certified_accuracy(read_certificates(file), radius) for radius in radii]) for file in files]
    rows.append(('best', [max(column) for column in zip(*(values for _, values in rows))]))
    width = max(len(name) for name, _ in rows)
    lines = [' ' * width + ''.join(f'{radius:>7.2f}' for radius in radii)]
    lines += [name.ljust(width) + ''.join(f'{value:>7.1f}' for value in values) for name, values in rows]
    return '\n'.join(lines)
