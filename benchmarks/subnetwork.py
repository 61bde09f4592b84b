"""A ResNet-50 sub-network by `slimmable.Twin` against slicing written by hand into its modules, and the FLOP ideal.

    python -m benchmarks.subnetwork --widths 0.9 0.75 0.5 --batch-size 8 --rounds 20

Each round makes one forward and backward pass of the full network, of the twin and of the sliced copy at every width,
in an order drawn anew. Both sub-networks give the same output, which is checked first. The rules of measurement are in
README.md beside this file.
"""

import argparse
import copy
import sys
import time
import types
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.report import Spread, environment, markdown_table, paired_ratios, write_report
from benchmarks.step_cost import Result, interleave
from regaug.slimmable import SlimmablePlan, Twin

DIVISOR = 8
_LEGEND = """Ratios are to the full network in the same round: median (minimum to maximum). `ideal` is the share of
multiply-adds that the width keeps. `twin to by hand` compares the two in the same round; processor time tells more than
seconds on a machine that does other work too.
"""


def slice_by_hand(model, width):
    """A copy that shares the parameters of a ResNet and runs at `width`, with the slicing in its modules."""
    sliced = copy.deepcopy(model, {id(p): p for p in model.parameters()})

    def kept(channels):
        return max(int(width * channels / DIVISOR + 0.5), 1) * DIVISOR

    def conv(self, x):
        weight = self.weight[: kept(self.out_channels), : x.shape[1]]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)

    def batch_norm(self, x):
        channels = x.shape[1]
        return self.act(F.batch_norm(x, None, None, self.weight[:channels], self.bias[:channels], True, 0.0, self.eps))

    def plain_batch_norm(self, x):
        channels = x.shape[1]
        return F.batch_norm(x, None, None, self.weight[:channels], self.bias[:channels], True, 0.0, self.eps)

    def linear(self, x):
        return F.linear(x, self.weight[:, : x.shape[1]], self.bias)

    for module in sliced.modules():
        if isinstance(module, nn.Conv2d):
            module.forward = types.MethodType(conv, module)
        elif isinstance(module, nn.BatchNorm2d):
            module.forward = types.MethodType(batch_norm if hasattr(module, 'act') else plain_batch_norm, module)
        elif isinstance(module, nn.Linear):
            module.forward = types.MethodType(linear, module)
    return sliced


class Pass:
    """One forward and backward pass of a network, timed."""

    def __init__(self, network, input, device):
        self.network = network
        self.input = input
        self.device = device

    def step(self):
        start = self._now()
        self.network(self.input).square().mean().backward()
        return tuple(end - begin for end, begin in zip(self._now(), start, strict=True))

    def _now(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize()
        return time.perf_counter(), time.process_time()


def at_width(twin, width):
    def run(input):
        twin.set(width)
        return twin(input)

    return run


def check_same(twin, by_hand, input, width):
    with torch.no_grad():
        torch.testing.assert_close(at_width(twin, width)(input), by_hand(input), rtol=1e-4, atol=1e-4)


def switch_seconds(twin, widths):
    """Processor seconds to switch to widths that are new, and to widths that were used before: (new, known)."""
    times = ([], [])
    for known in (0, 1):
        for width in widths:
            start = time.process_time()
            twin.set(width)
            times[known].append(time.process_time() - start)
    twin.clear()
    return times


def main(argv=None):
    args = parse(argv)
    device = torch.device(args.device)
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    torch.manual_seed(0)
    model = timm.create_model('resnet50').to(device).to(memory_format=memory_format).train()
    input = torch.rand(args.batch_size, 3, args.size, args.size, device=device).contiguous(memory_format=memory_format)
    plan = SlimmablePlan(model, (3, args.size, args.size))
    twin = Twin(model, plan, DIVISOR)
    new, known = switch_seconds(twin, torch.linspace(0.5, 0.99, 20).tolist())
    networks, results = [Pass(model, input, device)], [Result('full network')]
    for width in args.widths:
        by_hand = slice_by_hand(model, width)
        check_same(twin, by_hand, input, width)
        networks += [Pass(at_width(twin, width), input, device), Pass(by_hand, input, device)]
        results += [Result(f'twin {width:g}'), Result(f'by hand {width:g}')]
    raw = interleave(networks, results, warmup=args.warmup, rounds=args.rounds)
    rows = []
    for index, width in enumerate(args.widths):
        full, ours, theirs = results[0], results[1 + 2 * index], results[2 + 2 * index]
        rows.append(
            [
                f'{width:g}',
                f'{plan.kept(width, DIVISOR)[1]:.3f}',
                Spread.of(paired_ratios(ours.seconds, full.seconds)).text(3),
                Spread.of(paired_ratios(theirs.seconds, full.seconds)).text(3),
                Spread.of(paired_ratios(ours.seconds, theirs.seconds)).text(3),
                Spread.of(paired_ratios(ours.processor_seconds, theirs.processor_seconds)).text(3),
            ]
        )
    header = ['width', 'ideal', 'twin', 'by hand', 'twin to by hand', 'same, processor time']
    settings = [
        ('input', f'{tuple(input.shape)}, {"channels_last" if args.channels_last else "NCHW"}, {device.type}'),
        ('rounds', f'{args.rounds} after {args.warmup} of warm-up'),
        ('switching to a new width, processor ms', Spread.of([1e3 * each for each in new]).text(2)),
        ('switching to a known width, processor ms', Spread.of([1e3 * each for each in known]).text(2)),
        *environment(),
    ]
    lines = [f'- {key}: {value}' for key, value in settings]
    name = f'subnetwork-{"nhwc" if args.channels_last else "nchw"}-{device.type}'
    text = '\n'.join([f'# {name}', '', _LEGEND, markdown_table(header, rows), '', *lines, ''])
    path = write_report(args.output, name, text, ['round', 'network', 'seconds', 'cpu_seconds'], raw)
    print(f'{text}\n{path}')


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.subnetwork', description='Cost of a sub-network against slicing by hand.'
    )
    parser.add_argument('--widths', type=float, nargs='+', default=[0.9, 0.75, 0.5])
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--size', type=int, default=224, help='pixels')
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--warmup', type=int, default=2)
    parser.add_argument('--channels-last', action='store_true')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', default=Path(__file__).parent / 'results', help='folder of the report')
    return parser.parse_args(argv)


if __name__ == '__main__':
    sys.exit(main())
