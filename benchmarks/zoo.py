"""Which networks of timm can be slimmed, how far, and whether their sub-networks compute what they should.

    python benchmarks/zoo.py                          # the smallest variant of every architecture file, and common ones
    python benchmarks/zoo.py --models resnet50 vit_small_patch16_224

Writes `zoo.csv` and `zoo.md` into `benchmarks/results/`. Every network runs in a process of its own.
"""

import argparse
import collections
import csv
import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]

from slimmable_oracle import (  # noqa: E402
    gradient_errors,
    make_generic,
    relative_error,
    statistics_of_kept_channels,
    zeroed_copy,
)

from regaug.slimmable import SlimmablePlan, Twin, calibrate  # noqa: E402

WIDTHS = (0.9, 0.5)
EXACT = 1e-6  # largest relative error of what counts as equal; some layers compute in float32 whatever the input
SIZES = (64, 96, 128, 160, 192, 224, 256, 299)  # the smallest that a network runs at is used
COPIES = 5  # float64 tensors per parameter: model, reference, their gradients, and one to compute with
COMMON = [
    'resnet18',
    'resnet50',
    'resnet101d',
    'seresnet50',
    'ecaresnet50t',
    'wide_resnet50_2',
    'resnext50_32x4d',
    'resnetv2_50',
    'resnetv2_50x1_bit',
    'regnetx_008',
    'regnety_008',
    'nf_resnet50',
    'eca_nfnet_l0',
    'res2net50_26w_4s',
    'resnest26d',
    'skresnet34',
    'seresnext50_32x4d',
    'efficientnet_b0',
    'tf_efficientnetv2_b0',
    'mobilenetv2_100',
    'mobilenetv3_large_100',
    'mnasnet_100',
    'fbnetc_100',
    'mixnet_s',
    'mobilenetv4_conv_small',
    'mobilenetv4_hybrid_medium',
    'densenet121',
    'vgg11_bn',
    'inception_v3',
    'ghostnet_100',
    'ghostnetv2_100',
    'repvgg_a0',
    'hrnet_w18',
    'dla34',
    'xception41',
    'convnext_atto',
    'convnextv2_atto',
    'vit_small_patch16_224',
    'deit_small_patch16_224',
    'swinv2_tiny_window8_256',
    'mixer_s32_224',
    'resmlp_12_224',
    'coatnet_0_rw_224',
    'gmlp_s16_224',
    'cspresnet50',
    'cspdarknet53',
    'ese_vovnet39b',
    'hgnet_tiny',
    'repghostnet_100',
    'tresnet_m',
    'legacy_senet154',
    'legacy_xception',
]
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
    'plan_s': 'plan (s)',
    'switch_ms': 'switch (ms)',
    'remarks': 'remarks',
}


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', metavar='NAME', help='networks to examine')
    parser.add_argument('--max-gb', type=float, default=8.0, help='memory that one network may take (default: 8)')
    parser.add_argument('--limit-s', type=float, default=300.0, help='time that one network may take (default: 300)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--output', type=Path, default=ROOT / 'benchmarks' / 'results')
    return parser.parse_args()


def default_models() -> list[str]:
    """The variant with the fewest parameters of every architecture file, then the common ones."""
    smallest = []
    for file in sorted(timm.models.list_modules()):
        sizes = {name: parameter_count(name) for name in timm.list_models(module=file) if not name.startswith('test_')}
        if sizes:
            smallest.append(min(sizes, key=sizes.get))
    return smallest + [name for name in COMMON if name not in smallest]


def parameter_count(name: str) -> int:
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def run_apart(name: str, args) -> dict:
    """Examine one network in a child process, within its limits of time and memory."""
    row = {'model': name, 'file': timm.models.model_entrypoint(name).__module__.rpartition('.')[2]}
    context = multiprocessing.get_context('fork')
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=examine_in_child, args=(name, args, sender))
    child.start()
    sender.close()
    if receiver.poll(args.limit_s):
        try:
            row |= receiver.recv()
        except EOFError:
            row |= {'verdict': 'not run', 'remarks': f'the process died, perhaps for want of {args.max_gb:g} GB'}
    else:
        row |= {'verdict': 'not run', 'remarks': f'took more than {args.limit_s:g} s'}
    child.kill()
    child.join()
    return row


