"""Check the labels by running a narrowed model on meta tensors, and repair them where the model disagrees.

Every class gets a random count of its own: with one common width, two classes of equal size keep equally many channels,
and a wrong plan passes at one width and fails at another.
"""

import random
import traceback
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from regaug.slimmable.labels import Axis, Counts, freeze, unify
from regaug.slimmable.layout import Patch
from regaug.slimmable.trace import LIBRARY_FOLDERS, UNRECORDED, Record, Site, Trace, run_shapes

SEEDS = (1, 2, 3)
MAX_ATTEMPTS = 600
MAX_TIES = 200
TIE_DISTANCE = 200  # how many operators back the origin of a wrong size is searched
VIEW_DISTANCE = 4  # a reshape may copy first, so its view can be recorded some operators later


class Failure(Exception):
    """The narrowed model departed from the trace.

    Attributes:
        index: the record at which, or before which, it did; -1 until known.
        wanted: the shape that the model asked for, where it asked for an impossible one.
        site: where the model's own code failed; `None` if the operator at `index` did.
    """

    def __init__(self, index: int, message: str, wanted: tuple[int, ...] = ()):
        super().__init__(message)
        self.index = index
        self.wanted = wanted
        self.site: Site | None = None


class Replay(TorchDispatchMode):
    """Compares the operators that run under it, and the shapes of their outputs, with the records."""

    def __init__(self, records: list[Record], counts: Counts):
        super().__init__()
        self.records, self.counts, self.index = records, counts, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        if func._schema.name in UNRECORDED:
            return func(*args, **(kwargs or {}))
        if self.index >= len(self.records) or self.records[self.index].operator != str(func):
            raise Failure(min(self.index, len(self.records) - 1), f'{func} is called out of order')
        try:
            result = run_shapes(func, args, kwargs or {})
        except Exception as error:
            wanted = tuple(args[1]) if 'view' in str(func) else ()
            raise Failure(self.index, str(error), wanted) from error
        tensors = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor, labelled in zip(tensors, self.records[self.index].outputs, strict=True):
            planned = tuple(self.counts.size(axis, size) for size, axis in labelled)
            if planned != tuple(tensor.shape):
                raise Failure(self.index, f'{func} gives {tuple(tensor.shape)}, planned is {planned}')
        self.index += 1
        return result


