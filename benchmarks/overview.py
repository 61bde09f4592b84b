"""Several comparisons side by side: what every method gained over plain training, and at what cost.

    python -m benchmarks.overview 'digits=benchmarks/results/digits.csv' 'mine=output/mine/runs.csv' --out overview.md

Each is a `runs.csv` of benchmarks.accuracy under a name for its column; the picture lies beside the table.
"""

import argparse
import statistics
import sys
from collections import Counter
from pathlib import Path

from benchmarks.accuracy.report import difference, relative_cost
from benchmarks.accuracy.results import Result, read_csv
from benchmarks.accuracy.spec import LONGER
from benchmarks.intervals import paired_interval
from benchmarks.report import CPU, markdown_table
from regaug.errors import OptionError
from regaug.files import write_whole

_LEGEND = """First row: top-1 of `{base}` in %, mean over the seeds with standard deviation, and number of seeds. Below:
mean difference to it over paired seeds (as many unless told) with the 95 % interval, bold where that excludes 0, and
the cost of training beside it."""
_PAIRS = 'Two methods, seed by seed: difference of the first to the second, and its cost beside the second.'


def main(argv=None):
    args = parse(argv)
    out = Path(args.out)
    if not out.parent.is_dir():
        raise OptionError(f'--out {out}: there is no folder {out.parent}.')
    pairs = [read_pair(text) for text in args.pairs]
    comparisons, failed = {}, []
    for text in args.comparisons:
        name, equals, path = text.partition('=')
        if not (name and equals and path) or name in comparisons:
            raise OptionError(f'{text}: expected NAME=CSV, each name once.')
        comparisons[name], broken = read_comparison(Path(path), args.base)
        failed += [f'{name}: {variant} ({count})' for variant, count in broken.items()]
    panels = {name: differences(runs, args.base) for name, runs in comparisons.items()}
    parts = [table(comparisons, panels, args.base), _LEGEND.format(base=args.base)]
    if pairs:
        parts += [pairs_table(comparisons, pairs), _PAIRS]
    if failed:
        parts.append(f'Failed runs, in no mean: {", ".join(failed)}.')
    try:
        from benchmarks.plots import plot_differences
    except ImportError:
        raise OptionError('matplotlib is missing: pip install -r benchmarks/requirements.txt') from None
    write_whole(out, '\n\n'.join(parts) + '\n')
    print(f'Written: {out}\nWritten: {plot_differences(panels, out.with_suffix(".png"))}')


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.overview', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('comparisons', nargs='+', metavar='NAME=CSV', help='runs of a comparison, and its name')
    parser.add_argument('--base', default='plain', help='variant that the others are compared with (%(default)s)')
    parser.add_argument('--pairs', nargs='+', default=[], metavar='A:B', help='methods to compare with each other too')
    parser.add_argument('--out', default='overview.md', help='table to write (default: %(default)s)')
    return parser.parse_args(argv)


def read_pair(text: str) -> tuple[str, str]:
    """Names of two methods. Raises OptionError."""
    first, colon, second = text.partition(':')
    if not (first and colon and second) or first == second:
        raise OptionError(f'--pairs {text}: expected A:B, two methods.')
    return first, second


def read_comparison(path: Path, base: str) -> tuple[dict[str, dict[int, Result]], Counter]:
    """Finished runs by variant and seed, in the file's order, and the number of failed ones by variant.

    Raises:
        OptionError: It cannot be read, or has no run of the base.
    """
    runs: dict[str, dict[int, Result]] = {}
    failed = Counter()
    for result in read_csv(path):
        if result.finished:
            runs.setdefault(result.variant, {})[result.seed] = result
        else:
            failed[result.variant] += 1
    if base not in runs:
        raise OptionError(f'{path}: there is no finished run of {base} (there are {", ".join(runs) or "none"}).')
    return runs, failed


def differences(runs: dict[str, dict[int, Result]], base: str) -> dict[str, tuple]:
    """Difference to the base, and cost beside it or None, by method; then those to the base for a method's time."""
    found = {name: compare(runs[name], runs[base]) for name in runs if name != base}
    for name in runs:
        longer = LONGER.format(base=base, method=name)
        if longer in runs:
            found[f'{name} beside {longer}'] = compare(runs[name], runs[longer])
    return {name: pair for name, pair in found.items() if pair[0] is not None}


def compare(runs: dict[int, Result], others: dict[int, Result]) -> tuple:
    """Mean paired difference in top-1, and ratio of times; each None without pairs."""
    finals = [{seed: result.final for seed, result in which.items()} for which in (runs, others)]
    return paired_interval(*finals), relative_cost(runs, others, seconds)


def seconds(result: Result) -> float:
    """Of training: processor time where it trained on the CPU."""
    return result.processor_seconds if result.device.startswith(CPU) else result.seconds


def table(comparisons: dict[str, dict], panels: dict[str, dict], base: str) -> str:
    """The markdown table."""
    methods = dict.fromkeys(method for panel in panels.values() for method in panel)
    rows = [[base, *(summary(runs[base]) for runs in comparisons.values())]]
    seeds = [len(runs[base]) for runs in comparisons.values()]
    rows += [
        [method, *(cell(panel.get(method), count) for panel, count in zip(panels.values(), seeds, strict=True))]
        for method in methods
    ]
    return markdown_table(['training', *comparisons], rows)


def pairs_table(comparisons: dict[str, dict], pairs: list[tuple[str, str]]) -> str:
    """The markdown table of methods beside each other, with the number of seeds in every cell.

    Raises:
        OptionError: No comparison has both methods of a pair.
    """
    rows = []
    for first, second in pairs:
        both = [compare(runs.get(first, {}), runs.get(second, {})) for runs in comparisons.values()]
        if not any(interval for interval, _ in both):
            raise OptionError(f'--pairs {first}:{second}: no comparison has both for one seed.')
        rows.append([f'{first} beside {second}', *(cell(pair if pair[0] else None) for pair in both)])
    return markdown_table(['pair', *comparisons], rows)


def summary(runs: dict[int, Result]) -> str:
    """Mean and deviation of the base."""
    finals = [result.final for result in runs.values()]
    deviation = f' ({statistics.stdev(finals):.2f})' if len(finals) > 1 else ''
    return f'{statistics.fmean(finals):.2f}{deviation}, n = {len(finals)}'


def cell(pair: tuple | None, seeds: int | None = None) -> str:
    """A difference and its cost as text, with the number of pairs where it is not `seeds`."""
    if pair is None:
        return '-'
    interval, cost = pair
    count = f', n = {interval.count}' if interval.count != seeds else ''
    return difference(interval) + (f', {cost:.2f} x' if cost is not None else '') + count


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        print(f'benchmarks.overview: error: {error}', file=sys.stderr)
        sys.exit(2)
