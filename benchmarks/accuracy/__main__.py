"""Which method pays, at what cost: runs train.py with variants, seeds and budgets, and reports with intervals.

    python -m benchmarks.accuracy benchmarks/specs/digits_low_label.yaml --out output/digits --jobs 2

The same command goes on where it was stopped or killed; finished runs are kept. Runs of several folders, or
machines, become one report by `--runs`. The specs lie in specs/, the rules of measurement in README.md beside this
folder.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.accuracy.harness import Harness, Stopped
from benchmarks.accuracy.report import write_all, write_runs
from benchmarks.accuracy.spec import read_spec
from regaug.errors import OptionError


def main(argv=None):
    args = parse(argv)
    if not Path(args.data_dir or '.').is_dir():
        raise OptionError(f'--data-dir {args.data_dir}: there is no such folder.')
    spec = read_spec(args.spec, seeds=args.seeds, data_dir=args.data_dir)
    if not (spec.digits or args.data_dir or args.report):
        raise OptionError(f'--data-dir is missing: {args.spec} needs a folder of data.')
    for name in ('jobs', 'threads'):
        if getattr(args, name) < 1:
            raise OptionError(f'--{name} {getattr(args, name)}: must be 1 or more.')
    files = [Path(path) for path in args.runs]
    harness = Harness(
        spec, Path(args.out), data_dir=args.data_dir, jobs=args.jobs, threads=args.threads, runs=files, say=say
    )
    status = report_only(harness) if args.report else run(harness)
    return status or int(any(not result.finished for result in harness.results.values()))


def run(harness):
    """Runs what is left and reports, also when it is stopped.

    Returns:
        Exit status: 0, or 130 when a signal stopped it.
    """
    harness.open()
    harness.on_result = lambda: write_runs(harness)
    status = 0
    try:
        harness.run()
    except Stopped:
        say('Stopped. The same command goes on; finished runs are kept.')
        status = 130
    finally:
        harness.close()
    announce(harness)
    return status


def report_only(harness):
    """Reports what there is.

    Raises:
        OptionError: There is nothing.
    """
    harness.check_folder()
    harness.read_results()
    if not harness.results:
        raise OptionError(f'--out {harness.out}: no run of this spec has ended there.')
    harness.out.mkdir(parents=True, exist_ok=True)  # all of it may come from `--runs`
    announce(harness)


def announce(harness):
    for path in write_all(harness):
        say(f'Written: {path}')


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.accuracy', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('spec', help='YAML file of variants; see benchmarks/specs')
    parser.add_argument('--out', required=True, help='folder of all runs and of the report; gone on with if it exists')
    parser.add_argument('--data-dir', default='', help='folder of the data, for specs that need one')
    parser.add_argument('--seeds', type=int, help="number of seeds in place of the spec's")
    parser.add_argument('--jobs', type=int, default=1, help='processes at a time (default: %(default)s)')
    parser.add_argument('--threads', type=int, default=1, help='threads of each process (default: %(default)s)')
    parser.add_argument('--runs', nargs='+', default=[], help='runs.csv of other folders: their runs count as done')
    parser.add_argument('--report', action='store_true', help='run nothing, report what there is')
    return parser.parse_args(argv)


def say(line):
    print(line, flush=True)


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        print(f'benchmarks.accuracy: error: {error}', file=sys.stderr)
        sys.exit(2)
