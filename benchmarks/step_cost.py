"""Seconds per update and peak memory of configurations of train.py, relative to one of them.

    python -m benchmarks.step_cost --name gradaug --common '--model resnet50 -b 8 --device cpu' \
        --base '' --with '--gradaug 3' --with '--gradaug 3 --channels-last'

A configuration is a string of train.py's options; the empty one is plain training. Two words may begin it: `bare`, a
loop of nothing but forward, backward, step, zero_grad and loss.item(); `forward`, the forward pass alone.
The rules of measurement are in README.md beside this file.
"""

import argparse
import logging
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.contender import Contender, check_comparable
from benchmarks.report import Spread, environment, markdown_table, paired_ratios, write_report
from regaug.errors import OptionError

MIB = 2**20


def main(argv=None):
    args = parse(argv)
    # A report of every run's own lines would bury ours; what it warns of (waiting for data) is our doing.
    logging.getLogger('train').setLevel(logging.ERROR)
    options = [args.base, *args.others]
    environment_rows = environment()
    peaks = [None] * len(options)
    if not args.no_memory:
        peaks = [measured_apart(each, args.common, args.memory_updates) for each in options]
    contenders = [Contender(each, common=args.common, num_turns=args.warmup + args.rounds) for each in options]
    check_comparable(contenders)
    measurements = interleave(contenders, warmup=args.warmup, rounds=args.rounds)
    ratios = [paired_ratios(column(measurements, index), column(measurements, 0)) for index in range(len(options))]
    text = report(args, contenders, measurements, ratios, peaks, environment_rows)
    labels = [contender.label for contender in contenders]
    raw = [(round_, labels[index], *times) for round_, index, *times in measurements]
    path = write_report(args.output, args.name, text, ['round', 'configuration', 'seconds', 'cpu_seconds'], raw)
    print(f'{text}\n{path}')
    exceeded = args.limit is not None and any(Spread.of(each).median > args.limit for each in ratios[1:])
    return 1 if exceeded else 0


def parse(argv):
    parser = argparse.ArgumentParser(description='Cost of an update relative to plain training.')
    parser.add_argument('--name', required=True, help='name of the report')
    parser.add_argument('--common', default='', help='options of train.py that every configuration gets')
    parser.add_argument('--base', default='', help='configuration that the others are compared with')
    parser.add_argument('--with', dest='others', action='append', required=True, help='configuration; repeatable')
    parser.add_argument('--rounds', type=int, default=30, help='timed updates of each configuration')
    parser.add_argument('--warmup', type=int, default=5, help='updates of each configuration before the timed ones')
    parser.add_argument('--limit', type=float, help='exit with status 1 when a median ratio exceeds this')
    parser.add_argument('--no-memory', action='store_true', help='time only')
    parser.add_argument('--memory-updates', type=int, default=4, help='updates over which memory is observed')
    parser.add_argument('--output', default=Path(__file__).parent / 'results', help='folder of the report')
    return parser.parse_args(argv)


def interleave(contenders, *, warmup, rounds):
    """Lets all configurations make one update a round, in an order drawn anew for each round.

    Returns:
        [(round, index of the configuration, seconds, processor seconds), ...] without the warm-up.
    """
    order_of_round = random.Random(0)
    measurements = []
    for round_ in range(-warmup, rounds):
        order = order_of_round.sample(range(len(contenders)), len(contenders))
        measured = [(round_, index, *contenders[index].step()) for index in order]
        if round_ >= 0:
            measurements += measured
    return measurements


def column(measurements, index, *, processor=False):
    """Seconds (or processor seconds) of one configuration, in the order of the rounds."""
    return [row[3 if processor else 2] for row in measurements if row[1] == index]


def measured_apart(options, common, updates):
    """Peak memory of a configuration in a fresh process, see `peak_memory`."""
    # Every larger block then goes back to the system when it is freed: what is resident is what is in use.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '65536'
    try:
        with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
            return pool.submit(peak_memory, options, common, updates).result()
    finally:
        del os.environ['MALLOC_MMAP_THRESHOLD_']


def peak_memory(options, common, updates):
    """Peak memory in bytes of model, optimiser, batches and updates.

    On CUDA what torch had allocated; on Linux CPUs the growth of the resident set over the imported libraries.
    `None` elsewhere.
    """
    logging.getLogger('train').setLevel(logging.ERROR)
    status = Path('/proc/self/status')
    before = 0
    if status.exists():
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
        before = resident(status, 'VmRSS')
    contender = Contender(options, common=common, num_turns=updates)
    for _ in range(updates):
        contender.step()
    if contender.run.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(contender.run.device)
    return resident(status, 'VmHWM') - before if before else None


def resident(status, field):
    """A size in bytes from Linux's status of a process: `VmRSS` now, `VmHWM` at most."""
    line = next(line for line in status.read_text().splitlines() if line.startswith(f'{field}:'))
    return int(line.split()[1]) * 1024


def report(args, contenders, measurements, ratios, peaks, environment_rows):
    """The report as markdown: a row for each configuration, then how it was measured."""
    base_seconds = sum(column(measurements, 0))
    base_processor = column(measurements, 0, processor=True)
    rows = []
    for index, contender in enumerate(contenders):
        seconds = column(measurements, index)
        ratio = Spread.of(ratios[index])
        processor = Spread.of(paired_ratios(column(measurements, index, processor=True), base_processor))
        rows.append(
            [
                f'`{contender.label}`',
                Spread.of(seconds).text(4),
                ratio.text(3),
                f'{sum(seconds) / base_seconds:.3f}',
                processor.text(3),
                *memory_cells(peaks[index], peaks[0]),
                verdict(ratio.median, args.limit) if index else 'base',
            ]
        )
    header = ['configuration', 'seconds', 'ratio', 'ratio of sums', 'ratio of processor time', 'peak MiB', 'ratio', '']
    input = contenders[0].input
    parameters = contenders[0].num_parameters
    settings = [
        ('common options', f'`{args.common}`'),
        ('batch', f'{list(input.shape)}, {contenders[0].run.args.num_classes} classes, {input.dtype}, {input.device}'),
        ('parameters', f'{parameters:,} ({parameters * 4 / MIB:.1f} MiB in float32)'),
        ('updates', f'{args.rounds} of each configuration, one a round, after {args.warmup} of warm-up'),
        *environment_rows,
    ]
    return (
        f'# Cost of an update: {args.name}\n\n'
        'Seconds per update and its ratio to the first row: median (minimum to maximum) over rounds.\n\n'
        f'{markdown_table(header, rows)}\n\n'
        f'{markdown_table(["measured with", ""], settings)}\n'
    )


def memory_cells(peak, base_peak):
    if peak is None:
        return ['', '']
    return [f'{peak / MIB:.1f}', f'{peak / base_peak:.3f}']


def verdict(ratio, limit):
    if limit is None:
        return ''
    return f'above {limit}' if ratio > limit else f'within {limit}'


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        print(f'step_cost: error: {error}', file=sys.stderr)
        sys.exit(2)
