"""Any runs side by side: one picture of their curves, one table of their finals.

    python -m benchmarks.compare output/train/plain output/train/gradaug --out comparison.png

A run is a folder with a summary.csv: of our train.py, of timm's, or `runs/<variant>/seed<k>` of benchmarks.accuracy.
"""

import argparse
import sys
from itertools import takewhile
from pathlib import Path

from benchmarks.curves import LAST, best_epoch, last_median, read_curve
from benchmarks.report import markdown_table
from regaug.errors import OptionError

PICTURES = ('.png', '.pdf', '.svg')


def main(argv=None):
    args = parse(argv)
    out = Path(args.out)
    if not out.parent.is_dir():
        raise OptionError(f'--out {out}: there is no folder {out.parent}.')
    if out.suffix.lower() not in PICTURES:
        raise OptionError(f'--out {out}: a picture ends in {", ".join(PICTURES)}.')
    folders = [Path(run) for run in args.runs]
    curves = {name: read_curve(folder) for name, folder in zip(short_names(folders), folders, strict=True)}
    for name, curve in curves.items():
        columns = sorted({column for row in curve for column in row} - {'epoch'})
        if args.metric not in columns:
            raise OptionError(f'--metric {args.metric}: {name} has no such column (it has {", ".join(columns)}).')
    try:
        from benchmarks.plots import plot_curves
    except ImportError:
        raise OptionError('matplotlib is missing: pip install -r benchmarks/requirements.txt') from None
    print(table(curves, args.metric))
    print(f'\nPicture: {plot_curves(curves, args.metric, out)}')


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder of a run')
    parser.add_argument('--metric', default='eval_top1', help='column of summary.csv (default: %(default)s)')
    parser.add_argument('--out', default='comparison.png', help='picture to write (default: %(default)s)')
    return parser.parse_args(argv)


def short_names(folders: list[Path]) -> list[str]:
    """Names that tell folders apart: their paths without the folders that all of them begin and end with.

    Args:
        folders: Different folders.

    Raises:
        OptionError: One folder is given twice.
    """
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        twice = next(folder for folder, path in zip(folders, parts) if parts.count(path) > 1)
        raise OptionError(f'{twice}: given twice.')
    if len(parts) == 1:
        return [parts[0][-1]]
    start = shared_length(parts)
    end = shared_length([path[start:][::-1] for path in parts])
    names = ['/'.join(path[start : len(path) - end]) or path[-1] for path in parts]
    return names if len(set(names)) == len(names) else [str(Path(*path)) for path in parts]


def shared_length(paths: list[tuple[str, ...]]) -> int:
    """How many parts all paths begin with in common."""
    return sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, zip(*paths)))


def table(curves: dict[str, list[dict]], metric: str) -> str:
    """The markdown table of finals, with its note on the best epoch."""
    rows = []
    for name, curve in curves.items():
        measured = [row for row in curve if metric in row]
        values = [row[metric] for row in measured]
        best = best_epoch(measured, metric)
        loss = f'{curve[-1]["train_loss"]:.4f}' if 'train_loss' in curve[-1] else '-'
        best_text = f'{best[metric]:.3f} ({best["epoch"]:.0f})'
        rows.append(
            [name, f'{curve[-1]["epoch"]:.0f}', f'{values[-1]:.3f}', f'{last_median(values):.3f}', loss, best_text]
        )
    header = ['run', 'last epoch', f'final {metric}', f'median of the last {LAST}', 'final train_loss', 'best (epoch)*']
    note = '*Best epoch: chosen on the images it was evaluated on, so no estimate of anything; for reference alone.'
    return f'{markdown_table(header, rows)}\n\n{note}'


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        print(f'benchmarks.compare: error: {error}', file=sys.stderr)
        sys.exit(2)
