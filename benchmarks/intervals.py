"""Confidence intervals of means and of paired differences, by Student's t distribution."""

import functools
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

_STEPS = 400  # of Simpson's rule; the integrand is smooth on a bounded interval


class Interval(NamedTuple):
    """A mean and its confidence interval; the bounds are NaN for fewer than two values."""

    mean: float
    low: float
    high: float
    count: int

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0

    def text(self, digits: int = 2) -> str:
        """As `+1.23 (0.45 to 2.01)`."""
        if math.isnan(self.low):
            return f'{self.mean:+.{digits}f} (no interval)'
        return f'{self.mean:+.{digits}f} ({self.low:.{digits}f} to {self.high:.{digits}f})'


def central_probability(t: float, df: int) -> float:
    """P(|T| < t) for Student's t with df degrees of freedom.

    With T = sqrt(df) tan(theta) the density of theta is proportional to cos(theta)^(df - 1).
    """
    angle = math.atan(t / math.sqrt(df))
    half = math.sqrt(math.pi) * math.exp(math.lgamma(df / 2) - math.lgamma((df + 1) / 2)) / 2
    step = angle / _STEPS
    values = [math.cos(index * step) ** (df - 1) for index in range(_STEPS + 1)]
    integral = step / 3 * (values[0] + values[-1] + 4 * sum(values[1:-1:2]) + 2 * sum(values[2:-1:2]))
    return integral / half


@functools.cache
def t_quantile(confidence: float, df: int) -> float:
    """The t with P(|T| < t) = confidence, to six digits.

    Args:
        confidence: In (0, 1), for example 0.95.
        df: Degrees of freedom, 1 or more.
    """
    low, high = 0.0, 1.0
    while central_probability(high, df) < confidence:
        high *= 2
    while high - low > 1e-7 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if central_probability(middle, df) < confidence else (low, middle)
    return high


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean of independent values with its confidence interval.

    Args:
        values: At least one.
        confidence: Share of such intervals that hold the true mean, for normally distributed values.
    """
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan, len(values))
    width = t_quantile(confidence, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - width, mean + width, len(values))


def paired_interval(values: dict, base: dict, confidence: float = 0.95) -> Interval | None:
    """Mean difference to a base over what both have, with its confidence interval.

    Args:
        values: Results by seed.
        base: Results of the base by seed.
        confidence: As in `mean_interval`.

    Returns:
        None when they share no seed.
    """
    shared = sorted(values.keys() & base.keys())
    return mean_interval([values[seed] - base[seed] for seed in shared], confidence) if shared else None
