"""Cost of an update relative to plain training by network and batch size, as a table and a picture.

    python -m benchmarks.cost_map --name costs --networks resnet18 resnet50 --batch-sizes 4 16 \
        --common '--device cpu' --with '--gradaug 3' --with '--maxup 4 --cutmix 1.0'

Each cell is what `benchmarks.step_cost` measures, without memory: medians over rounds in which every configuration
makes one update.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.contender import Contender
from benchmarks.plots import plot_costs
from benchmarks.report import Spread, environment, markdown_table, paired_ratios, write_report
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
    for network in args.networks:
        for batch_size in args.batch_sizes:
            common = f'{args.common} --model {network} -b {batch_size}'
            contenders = [Contender(each, common=common, num_turns=args.warmup + args.rounds) for each in args.options]
            on_cpu = contenders[0].run.device.type == 'cpu'
            results = [Result(contender.label) for contender in contenders]
            rounds = interleave(contenders, results, warmup=args.warmup, rounds=args.rounds)
            name = network.split()[0]
            raw += [(name, batch_size, *row) for row in rounds]
            costs[name, batch_size] = {each.label: cost(each, results[0], on_cpu) for each in results[1:]}
            print(name, batch_size, {label: spread.text(2) for label, spread in costs[name, batch_size].items()})
            clock = 'processor time' if on_cpu else 'seconds'  # written after each cell, in case a later one is refused
            path = write_report(args.output, args.name, report(args.name, costs, settings, clock=clock), COLUMNS, raw)
    path.write_text(path.read_text().replace(f'({args.name}.png)', f'({path.stem}.png)'))
    print(plot_costs(costs, path.with_suffix('.png')))


def parse(argv):
    parser = argparse.ArgumentParser(description='Cost of an update by network and batch size.')
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


def cost(result, base, on_cpu):
    """Spread of a configuration's cost: by the clock that other programs on the machine disturb least."""
    if on_cpu:
        return Spread.of(paired_ratios(result.processor_seconds, base.processor_seconds))
    return Spread.of(paired_ratios(result.seconds, base.seconds))


def report(name, costs, settings, *, clock):
    """The report as markdown: a row for each network and batch size, a column for each configuration.

    Args:
        costs: {(network, batch size): {label: `Spread`}}.
    """
    labels = list(next(iter(costs.values())))
    rows = [[network, size, *(cell[label].text(2) for label in labels)] for (network, size), cell in costs.items()]
    table = markdown_table(['network', 'batch', *(f'`{label}`' for label in labels)], rows)
    lines = [f'- {key}: {value}' for key, value in settings]
    legend = _LEGEND.format(clock=clock, picture=f'{name}.png')
    return '\n'.join([f'# Cost of an update by network and batch size: {name}', '', legend, table, '', *lines, ''])


if __name__ == '__main__':
    try:
        sys.exit(main())
    except OptionError as error:
        print(f'cost_map: error: {error}', file=sys.stderr)
        sys.exit(2)
