"""Cost of an update relative to plain training by network and batch size, as a table and a picture.

    python -m benchmarks.cost_map --name costs --networks resnet18 resnet50 --batch-sizes 4 16 \
        --common '--device cpu' --with '--gradaug 3' --with '--maxup 4 --cutmix 1.0'

Each cell is what `benchmarks.step_cost` measures, without memory: medians over rounds in which every configuration
makes one update.
"""

import argparse
import itertools
import sys
from pathlib import Path

from benchmarks.contender import Contender
from benchmarks.plots import plot_costs
from benchmarks.report import Spread, environment, markdown_table, paired_ratios, report_path, write_report
from benchmarks.step_cost import Result, interleave, prepare_process
from regaug.errors import OptionError

_LEGEND = """Ratios of {clock} to plain training in the same round: median (minimum to maximum).

![costs]({picture})
"""
COLUMNS = ['network', 'batch_size', 'round', 'configuration', 'seconds', 'cpu_seconds']


def main(argv=None):
    args = parse(argv)
    prepare_process()
    settings = [('common options', f'`{args.common}`'), ('rounds', f'{args.rounds}, after {args.warmup} of warm-up')]
    settings += environment()
    costs, raw = {}, []
    for network, batch_size in itertools.product(args.networks, args.batch_sizes):
        name = network.split()[0]
        costs[name, batch_size], clock, rounds = measure(f'{args.common} --model {network} -b {batch_size}', args)
        raw += [(name, batch_size, *row) for row in rounds]
        print(name, batch_size, {label: spread.text(2) for label, spread in costs[name, batch_size].items()})
        # Written after each cell, in case a later one is refused.
        text = report(args, costs, settings, clock=clock)
        path = write_report(args.output, args.name, text, COLUMNS, raw)
        plot_costs(costs, path.with_suffix('.png'))
    print(path)


def measure(common, args):
    """Costs of all configurations on one network and batch size.

    On the CPU by processor time, which other programs on the machine disturb least.

    Returns:
        ({label: `Spread` of the ratio to plain training}, name of the clock, rows of `interleave`).
    """
    contenders = [Contender(each, common=common, num_turns=args.warmup + args.rounds) for each in args.options]
    base, *others = results = [Result(contender.label) for contender in contenders]
    rows = interleave(contenders, results, warmup=args.warmup, rounds=args.rounds)
    on_cpu = contenders[0].run.device.type == 'cpu'
    times, clock = ('processor_seconds', 'processor time') if on_cpu else ('seconds', 'seconds')
    ratios = {each.label: paired_ratios(getattr(each, times), getattr(base, times)) for each in others}
    return {label: Spread.of(values) for label, values in ratios.items()}, clock, rows


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.cost_map', description='Cost of an update by network and batch size.'
    )
    parser.add_argument('--name', required=True, help='name of the report')
    parser.add_argument('--networks', nargs='+', required=True, help='models of timm, maybe with options of their own')
    parser.add_argument('--batch-sizes', nargs='+', type=int, required=True)
    parser.add_argument('--common', default='', help='options of train.py that every configuration gets')
    parser.add_argument('--with', dest='options', action='append', required=True, help='configuration; repeatable')
    parser.add_argument('--rounds', type=int, default=10, help='timed updates of each configuration')
    parser.add_argument('--warmup', type=int, default=1, help='updates of each configuration before the timed ones')
    parser.add_argument('--output', default=Path(__file__).parent / 'results', help='folder of the report')
    args = parser.parse_args(argv)
    args.options = ['', *args.options]
    return args


def report(args, costs, settings, *, clock):
    """The report as markdown: a row for each network and batch size, a column for each configuration.

    Args:
        costs: {(network, batch size): {label: `Spread`}}.
    """
    labels = list(next(iter(costs.values())))
    rows = [[network, size, *(cell[label].text(2) for label in labels)] for (network, size), cell in costs.items()]
    table = markdown_table(['network', 'batch', *(f'`{label}`' for label in labels)], rows)
    lines = [f'- {key}: {value}' for key, value in settings]
    picture = report_path(args.output, args.name).with_suffix('.png').name
    title = f'# Cost of an update by network and batch size: {args.name}'
    return '\n'.join([title, '', _LEGEND.format(clock=clock, picture=picture), table, '', *lines, ''])


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        print(f'cost_map: error: {error}', file=sys.stderr)
        sys.exit(2)