def examine_in_child(name: str, args, sender):
    warnings.simplefilter('ignore')
    limit = int(args.max_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(1)
    try:
        sender.send(examine(name, args))
    except MemoryError:
        sender.send({'verdict': 'not run', 'remarks': f'needs more than {args.max_gb:g} GB'})
    except Exception as error:
        sender.send({'verdict': 'fails', 'remarks': f'{type(error).__name__}: {str(error)[:300]}'})


def examine(name: str, args) -> dict:
    row: dict = {'params': parameter_count(name)}
    torch.manual_seed(args.seed)
    meta = row['params'] * 8 * COPIES > args.max_gb * 2**30
    with torch.device('meta' if meta else 'cpu'):
        model = timm.create_model(name).train()
    start = time.perf_counter()
    size, plan = plan_at_smallest_size(model)
    row |= {'size': size, 'plan_s': f'{time.perf_counter() - start:.2f}'}
    row['layers'] = f'{len(plan.layers)}/{len(plan.layers) + len(plan.full)}'
    for width in WIDTHS:
        row[f'kept_{width}'] = '/'.join(f'{share:.3f}' for share in plan.kept(width))
    remarks = [f'at full width: {plan.reasons()}'] if plan.full else []
    if meta:
        remarks.append(f'its check needs more than {args.max_gb:g} GB')
        return row | {'verdict': 'planned only', 'remarks': '; '.join(remarks)}
    row['switch_ms'] = f'{switch_time(Twin(model, plan)) * 1e3:.2f}'
    row['full_width'] = 'yes' if full_width_is_identical(model, plan, size) else 'no'
    verdict, error, remark = compare_with_references(model, plan, size)
    remarks += [remark] if remark else []
    remarks += evaluation_remarks(model, plan, size)
    return row | {'verdict': verdict, 'error': f'{error:.0e}', 'remarks': '; '.join(remarks)}


def plan_at_smallest_size(model) -> tuple[int, SlimmablePlan]:
    native = model.pretrained_cfg['input_size'][-1]
    sizes = [native] if model.pretrained_cfg.get('fixed_input_size') else [s for s in SIZES if s < native] + [native]
    for size in sizes:
        try:
            return size, SlimmablePlan(model, (3, size, size))
        except ValueError:
            if size == native:
                raise
    raise AssertionError('unreachable: the native size is last')


def switch_time(twin: Twin) -> float:
    """Median seconds of a switch to a width that was not set before."""
    times = []
    for step in range(11):
        start = time.perf_counter()
        twin.set(0.8 + step / 111)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def seeded(module, x: torch.Tensor) -> torch.Tensor:
    """First output tensor under a fixed seed, for what stays random."""
    torch.manual_seed(1)
    output = module(x)
    return output if isinstance(output, torch.Tensor) else torch.utils._pytree.tree_leaves(output)[0]


def full_width_is_identical(model, plan: SlimmablePlan, size: int) -> bool:
    twin, x = Twin(model, plan), torch.randn(2, 3, size, size)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        identical = torch.equal(seeded(twin, x), seeded(model, x))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return identical


def compare_with_references(model, plan: SlimmablePlan, size: int) -> tuple[str, float, str]:
    """Sub-network against full-size networks with dropped channels zeroed: (verdict, largest error, remark)."""
    make_generic(model.double())
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    twin, worst, strictest, remarks = Twin(model, plan), 0.0, True, []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for width in WIDTHS:
        model.zero_grad()
        with twin.at(width):
            output = seeded(twin, x)
        output.square().sum().backward()
        twin.clear()
        missing = [n for n, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
        if missing:
            remarks.append(f'{len(missing)} parameters without gradient at {width} ({missing[0]})')
        error, only_outputs = smallest_error(model, plan, width, x, output.detach())
        worst, strictest = max(worst, error), strictest and only_outputs
    if any(not torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers()):
        remarks.append('BUFFERS CHANGED')
    if worst > EXACT:
        return 'runs, differs', worst, '; '.join(remarks)
    return 'exact' if strictest else 'exact (all dims zeroed)', worst, '; '.join(remarks)


def smallest_error(model, plan, width: float, x: torch.Tensor, output: torch.Tensor) -> tuple[float, bool]:
    """Relative error of output and gradients against the strict reference, else the one with all dimensions zeroed."""
    counts = plan.counts(width)
    errors = {}
    for only_outputs in (True, False):
        reference = zeroed_copy(model, plan, counts, only_outputs)
        reference.zero_grad()
        with statistics_of_kept_channels():
            expected = seeded(reference, x)
            expected.square().sum().backward()
        gradient_error, others_are_zero = gradient_errors(model, reference, plan, counts)
        error = max(relative_error(output, expected), gradient_error)
        errors[only_outputs] = error if others_are_zero and torch.isfinite(expected).all() else float('inf')
        if errors[only_outputs] <= EXACT:
            return errors[only_outputs], only_outputs
    return min(errors.values()), False


def evaluation_remarks(model, plan: SlimmablePlan, size: int) -> list[str]:
    """Whether the extracted network evaluates, which some networks do by other code than they train by."""
    twin, x = Twin(model, plan), torch.randn(2, 3, size, size, dtype=torch.float64)
    try:
        small = twin.extract(min(WIDTHS))
        calibrate(small, [x])
        with torch.no_grad():
            small(x)
    except Exception as error:
        return [f'does not evaluate: {type(error).__name__}: {str(error)[:120]}']
    return []


def write(rows: list[dict], args):
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / 'zoo.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    counts = collections.Counter(row['verdict'] for row in rows)
    lines = [
        '# Which networks of timm can be slimmed',
        '',
        f'{len(rows)} networks: ' + ', '.join(f'{count} {verdict}' for verdict, count in counts.most_common()) + '.',
        '',
        f'Command: `python benchmarks/zoo.py`, seed {args.seed}, at most {args.max_gb:g} GB and {args.limit_s:g} s a '
        f'network. {environment()}',
        '',
        (ROOT / 'benchmarks' / 'zoo_legend.md').read_text().strip(),
        '',
        '| ' + ' | '.join(COLUMNS.values()) + ' |',
        '|' + '---|' * len(COLUMNS),
        *('| ' + ' | '.join(str(value).replace('|', '/') for value in row.values()) + ' |' for row in rows),
    ]
    (args.output / 'zoo.md').write_text('\n'.join(lines) + '\n')


def environment() -> str:
    described = [line for line in Path('/proc/cpuinfo').read_text().splitlines() if line.startswith('model name')]
    cpu = described[0].partition(':')[2].strip() if described else platform.machine()
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return (
        f'One thread of {cpu}; Python {platform.python_version()}, PyTorch {torch.__version__}, '
        f'timm {timm.__version__}; commit {commit.stdout.strip() or "none"}; {time.strftime("%Y-%m-%d")}.'
    )


if __name__ == '__main__':
    main()