class ReshapeErrors(TorchFunctionMode):
    """Reports the shape of a reshape that fails, which happens before the operator is dispatched."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: Any = None):
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            if func not in (torch.Tensor.view, torch.Tensor.reshape, torch.reshape):
                raise
            wanted = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            raise Failure(-1, str(error), tuple(wanted)) from error


def raised_at(error: BaseException) -> Site | None:
    """Find the innermost line outside PyTorch through which an error passed."""
    sites = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next((site for site in reversed(sites) if not site[0].startswith(LIBRARY_FOLDERS)), None)


def random_counts(seed: int) -> Counts:
    """Draw the kept units of every class apart, from about a third of them to all but one."""
    generator = random.Random(seed)
    return Counts(lambda channels: generator.randint(max(1, channels.units // 3), max(1, channels.units - 1)))


def replay(trace: Trace, pristine: nn.Module, x: torch.Tensor, counts: Counts) -> Failure | None:
    """Run the model narrowed to these counts. Returns how it departed from the trace, if it did."""
    model = trace.labels.layout.narrowed_copy(pristine, counts)
    recorder = Replay(trace.records, counts)
    try:
        with torch.no_grad(), ReshapeErrors(), recorder:
            model(x)
        if recorder.index == len(trace.records):
            return None
        return Failure(recorder.index, 'the model ends early')
    except Failure as failure:
        if failure.index < 0:
            failure.index = min(recorder.index, len(trace.records) - 1)
            failure.site = raised_at(failure)
        return failure
    except Exception as error:
        failure = Failure(min(recorder.index, len(trace.records) - 1), f'{type(error).__name__}: {error}')
        failure.site = raised_at(error)
        return failure


def verify(trace: Trace, pristine: nn.Module, x: torch.Tensor) -> list[str]:
    """Repair the labels of a trace until the narrowed model agrees with them at random counts.

    Args:
        pristine: a meta copy of the model that has never run (some modules cache what depends on the width).

    Returns:
        What was repaired, one line each.
    """
    repairer = Repairer(trace, pristine)
    passed = 0
    for _ in range(MAX_ATTEMPTS):
        counts = random_counts(SEEDS[passed])
        failure = replay(trace, pristine, x, counts)
        if failure is None:
            passed += 1
            if passed == len(SEEDS):
                return repairer.log
        else:
            passed = 0
            repairer.repair(failure, counts)
    raise RuntimeError(f'no consistent plan after {MAX_ATTEMPTS} attempts')


class Repairer:
    """Removes one disagreement at a time: let an attribute follow the width, else tie two classes, else freeze.

    In this order because each step slims less than the one before: a size that the model holds as an attribute can
    simply be set for every width; a size that it takes from elsewhere can follow that class; what is left is a number
    in the model's code, and its channels have to stay.

    Attributes:
        log: what was repaired, one line each.
    """

    def __init__(self, trace: Trace, pristine: nn.Module):
        self.records, self.layout = trace.records, trace.labels.layout
        self.modules = dict(pristine.named_modules())
        self.log: list[str] = []
        self._patched: set[tuple[str, str]] = set()
        self._tried: set[tuple[str, Site | None]] = set()
        self._ties = 0

    def repair(self, failure: Failure, counts: Counts):
        """Remove the cause of one failure, which replaying at these counts gave."""
        failing = self.records[failure.index]
        records = self._records_of(failure)
        key = (records[0].operator, records[0].site)
        done = ''
        if key not in self._tried:
            self._tried.add(key)
            attributes = sorted({name for record in records for name in self._patch(record, counts)})
            done = f'{", ".join(attributes)} follows the width' if attributes else ''
        if not done and failure.wanted and self._ties < MAX_TIES and self._tie(failure, counts):
            self._ties += 1
            done = 'two sizes follow one another'
        if not done:
            done = f'{self._freeze(records, failing)} sizes stay full'
        self.log.append(f'{records[0]}: {done} [{failure}]')

    def _records_of(self, failure: Failure) -> list[Record]:
        """Find all calls that the failing line makes, in whichever module runs it."""
        failing = self.records[failure.index]
        if failure.site is not None:
            records = [record for record in self.records if record.site == failure.site]
            return records or [failing]
        alike = (failing.operator, failing.site)
        return [record for record in self.records if (record.operator, record.site) == alike]

    def _patch(self, record: Record, counts: Counts) -> list[str]:
        """Let attributes that state a full size at this call follow the width."""
        if record.module is None:
            return []
        dims = [dim for labelled in record.inputs + record.outputs for dim in labelled]
        stated = {size: [axis] for size, axis in dims if counts.size(axis, size) != size}
        found = []
        for attribute, value in vars(self.modules[record.module]).items():
            key = record.module, attribute
            if key in self.layout.patches:
                continue
            patch = None
            if type(value) is int and value in stated:
                patch = Patch(value, stated[value])
            elif isinstance(value, (tuple, list)) and value and all(type(part) is int for part in value):
                patch = self._sequence_patch(value, stated, record)
            if patch is not None:
                self.layout.patches[key] = patch
                self._patched.add(key)
                found.append(attribute)
        return found

    def _sequence_patch(self, value: list | tuple, stated: dict[int, list[Axis]], record: Record) -> Patch | None:
        """Patch the sizes of a split as a whole, of other sequences each size that stands in it once."""
        if 'split_with_sizes' in record.operator:
            for outputs in zip(*record.outputs, strict=True):
                if [size for size, _ in outputs] == list(value):
                    return Patch(value, [axis for _, axis in outputs])
        once = [size for size in stated if list(value).count(size) == 1]
        if not once:
            return None
        return Patch(value, [stated[size][0] if size in once else None for size in value])

    def _tie(self, failure: Failure, counts: Counts) -> bool:
        """Unify the class that a reshape was planned for with the one whose size it asks for."""
        index, wanted = failure.index, failure.wanted
        for record in self.records[index : index + VIEW_DISTANCE]:
            if 'view' not in record.operator or len(record.outputs[0]) != len(wanted):
                continue
            for (size, axis), asked in zip(record.outputs[0], wanted, strict=True):
                if asked in (counts.size(axis, size), size, -1):
                    continue
                for earlier in reversed(self.records[max(index - TIE_DISTANCE, 0) : index]):
                    for other_size, other in (dim for labelled in earlier.outputs for dim in labelled):
                        if other_size == size and counts.size(other, size) == asked:
                            unify(axis, other, 'it is reshaped to a size that is fixed')
                            return True
        return False

    def _freeze(self, records: list[Record], failing: Record) -> int:
        """Keep all channels at these calls; where there are none, those of the failing module, then of its parents."""
        modules = {record.module for record in records}
        for key in [key for key in self._patched if key[0] in modules]:
            del self.layout.patches[key]
            self._patched.remove(key)
        reason = f'its size is hard-coded near {records[0]}'
        axes = [axis for record in records for labelled in record.inputs + record.outputs for _, axis in labelled]
        frozen = sum(freeze(axis, reason) for axis in axes)
        module = failing.module or ''
        while not frozen:
            inside = [name for name in self.layout.axes if name.startswith(module and module + '.')]
            frozen = sum(freeze(axis, reason) for name in inside for axis in self.layout.axes[name])
            if not frozen and not module:
                raise RuntimeError(f'the model does not run as traced: {records[0]}')
            module = module.rpartition('.')[0]
        return frozen
