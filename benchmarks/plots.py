"""Pictures of the benchmarks, by matplotlib (benchmarks/requirements.txt)."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use('Agg')

from matplotlib import pyplot as plt

from benchmarks.intervals import mean_interval

_DPI = 110
_BELOW = 15  # points of top-1 below the lowest final value where the learning curves are cut off


def plot_comparison(rows: Sequence, path: Path, *, title: str) -> Path:
    """Draws accuracy against cost with 95 % intervals of the means (from three runs on), and mean learning curves.

    Args:
        rows: Rows of the table (`accuracy.report.Row`).
        path: PNG file to write.
        title: Of the picture.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(14.5, 5.5), layout='constrained')
    cut = min((row.curve[-1][1] for row in rows if row.curve), default=0.0) - _BELOW
    for index, row in enumerate(rows):
        style = dict(color=f'C{index % 10}', marker='os^Dv'[index // 10 % 5], label=f'{row.name} ({len(row.finals)})')
        interval = mean_interval(list(row.finals.values()))
        half = interval.high - interval.mean if interval.count > 2 else 0.0
        if row.cost is not None:
            left.errorbar(row.cost, interval.mean, yerr=half, capsize=3, **style)
        epochs, values = zip(*row.curve) if row.curve else ((), ())  # runs evaluated after other epochs share none
        right.plot(epochs, values, markersize=3, **style)
    left.set(xlabel='cost of training relative to the base', ylabel='top-1, % (mean, 95 % interval)')
    right.set(xlabel='epoch', ylabel='top-1, % (mean)')
    if right.get_ylim()[0] < cut:
        right.set_ylim(bottom=cut)
    legend = dict(loc='outside right upper', fontsize=7, title='variant (runs)', title_fontsize=7)
    figure.legend(*right.get_legend_handles_labels(), **legend)
    figure.suptitle(title)
    return finish(figure, path)


def plot_curves(curves: dict[str, Sequence[dict]], metric: str, path: Path) -> Path:
    """Draws a metric and the training loss of several runs over their epochs.

    Args:
        curves: Rows of `read_curve` by the run's name.
        metric: Column for the left half.
        path: PNG file to write.
    """
    figure, axes = plt.subplots(1, 2, figsize=(13, 5.5), layout='constrained')
    for axis, column in zip(axes, (metric, 'train_loss'), strict=True):
        for name, curve in curves.items():
            points = [(row['epoch'], row[column]) for row in curve if column in row]
            if points:
                axis.plot(*zip(*points), marker='.', label=name)
        axis.set(xlabel='epoch, as in summary.csv', ylabel=column)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return finish(figure, path)


def plot_costs(costs: dict[tuple[str, int], dict], path: Path) -> Path:
    """Draws cost against batch size, a panel for each network, with the range over the rounds.

    Args:
        costs: `Spread` of the ratio to plain training by configuration, by network and batch size.
        path: PNG file to write.
    """
    networks = list(dict.fromkeys(network for network, _ in costs))
    figure, axes = plt.subplots(
        1, len(networks), figsize=(3.4 * len(networks), 4.5), sharey=True, squeeze=False, layout='constrained'
    )
    for axis, network in zip(axes[0], networks, strict=True):
        cells = {size: cell for (name, size), cell in costs.items() if name == network}
        for label in next(iter(cells.values())):
            spreads = [cell[label] for cell in cells.values()]
            medians = [spread.median for spread in spreads]
            errors = [[each.median - each.low for each in spreads], [each.high - each.median for each in spreads]]
            axis.errorbar(list(cells), medians, yerr=errors, marker='o', capsize=3, label=label)
        axis.set(title=network, xlabel='batch size', xscale='log')
        axis.set_xticks(list(cells), map(str, cells))
        axis.minorticks_off()
    axes[0, 0].set_ylabel('cost of an update relative to plain training')
    axes[0, 0].set_ylim(bottom=1)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc='outside lower center', ncols=2, fontsize=8)
    return finish(figure, path)


def plot_differences(panels: dict[str, dict], path: Path) -> Path:
    """Draws differences to a base with their intervals, a panel for each comparison.

    Args:
        panels: (`Interval`, cost or None) by method, by comparison.
        path: PNG file to write.
    """
    methods = list(dict.fromkeys(method for panel in panels.values() for method in panel))[::-1]
    size = (2 + 3.2 * len(panels), 1.2 + 0.32 * len(methods))
    figure, axes = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout='constrained')
    for axis, (name, panel) in zip(axes[0], panels.items(), strict=True):
        axis.axvline(0, color='black', linewidth=0.8)
        for method, (interval, cost) in panel.items():
            height = methods.index(method)
            half = interval.high - interval.mean if interval.count > 2 else 0.0
            color = 'C7' if not interval.excludes_zero else 'C2' if interval.mean > 0 else 'C3'
            axis.errorbar(interval.mean, height, xerr=half, marker='o', capsize=3, color=color)
            if cost is not None:
                axis.annotate(
                    f'{cost:.1f}x', (1.01, height), xycoords=('axes fraction', 'data'), fontsize=7, va='center'
                )
        axis.set_title(name, fontsize=9)
        axis.set_xlabel('points of top-1')
    axes[0, 0].set_yticks(range(len(methods)), methods, fontsize=8)
    return finish(figure, path)


def finish(figure, path: Path) -> Path:
    """Writes a figure whole and closes it."""
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    temporary = path.with_name(f'{path.name}.tmp')
    figure.savefig(temporary, format='png', dpi=_DPI)
    temporary.replace(path)
    plt.close(figure)
    return path
