"""Seconds per update and peak memory of configurations of train.py, relative to one of them.

    python -m benchmarks.step_cost --name gradaug --common '--model resnet50 -b 8 --device cpu' \
        --base '' --with '--gradaug 3' --with '--gradaug 3 --channels-last'

A configuration is a string of train.py's options; the empty one is plain training. Two words may begin it: `bare`, a
loop of nothing but forward, backward, step, zero_grad and loss.item(); `forward`, the forward pass alone.
The rules of measurement are in README.md beside this file.
"""

import argparse
import ctypes
import gc
import logging
import os
import random
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.contender import Contender, check_comparable
from benchmarks.report import Spread, environment, markdown_table, paired_ratios, write_report
from regaug.errors import OptionError

MIB = 2**20
FLOPS_BATCH = 6  # images to count operations with: halves and thirds of them are whole
_M_ARENA_MAX = -8  # of glibc's malloc.h
_LEGEND = """Seconds per update: median (minimum to maximum). Ratios are to the first row: of the seconds in the same
round, median (minimum to maximum); of the sums over all rounds; of processor time in the same round; of the
operations of matrix products and convolutions; of peak memory.
"""


@dataclass
class Result:
    """What was measured of one configuration.

    Attributes:
        label: its options.
        seconds: of each timed update.
        processor_seconds: of the whole process in each timed update.
        peak: bytes, or None.
        flops: operations per image and update, averaged over the timed updates, or None.
    """

    label: str
    seconds: list = field(default_factory=list)
    processor_seconds: list = field(default_factory=list)
    peak: int | None = None
    flops: float | None = None


def main(argv=None):
    args = parse(argv)
    prepare_process()
    hardware = environment()
    options = [args.base, *args.others]
    peaks = [measured_apart(each, args) if args.memory_updates else None for each in options]
    flops = [flops_per_image(each, args) if args.flops else None for each in options]
    contenders = [Contender(each, common=args.common, num_turns=args.warmup + args.rounds) for each in options]
    check_comparable(contenders)
    results = [
        Result(contender.label, peak=peak, flops=count)
        for contender, peak, count in zip(contenders, peaks, flops, strict=True)
    ]
    raw = interleave(contenders, results, warmup=args.warmup, rounds=args.rounds)
    text = report(args.name, results, settings(args, contenders[0]) + hardware, limit=args.limit)
    path = write_report(args.output, args.name, text, ['round', 'configuration', 'seconds', 'cpu_seconds'], raw)
    print(f'{text}\n{path}')
    return int(args.limit is not None and any(ratio_to(results[0], each).median > args.limit for each in results[1:]))


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.step_cost', description='Cost of an update relative to plain training.'
    )
    parser.add_argument('--name', required=True, help='name of the report')
    parser.add_argument('--common', default='', help='options of train.py that every configuration gets')
    parser.add_argument('--base', default='', help='configuration that the others are compared with')
    parser.add_argument('--with', dest='others', action='append', required=True, help='configuration; repeatable')
    parser.add_argument('--rounds', type=int, default=30, help='timed updates of each configuration')
    parser.add_argument('--warmup', type=int, default=5, help='updates of each configuration before the timed ones')
    parser.add_argument('--limit', type=float, help='exit with status 1 when a median ratio exceeds this')
    parser.add_argument('--flops', action='store_true', help=f'count operations too, at batch size {FLOPS_BATCH}')
    parser.add_argument('--memory-updates', type=int, default=4, help='updates to observe memory over, 0: none')
    parser.add_argument('--output', default=Path(__file__).parent / 'results', help='folder of the report')
    return parser.parse_args(argv)


def prepare_process():
    """Keep the runs' log out of ours, and give all threads one heap.

    With heaps of their own, as glibc has it, the same loop differs by some per cent from thread to thread.
    """
    logging.getLogger('train').setLevel(logging.ERROR)
    if sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        libc.mallopt(_M_ARENA_MAX, 1)


def interleave(contenders, results, *, warmup, rounds):
    """Let all configurations make one update a round, in an order drawn anew for each round.

    Args:
        contenders: anything with `step()` -> (seconds, processor seconds).
        results: get the times of the timed rounds.

    Returns:
        [(round, label, seconds, processor seconds), ...] in the order in which they were measured.
    """
    shuffle = random.Random(0)
    raw = []
    for round_ in range(-warmup, rounds):
        for index in shuffle.sample(range(len(contenders)), len(contenders)):
            seconds, processor_seconds = contenders[index].step()
            if round_ >= 0:
                results[index].seconds.append(seconds)
                results[index].processor_seconds.append(processor_seconds)
                raw.append((round_, results[index].label, seconds, processor_seconds))
    return raw


