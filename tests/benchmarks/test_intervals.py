import math

import numpy as np
import pytest

from benchmarks.intervals import mean_interval, paired_interval, t_quantile

# Two-sided critical values as every printed table of Student's t has them.
PUBLISHED = [
    (0.95, 1, 12.706),
    (0.95, 2, 4.303),
    (0.95, 4, 2.776),
    (0.95, 9, 2.262),
    (0.95, 19, 2.093),
    (0.95, 30, 2.042),
    (0.95, 120, 1.980),
    (0.90, 5, 2.015),
    (0.99, 10, 3.169),
]
# Student (1908), table of the additional hours of sleep by two drugs, ten patients.
SLEEP_1 = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
SLEEP_2 = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]


@pytest.mark.parametrize('confidence, df, expected', PUBLISHED)
def test_quantile_of_t_is_the_published_one(confidence, df, expected):
    assert t_quantile(confidence, df) == pytest.approx(expected, abs=5.1e-4)


def test_quantile_of_t_equals_that_of_scipy():
    stats = pytest.importorskip('scipy.stats')
    for df in (1, 2, 3, 7, 24, 99, 1000):
        for confidence in (0.5, 0.9, 0.95, 0.999):
            assert t_quantile(confidence, df) == pytest.approx(stats.t.ppf((1 + confidence) / 2, df), rel=1e-5)


def test_paired_interval_of_students_sleep_data_is_the_one_that_textbooks_print():
    interval = paired_interval(dict(enumerate(SLEEP_2)), dict(enumerate(SLEEP_1)))
    assert interval.mean == pytest.approx(1.58)
    assert (interval.low, interval.high) == pytest.approx((0.7001142, 2.4598858), abs=1e-6)
    assert interval.excludes_zero
    assert interval.text() == '+1.58 (0.70 to 2.46)'


@pytest.mark.few(1)
@pytest.mark.parametrize('count', [3, 5, 20])
def test_intervals_hold_the_true_difference_in_95_of_100_experiments(count):
    generator = np.random.default_rng(count)
    experiments = 4000
    held = held_90 = 0
    for _ in range(experiments):
        seeds = generator.normal(90, 5, count)  # what a seed does to both
        base = dict(enumerate(seeds + generator.normal(0, 1, count)))
        values = dict(enumerate(seeds + 0.7 + generator.normal(0, 2, count)))
        interval = paired_interval(values, base)
        held += interval.low <= 0.7 <= interval.high
        interval = paired_interval(values, base, confidence=0.9)
        held_90 += interval.low <= 0.7 <= interval.high
    assert held / experiments == pytest.approx(0.95, abs=0.012)  # 3.5 standard errors
    assert held_90 / experiments == pytest.approx(0.90, abs=0.017)


def test_pairs_take_out_what_a_seed_does_to_both():
    base = {0: 10.0, 1: 50.0, 2: 90.0}
    values = {seed: value + shift for (seed, value), shift in zip(base.items(), (0.9, 1.0, 1.1), strict=True)}
    interval = paired_interval(values, base)
    assert interval.mean == pytest.approx(1.0)
    assert interval.high - interval.low < 0.51


def test_equal_results_differ_by_exactly_nothing():
    values = {0: 93.1, 1: 94.7, 5: 90.01}
    assert paired_interval(values, dict(values)) == (0.0, 0.0, 0.0, 3)
    assert not paired_interval(values, dict(values)).excludes_zero


def test_only_seeds_that_both_have_count():
    interval = paired_interval({0: 1.0, 1: 3.0, 2: 100.0}, {1: 1.0, 0: 0.0, 3: -100.0})
    assert (interval.mean, interval.count) == (1.5, 2)
    assert paired_interval({0: 1.0}, {1: 1.0}) is None


def test_one_value_has_no_interval():
    interval = mean_interval([2.5])
    assert interval.mean == 2.5 and math.isnan(interval.low) and math.isnan(interval.high)
    assert not interval.excludes_zero
    assert interval.text() == '+2.50 (no interval)'
