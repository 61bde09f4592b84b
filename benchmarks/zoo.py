"""Which networks of timm can be slimmed, how far, and whether their sub-networks compute what they should.

    python -m benchmarks.zoo               # the smallest variant of every architecture file, and common ones
    python -m benchmarks.zoo --models resnet50 vit_small_patch16_224

Writes `zoo.csv` and `zoo.md` into `benchmarks/results/`. Every network runs in a process of its own.
"""

import argparse
import collections
import csv
import multiprocessing
import resource
import signal
import warnings
from pathlib import Path

import timm
import torch

from benchmarks.report import ROOT, environment, markdown_table
from benchmarks.zoo_check import EXACT, examine, parameter_count

COLUMNS = {
    'model': 'model',
    'file': 'architecture file',
    'params': 'parameters',
    'size': 'input size',
    'verdict': 'sub-network',
    'layers': 'layers slimmed',
    'kept_0.9': 'kept at 0.9 (params/FLOPs)',
    'kept_0.5': 'kept at 0.5',
    'full_width': 'full width bit-identical',
    'error': 'largest error',
    'plan_s': 'plan (CPU s)',
    'switch_ms': 'switch (CPU ms)',
    'remarks': 'remarks',
}
LEGEND = f"""
*Sub-network*: at widths 0.9 and 0.5 (divisor 8), in float64 and train mode, dropout off, batch 2: outputs and the
gradients of all parameters against a full-size copy whose dropped channels are zeroed.

- *exact*: equal to a relative error of {EXACT:g} when only output channels, biases and gains are zeroed, so that the
  input indices of every next layer are right by themselves;
- *exact (all dims zeroed)*: equal when every dropped element is zeroed, which networks need whose activations map zero
  to something else, or that standardise weights;
- *runs, differs*: it runs, but that reference computes something else;
- *planned only*: too large to compute; *not run*: over its limits; *fails*: with its message.

Normalisation in the reference uses the statistics of the kept channels, as the sub-network does. *Layers*: modules with
a weight that has channels. *Kept*: shares of the parameters and of the multiply-adds of convolutions and matrix
products. *Full width*: the twin's output at width 1 against the model's, in float32. *Plan* and *switch* (to a width
not used before, mean of 50) are processor time. *Input size*: the smallest of a list at which the network runs, or
its fixed size.
"""


def main():
    args = parse_args()
    names = args.models or default_models()
    rows = []
    for index, name in enumerate(names, 1):
        row = run_apart(name, args)
        rows.append({column: row.get(column, '') for column in COLUMNS})
        print(f'[{index}/{len(names)}] {row}', flush=True)
        write(rows, args)


def parse_args():
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.zoo', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--models', nargs='+', metavar='NAME', help='networks to examine')
    parser.add_argument('--max-gb', type=float, default=8.0, help='memory that one network may take (default: 8)')
    parser.add_argument('--limit-s', type=int, default=300, help='processor time of one network (default: 300)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks' / 'results')
    return parser.parse_args()


def default_models() -> list[str]:
    """List the variant with the fewest parameters of every architecture file, then the common ones."""
    smallest = []
    for file in sorted(timm.models.list_modules()):
        sizes = {name: parameter_count(name) for name in timm.list_models(module=file) if not name.startswith('test_')}
        if sizes:
            smallest.append(min(sizes, key=sizes.get))
    common = (ROOT / 'benchmarks' / 'zoo_common.txt').read_text().split()
    return smallest + [name for name in common if name not in smallest]


def run_apart(name: str, args) -> dict:
    """Examine one network in a child process, within its limits of time and memory."""
    row = {'model': name, 'file': timm.models.model_entrypoint(name).__module__.rpartition('.')[2]}
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=examine_in_child, args=(name, args, sender))
    child.start()
    sender.close()
    try:
        row |= receiver.recv()
    except EOFError:
        child.join()
        late = child.exitcode == -signal.SIGXCPU
        reason = f'{args.limit_s} s of processor time' if late else f'{args.max_gb:g} GB, perhaps: its process died'
        row |= {'verdict': 'not run', 'remarks': f'needs more than {reason}'}
    child.join()
    return row


def examine_in_child(name: str, args, sender):
    warnings.simplefilter('ignore')
    limit = int(args.max_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (args.limit_s, args.limit_s + 10))
    torch.set_num_threads(1)
    try:
        sender.send(examine(name, args.seed, args.max_gb))
    except MemoryError:
        sender.send({'verdict': 'not run', 'remarks': f'needs more than {args.max_gb:g} GB'})
    except Exception as error:
        sender.send({'verdict': 'fails', 'remarks': f'{type(error).__name__}: {str(error)[:300]}'})


def write(rows: list[dict], args):
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / 'zoo.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator='\n')
        writer.writeheader()
        writer.writerows(rows)
    counts = collections.Counter(row['verdict'] for row in rows)
    text = [
        '# Which networks of timm can be slimmed',
        f'{len(rows)} networks: ' + ', '.join(f'{count} {verdict}' for verdict, count in counts.most_common()) + '.',
        f'`python -m benchmarks.zoo`: seed {args.seed}; a network may take {args.max_gb:g} GB and {args.limit_s} s of '
        'processor time.',
        '\n'.join(f'- {name}: {value}' for name, value in environment()),
        LEGEND.strip(),
        markdown_table(list(COLUMNS.values()), [list(row.values()) for row in rows]),
    ]
    (args.output / 'zoo.md').write_text('\n\n'.join(text) + '\n')


if __name__ == '__main__':
    main()
