"""The report of a comparison: every run as CSV, a markdown table, a picture."""

import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.accuracy.harness import COST_SEEDS, Harness
from benchmarks.accuracy.results import Result, write_csv
from benchmarks.curves import LAST
from benchmarks.intervals import Interval, paired_interval
from benchmarks.report import device_kind, environment, markdown_table
from regaug.files import write_whole

_HEADER = [
    'variant',
    'n',
    'epochs',
    'cost',
    'top-1, % (sd)',
    f'median of the last {LAST}',
    'difference to {base}',
    'difference to {base}, equal time',
    'best epoch*',
]
_LEGEND = """Top-1: after the last epoch, mean over the seeds and standard deviation. The next column takes, in each
run, the median of its last {last} evaluations, or of all where there are fewer. Differences are means over paired seeds
(the same training images, the same start) with their 95 % interval by Student's t; an interval in bold type excludes 0.
There are {count} comparisons here: of so many intervals some exclude 0 by chance even where nothing differs. Updates
are as many as the base's but in rows of longer training. Cost: {clock} of training, relative to `{base}` on the same
seeds and device. Equal time: against `{base}` trained so much longer as the cost over the first {seeds} seeds said, in
the row of that name; two numbers of epochs are those of runs for which the cost was measured apart.

*Best epoch: chosen on the test images, so it is no estimate of the accuracy on new ones; for reference alone.
"""


@dataclass
class Row:
    """A row of the table.

    Attributes:
        name: Of the variant.
        finals: Top-1 after the last epoch, by seed.
        medians: Median of the last evaluations, by seed.
        bests: Best top-1, by seed.
        epochs: Of training, the fewest and the most of its runs.
        cost: Time of training relative to the base, or None.
        to_base: Difference to the base, or None.
        equal_time: Difference to the base for the same time, or None.
        curve: (epochs, mean top-1) of the evaluations that all its runs have.
    """

    name: str
    finals: dict[int, float]
    medians: dict[int, float]
    bests: dict[int, float]
    epochs: tuple[int, int]
    cost: float | None
    to_base: Interval | None
    equal_time: Interval | None
    curve: list[tuple[int, float]]


def table(harness: Harness) -> list[Row]:
    """Rows of all variants that have a finished run."""
    spec = harness.spec
    finished = {name: {} for name in spec.rows}
    for (name, seed), result in harness.results.items():
        if result.finished:
            finished[name][seed] = result
    finals = {name: {seed: result.final for seed, result in runs.items()} for name, runs in finished.items()}
    rows = []
    for name, runs in finished.items():
        if not runs:
            continue
        longer = spec.longer(name) if name in spec.equal_time else None
        rows.append(
            Row(
                name,
                finals[name],
                {seed: result.last_median for seed, result in runs.items()},
                {seed: result.best for seed, result in runs.items()},
                (min(result.epochs for result in runs.values()), max(result.epochs for result in runs.values())),
                relative_cost(runs, finished[spec.base], harness.duration),
                paired_interval(finals[name], finals[spec.base]) if name != spec.base else None,
                paired_interval(finals[name], finals[longer]) if longer else None,
                mean_curve(list(runs.values())),
            )
        )
    return rows


def relative_cost(runs: dict[int, Result], base_runs: dict[int, Result], duration: Callable) -> float | None:
    """Ratio of the sums over the seeds that both have run on the same kind of device.

    Args:
        runs: Results by seed.
        base_runs: Those of the base.
        duration: Gives the seconds of a result.
    """
    shared = [seed for seed in runs if seed in base_runs and runs[seed].device == base_runs[seed].device]
    if not shared:
        return None
    seconds, base_seconds = (sum(duration(which[seed]) for seed in shared) for which in (runs, base_runs))
    return seconds / base_seconds


def mean_curve(runs: list[Result]) -> list[tuple[int, float]]:
    """Mean over the runs at every epoch at which all of them were evaluated."""
    curves = [dict(map(tuple, result.curve)) for result in runs]
    epochs = set.intersection(*(set(curve) for curve in curves))
    return [(epoch, statistics.fmean(curve[epoch] for curve in curves)) for epoch in sorted(epochs)]


