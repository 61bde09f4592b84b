"""`--dry-run`: build everything, run two updates and two evaluation batches, say what a run would be, write nothing."""

import logging
import resource
import statistics
import sys
from collections import Counter
from datetime import timedelta
from itertools import islice
from typing import Any

from regaug.errors import OptionError
from regaug.training.engine import updates_per_epoch
from regaug.training.interrupt import Diverged
from regaug.training.phases import phase_at
from regaug.training.report import count_evaluations, peak_memory

_logger = logging.getLogger('train')


class FirstBatches:
    """The first batches of a loader, as a loader."""

    def __init__(self, loader: Any, num_batches: int):
        self.loader = loader
        self.num_batches = min(num_batches, len(loader))
        self.dataset = loader.dataset
        self.sampler = loader.sampler
        self.batch_sampler = loader.batch_sampler

    def __len__(self):
        return self.num_batches

    def __iter__(self):
        return islice(iter(self.loader), self.num_batches)


class TimedUpdates:
    """Notes the seconds of each update that a report is told of.

    Args:
        report: `report.Report`.
    """

    def __init__(self, report: Any):
        self.seconds = []
        self._on_update, report.on_update = report.on_update, self.on_update

    def on_update(self, record: Any):
        self.seconds.append(record.update_time.val)
        self._on_update(record)


def dry_run(run: Any):
    """Try a built `run.Run` and print model, data, schedule, phases, memory, time per update and the estimated time.

    Two updates run, of which the second one counts; where a method rests in some updates, a whole turn after the
    first one.

    Returns:
        Exit status 0.

    Raises:
        OptionError: the updates diverge.
    """
    args = run.args
    epoch = typical_epoch(run)
    run.advance_schedule(epoch)
    run.start_phase(phase_at(epoch, args))
    loader = run.train_data.loader
    args.log_interval = 1  # each update tells its time
    turn = max((method.every for method in run.task.active), default=1)
    batches = FirstBatches(loader, (1 + turn) * args.grad_accum_steps)
    timed = TimedUpdates(run.report)
    try:
        run.engine.train_one_epoch(epoch, batches, run.train_data.mixup_fn)
    except Diverged as diverged:
        raise OptionError(f'--dry-run, epoch {epoch}: {diverged}') from diverged
    record = run.report.last_record
    seconds = statistics.fmean(timed.seconds[1:] or timed.seconds)
    lines = [f'loss of update {record.update_idx + 1} in epoch {epoch}: {record.loss.val:.4g}, at lr {record.lr:.4g}']
    eval_seconds = 0.0
    if run.eval_loader is not None:
        run.engine.evaluate(FirstBatches(run.eval_loader, 2), run.eval_model)  # the first one starts and compiles
        eval_seconds = run.report.eval_batch_seconds * len(run.eval_loader)
    updates = updates_per_epoch(loader, args.grad_accum_steps)
    epochs = run.num_epochs - run.start_epoch
    evaluations = count_evaluations(args, run.start_epoch, run.num_epochs)
    total = epochs * updates * seconds + evaluations * eval_seconds
    lines += [
        f'{len(run.train_set)} training images, {len(run.eval_set) if run.eval_set is not None else 0} for evaluation',
        f'input {tuple(run.data_config["input_size"])}, batch {args.batch_size} x {args.world_size} ranks x '
        f'{args.grad_accum_steps} accumulated, {updates} updates per epoch',
        f'epochs {run.start_epoch} to {run.num_epochs - 1}, {args.opt} lr {args.lr:g}, {args.sched} schedule',
        *phase_lines(run),
        f'{seconds:.3f} s per update, {eval_seconds:.1f} s per evaluation{peak_memory() or peak_resident()}',
        f'estimated time {timedelta(seconds=round(total))}',
    ]
    if run.primary:
        for line in lines:
            _logger.info(f'Dry run: {line}')
    return 0


def typical_epoch(run: Any):
    """The first epoch of the phase that makes most of the run: a warm-up costs less than what follows."""
    phases = [phase_at(epoch, run.args) for epoch in range(run.start_epoch, run.num_epochs)]
    kinds = [(phase.name, phase.methods) for phase in phases]
    return run.start_epoch + kinds.index(Counter(kinds).most_common(1)[0][0]) if kinds else run.start_epoch


def peak_resident():
    """Peak memory of this process on the CPU, libraries included."""
    unit = 1 if sys.platform == 'darwin' else 1024
    return f'  Mem: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB'


def phase_lines(run: Any):
    """One line for each phase: its epochs and what is off."""
    lines, start, previous = [], run.start_epoch, None
    for epoch in range(run.start_epoch, run.num_epochs + 1):
        phase = phase_at(epoch, run.args) if epoch < run.num_epochs else None
        if previous is not None and (phase is None or phase.name != previous.name):
            off = f', without {", ".join(previous.switched_off)}' if previous.switched_off else ''
            lines.append(f'phase {previous.name}: epochs {start} to {epoch - 1}{off}')
            start = epoch
        previous = phase
    return lines