def flops_per_image(options, args):
    """Operations of a configuration in the updates that will be timed, which draw the same widths and sizes."""
    contender = Contender(
        options, common=f'{args.common} -b {FLOPS_BATCH}', num_turns=args.warmup + args.rounds, count_flops=True
    )
    for _ in range(args.warmup):
        contender.step()
    before = contender.flops
    for _ in range(args.rounds):
        contender.step()
    return (contender.flops - before) / args.rounds / FLOPS_BATCH


def measured_apart(options, args):
    """Peak memory of a configuration in a fresh process, see `peak_memory`."""
    # Every larger block then goes back to the system when it is freed: what is resident is what is in use.
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '65536'
    try:
        with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
            return pool.submit(peak_memory, options, args.common, args.memory_updates).result()
    finally:
        del os.environ['MALLOC_MMAP_THRESHOLD_']


def peak_memory(options, common, updates):
    """Peak memory in bytes of model, optimiser, batches and updates in this process.

    On CUDA what torch had allocated. On the CPU the tensors that live before the first update, and the growth of the
    process's resident set from there, as Linux tells it; so libraries loaded and plans made at the start do not count.
    `None` on other systems.
    """
    prepare_process()
    contender = Contender(options, common=common, num_turns=updates)
    status = Path('/proc/self/status')
    if status.exists():
        Path('/proc/self/clear_refs').write_text('5')  # the peak starts anew
        before = resident(status, 'VmRSS') - live_tensor_bytes()
    for _ in range(updates):
        contender.step()
    if contender.run.device.type == 'cuda':
        return torch.cuda.max_memory_allocated(contender.run.device)
    return resident(status, 'VmHWM') - before if status.exists() else None


def resident(status, name):
    """A size in bytes from Linux's status of a process: `VmRSS` now, `VmHWM` at most."""
    line = next(line for line in status.read_text().splitlines() if line.startswith(f'{name}:'))
    return int(line.split()[1]) * 1024


def live_tensor_bytes():
    """Memory of all CPU tensors that Python knows, each storage once."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor)]
    storages = [each.untyped_storage() for each in tensors if each.device.type == 'cpu']
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def ratio_to(base, result):
    """Spread of a configuration's time over the base's in the same rounds."""
    return Spread.of(paired_ratios(result.seconds, base.seconds))


def settings(args, contender):
    """What was run, as (name, value) pairs."""
    run, input = contender.run, contender.input
    parameters = list(run.model.parameters())
    count, size = sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters)
    return [
        ('common options', f'`{args.common}`'),
        ('batch', f'{list(input.shape)} {input.dtype} on {input.device}, {run.args.num_classes} classes'),
        ('parameters', f'{count:,}, {size / MIB:.1f} MiB'),
        ('updates', f'{args.rounds} of each configuration, one a round, after {args.warmup} of warm-up'),
    ]


def report(name, results, settings, *, limit=None):
    """The report as markdown: a row for each configuration, the first of which is the base, then the settings."""
    base = results[0]
    rows = []
    for result in results:
        ratio = ratio_to(base, result)
        processor = Spread.of(paired_ratios(result.processor_seconds, base.processor_seconds))
        rows.append(
            [
                f'`{result.label}`',
                Spread.of(result.seconds).text(4),
                ratio.text(3),
                f'{sum(result.seconds) / sum(base.seconds):.3f}',
                processor.text(3),
                '' if result.flops is None else f'{result.flops / base.flops:.3f}',
                '' if result.peak is None else f'{result.peak / MIB:.1f}',
                '' if result.peak is None else f'{result.peak / base.peak:.3f}',
                'base' if result is base else verdict(ratio.median, limit),
            ]
        )
    header = [
        'configuration',
        'seconds',
        'ratio',
        'of sums',
        'of processor time',
        'of operations',
        'peak MiB',
        'of peaks',
        '',
    ]
    lines = [f'- {key}: {value}' for key, value in settings]
    return '\n'.join([f'# Cost of an update: {name}', '', _LEGEND, markdown_table(header, rows), '', *lines, ''])


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