def markdown(harness: Harness) -> str:
    """The report."""
    spec, rows = harness.spec, table(harness)
    data = spec.data or '`--data-dir`'
    if spec.digits:
        data = f'{spec.digits} images of each class of the embedded digits to train on, all others to test on'
    common = ' '.join(filter(None, [spec.config and f'-c {spec.config}', spec.options.strip()]))
    facts = [*environment(), *devices(harness)]
    parts = [f'# {spec.title or "Comparison"}', '\n'.join(f'- {name}: {value}' for name, value in facts)]
    parts.append(f'Data: {data}. Options of all: `{common}`')
    if rows:
        header = [text.format(base=spec.base) for text in _HEADER]
        parts += [markdown_table(header, [cells(row) for row in rows]), legend(harness, rows)]
    options = [
        f'- {name}: {f"`{text.strip()}`" if text.strip() else "nothing"}' for name, text in spec.variants.items()
    ]
    parts.append('What the variants add:\n\n' + '\n'.join(options))
    failed = [result for result in harness.results.values() if not result.finished]
    if failed:
        reasons = [f'- {result.variant}, seed {result.seed}: {result.reason}' for result in failed]
        parts.append('Failed runs, which no row above contains:\n\n' + '\n'.join(reasons))
    return '\n\n'.join(parts) + '\n'


def devices(harness: Harness) -> list[tuple[str, str]]:
    """What the finished runs ran on, where that is more than one kind of device or another than the one at hand."""
    counts = Counter(result.device for result in harness.results.values() if result.finished and result.device)
    if counts.keys() <= {device_kind(harness.on_cpu)}:
        return []
    return [('runs', '; '.join(f'{count} on {device}' for device, count in counts.most_common()))]


def legend(harness: Harness, rows: list[Row]) -> str:
    """How to read the table."""
    return _LEGEND.format(
        last=LAST,
        count=sum((row.to_base is not None) + (row.equal_time is not None) for row in rows),
        clock='processor time' if harness.on_cpu else 'time',
        base=harness.spec.base,
        seeds=min(COST_SEEDS, harness.spec.seeds),
    ).rstrip()


def cells(row: Row) -> list[str]:
    """A row's cells as text."""
    finals = list(row.finals.values())
    deviation = f'{statistics.stdev(finals):.2f}' if len(finals) > 1 else '-'
    return [
        row.name,
        str(len(finals)),
        ' to '.join(map(str, dict.fromkeys(row.epochs))),
        f'{row.cost:.2f}' if row.cost is not None else '-',
        f'{statistics.fmean(finals):.2f} ({deviation})',
        f'{statistics.fmean(row.medians.values()):.2f}',
        difference(row.to_base),
        difference(row.equal_time),
        f'{statistics.fmean(row.bests.values()):.2f}',
    ]


def difference(interval: Interval | None) -> str:
    """An interval as text, bold where it excludes 0."""
    if interval is None:
        return '-'
    return f'**{interval.text()}**' if interval.excludes_zero else interval.text()


def write_runs(harness: Harness) -> Path:
    """Writes the CSV of all runs, failed ones included."""
    order = {name: index for index, name in enumerate(harness.spec.rows)}
    runs = sorted(harness.results.values(), key=lambda result: (order[result.variant], result.seed))
    path = harness.out / 'runs.csv'
    write_csv(runs, path)
    return path


def write_all(harness: Harness) -> list[Path]:
    """Writes CSV, table and picture.

    Returns:
        The files; without the picture where matplotlib is not installed or no run has finished.
    """
    written = [write_runs(harness), harness.out / 'report.md']
    write_whole(written[1], markdown(harness))
    rows = table(harness)
    if rows:
        try:
            from benchmarks.plots import plot_comparison
        except ImportError:
            harness.say('No picture: matplotlib is missing (pip install -r benchmarks/requirements.txt).')
        else:
            written.append(plot_comparison(rows, harness.out / 'report.png', title=harness.spec.title))
    return written
