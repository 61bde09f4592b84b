"""Cost of evaluations against their forward (and backward) passes alone, over the same batches.

    python -m benchmarks.evaluations --limit 1.05

An evaluation should cost what its passes cost. Each one runs beside a bare loop that makes the same passes and judges
nothing; the batches are made once and lie on the device. Rounds alternate, ratios are taken within a round.
"""

import argparse
import itertools
import sys
import tempfile
import time
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from torch.nn import functional

from benchmarks.report import Spread, environment, markdown_table, paired_ratios, write_report
from regaug.evaluators import Needs
from regaug.evaluators.accuracy import Accuracy
from regaug.evaluators.attacks import FGSM_EPS, Attack
from regaug.evaluators.calibration import Calibration
from regaug.evaluators.smoothing import Certification
from regaug.evaluators.spectrum import Spectrum

_LEGEND = (
    'Ratio to a bare loop over the same batches, median (min to max) over the rounds; time of the processor beside.'
)


class Batches:
    """Stands where `EvaluationData` stands: noise images that lie on the device."""

    distributed, valid_labels, network_name, width, needs = False, None, 'network', None, Needs()

    def __init__(self, args, num_classes):
        self.args = Namespace(batch_size=args.batch_size, rank=0, world_size=1)
        self.device = torch.device(args.device)
        self.precision = Namespace(autocast=nullcontext)
        shape = (args.batch_size, 3, args.size, args.size)
        self.dataset = [
            (torch.rand(shape, device=self.device), torch.randint(num_classes, shape[:1], device=self.device))
            for _ in range(args.batches)
        ]
        self.data_config = {'mean': (0.5,) * 3, 'std': (0.5,) * 3}

    def loader(self, dataset, **kwargs):
        return dataset

    def batches(self, loader):
        return iter(loader)

    def placed_batches(self, loader):
        return ((input, target, list(range(len(target)))) for input, target in loader)

    def part(self, indices, leave_out=False):
        return list(itertools.islice(self.dataset, 1))

    def to_device(self, input):
        return input

    def logits(self, network, input):
        return network(input)


class OneImage(Batches):
    """A single image, for certification."""

    def __init__(self, args, num_classes):
        super().__init__(args, num_classes)
        self.dataset = [(input[:1], target[:1]) for input, target in self.dataset[:1]]


def bare_forward(network, data):
    for input, _ in data.dataset:
        network(input)


def bare_fgsm(network, data):
    for input, target in data.dataset:
        with torch.enable_grad():
            input = input.clone().requires_grad_()
            functional.cross_entropy(network(input), target).backward(inputs=[input])
        for _ in FGSM_EPS:
            network(input.detach())


def bare_copies(copies):
    def run(network, data):
        size = data.args.batch_size
        input = data.dataset[0][0].expand(size, -1, -1, -1).contiguous()
        for _ in range(copies // size):
            network(input)

    return run


def now(device):
    if device.type == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def pairs(args, network, folder):
    """(name, evaluation, bare loop): functions without arguments that make the same passes."""
    data, image = Batches(args, network.num_classes), OneImage(args, network.num_classes)
    copies = args.batches * args.batch_size
    quiet = 10**9  # no log lines
    calibration = [lambda data: Calibration(data.device)]
    certification = Certification(0.5, n=copies, n0=args.batch_size, skip=1)
    return [
        (name, lambda e=evaluator, d=batches: list(e.run(network, d)), lambda f=bare, d=batches: f(network, d))
        for name, evaluator, batches, bare in (
            ('accuracy', Accuracy(log_freq=quiet), data, bare_forward),
            ('accuracy --ece', Accuracy(log_freq=quiet, judges=calibration), data, bare_forward),
            ('fgsm, 5 epsilons', Attack('fgsm', eps=FGSM_EPS, space='normalized', log_freq=quiet), data, bare_fgsm),
            (f'certify, n {copies}', certification, image, bare_copies(copies + args.batch_size)),
            ('spectrum', Spectrum(folder, log_freq=quiet), data, bare_forward),
        )
    ]


def measure(runs, device, *, warmup, rounds):
    """Seconds and processor seconds of some functions, run in turn: a list of pairs for each."""
    times = [[] for _ in runs]
    for index in range(warmup + rounds):
        for run, kept in zip(runs, times, strict=True):
            with torch.no_grad():
                start = now(device)
                run()
                if index >= warmup:
                    kept.append(tuple(end - begin for end, begin in zip(now(device), start, strict=True)))
    return times


def main(argv=None):
    args = parse(argv)
    torch.manual_seed(0)
    device = torch.device(args.device)
    network = timm.create_model(args.model).to(device).eval()
    raw, rows, worst = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, *runs in pairs(args, network, folder):
            ours, bare = measure(runs, device, warmup=args.warmup, rounds=args.rounds)
            ratios = [Spread.of(paired_ratios(*each)) for each in zip(zip(*ours), zip(*bare), strict=True)]
            worst = max(worst, ratios[1].median)
            rows.append([name, *(spread.text(3) for spread in ratios)])
            for kind, times in (('evaluation', ours), ('bare', bare)):
                raw += [[index, name, kind, *each] for index, each in enumerate(times)]
    settings = [
        ('network', f'{args.model}, {args.batches} batches of {args.batch_size} at {args.size} pixels, {device.type}'),
        ('rounds', f'{args.rounds} after {args.warmup} of warm-up'),
        *environment(),
    ]
    lines = [f'- {key}: {value}' for key, value in settings]
    table = markdown_table(['evaluation', 'time', 'processor time'], rows)
    name = f'evaluations-{device.type}'
    text = '\n'.join([f'# {name}', '', _LEGEND, '', table, '', *lines, ''])
    path = write_report(args.output, name, text, ['round', 'evaluation', 'kind', 'seconds', 'cpu_seconds'], raw)
    print(f'{text}\n{path}')
    return int(args.limit is not None and worst > args.limit)


def parse(argv):
    parser = argparse.ArgumentParser(
        prog='python -m benchmarks.evaluations', description='Cost of evaluations against their passes alone.'
    )
    parser.add_argument('--model', default='resnet18')
    parser.add_argument('--batch-size', type=int, default=32)
    parser.add_argument('--batches', type=int, default=16)
    parser.add_argument('--size', type=int, default=128, help='pixels')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--warmup', type=int, default=1)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--limit', type=float, help='exit status 1 if a median ratio of processor time is above')
    parser.add_argument('--output', default=Path(__file__).parent / 'results', help='folder of the report')
    return parser.parse_args(argv)


if __name__ == '__main__':
    sys.exit(main())
