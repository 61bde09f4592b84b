"""What is measured on one network: see zoo.py."""

import time
import warnings

import timm
import torch
from torch.utils._pytree import tree_leaves

from benchmarks.zoo_oracle import (
    gradient_errors,
    make_generic,
    relative_error,
    statistics_of_kept_channels,
    zeroed_copy,
)
from regaug.slimmable import SlimmablePlan, Twin, calibrate, extract

WIDTHS = (0.9, 0.5)
EXACT = 1e-6  # largest relative error of what counts as equal; some layers compute in float32 whatever the input
SIZES = (64, 96, 128, 160, 192, 224, 256, 299)  # the smallest that a network runs at is used
COPIES = 5  # float64 tensors per parameter: model, reference, their gradients, and one to compute with


def parameter_count(name: str) -> int:
    with torch.device('meta'), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def examine(name: str, seed: int, max_gb: float) -> dict:
    """Measure one row of the report."""
    row: dict = {'params': parameter_count(name)}
    torch.manual_seed(seed)
    meta = row['params'] * 8 * COPIES > max_gb * 2**30
    with torch.device('meta' if meta else 'cpu'):
        model = timm.create_model(name).train()
    start = time.process_time()
    size, plan = plan_at_smallest_size(model)
    row |= {'size': size, 'plan_s': f'{time.process_time() - start:.2f}'}
    row['layers'] = f'{len(plan.layers)}/{len(plan.layers) + len(plan.full)}'
    for width in WIDTHS:
        row[f'kept_{width}'] = '/'.join(f'{share:.3f}' for share in plan.kept(width))
    remarks = [f'at full width: {plan.reasons()}'] if plan.full else []
    if meta:
        remarks.append(f'its check needs more than {max_gb:g} GB')
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
    """Measure the mean seconds of processor time of a switch to a width that was not set before."""
    widths = torch.linspace(0.5, 0.99, 50).tolist()
    start = time.process_time()
    for width in widths:
        twin.set(width)
    return (time.process_time() - start) / len(widths)


def seeded(module, x: torch.Tensor) -> torch.Tensor:
    """Run a module under a fixed seed, for what stays random, and return its first output tensor."""
    torch.manual_seed(1)
    output = module(x)
    return output if isinstance(output, torch.Tensor) else tree_leaves(output)[0]


def full_width_is_identical(model, plan: SlimmablePlan, size: int) -> bool:
    twin, x = Twin(model, plan), torch.randn(2, 3, size, size)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with torch.no_grad():
        identical = torch.equal(seeded(twin, x), seeded(model, x))
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return identical


def compare_with_references(model, plan: SlimmablePlan, size: int) -> tuple[str, float, str]:
    """Compare with full-size networks with dropped channels zeroed: (verdict, largest error, remark)."""
    make_generic(model.double())
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    twin, worst, strictest, remarks = Twin(model, plan), 0.0, True, []
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for width in WIDTHS:
        model.zero_grad()
        twin.set(width)
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
    """Return the relative error against the strict reference, else against that with all dimensions zeroed."""
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
    """Try whether the extracted network evaluates, which some networks do by other code than they train by."""
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    try:
        small = extract(model, plan, min(WIDTHS))
        calibrate(small, [x])
        with torch.no_grad():
            small(x)
    except Exception as error:
        return [f'does not evaluate: {type(error).__name__}: {str(error)[:120]}']
    return []
