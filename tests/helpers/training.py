"""What the tests of training share: options, tasks and engines built by hand, comparisons, reading a run's files."""

import argparse
import csv
import logging
import signal
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import timm
import torch
from torch import nn

import train as train_script
from regaug.methods import gradaug as gradaug_method
from regaug.methods.gradaug import GradAug
from regaug.methods.scoring import Selection
from regaug.options import parse_train
from regaug.slimmable import SlimmablePlan, Twin
from regaug.training.engine import Engine
from regaug.training.interrupt import StopRequest
from regaug.training.model import build_model
from regaug.training.run import Run
from regaug.training.task import RegAugTask
from regaug.training.updates import Updater
from tests.helpers.slimmable_oracle import make_generic

CLASSES, SIDE, TRAIN_PER_CLASS, VAL_PER_CLASS = 4, 40, 16, 4
CPU = torch.device('cpu')


def train_argv(folder, output, *options):
    """Command line of train.py for a quick run on `folder`; `options` come last and win."""
    quick = {
        '--data-dir': folder,
        '--train-split': 'train',
        '--val-split': 'val',
        '--output': output,
        '--num-classes': CLASSES,
        '--model': 'test_resnet',
        '--batch-size': 16,
        '--epochs': 2,
        '--warmup-epochs': 0,
        '--lr': 0.05,
        '--device': 'cpu',
        '--workers': 0,
    }
    argv = [part for pair in quick.items() for part in pair]
    return [str(part) for part in (*argv, '--input-size', 3, 32, 32, *options)]


def run_train(folder, output, *options, experiment='run', status=0, stop_after=None):
    """Run train.py in this process, with the quick defaults of `train_argv` that `options` override.

    Args:
        status: with which exit status the run must end.
        stop_after: epochs after which it ends, as if killed; learning rates are those of the whole run.

    Returns:
        The experiment's folder.
    """
    build_schedule = Run.build_schedule

    def cut_short(run):
        build_schedule(run)
        run.num_epochs = min(run.num_epochs, stop_after)

    with pytest.MonkeyPatch.context() as patch:
        if stop_after is not None:
            patch.setattr(Run, 'build_schedule', cut_short)
        run_argv(train_argv(folder, output, '--experiment', experiment, *options), status)
    return output / experiment


def run_argv(argv, status=0):
    """Run train.py in this process with a command line; it must end with this exit status."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'unclosed file', ResourceWarning)  # timm's folder reader closes none
        try:
            assert train_script.main(argv) == status
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def train_args(*options, rank=0, world_size=1):
    """Training options as the engine gets them, on the CPU."""
    args = parse_train(['--dataset', 'regaug/digits', '--device', 'cpu', *map(str, options)])
    group = {'distributed': world_size > 1, 'world_size': world_size, 'rank': rank, 'local_rank': rank}
    return argparse.Namespace(**{**vars(args), **group})


def make_model(name='test_resnet', dtype=torch.float64, **kwargs):
    """A model whose layers all matter: nothing that starts as zero is left at zero."""
    return make_generic(timm.create_model(name, num_classes=CLASSES, **kwargs)).to(dtype).train()


def make_droppy_model():
    """A model with dropout and drop path, both at work."""
    model = timm.create_model('test_efficientnet', num_classes=CLASSES, drop_rate=0.3, drop_path_rate=0.3).train()
    assert any(getattr(part, 'drop_prob', 0) for part in model.modules())
    return model


def make_batches(count, size=4, side=32, dtype=torch.float64, seed=0):
    """`count` random batches: images [size, 3, side, side], labels [size]."""
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, side, side, generator=generator, dtype=dtype),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def make_gradaug(**kwargs):
    return GradAug(**{'num_subnetworks': 3, 'min_width': 0.5, 'seed': 42, **kwargs})


def make_task(
    model,
    criterion=None,
    *,
    task_class=RegAugTask,
    gradaug=None,
    selector=None,
    methods=(),
    side=32,
    width_divisor=8,
    rank=0,
    autocast=None,
    **kwargs,
):
    """A task in train mode with methods in it, as a run puts them in.

    Args:
        gradaug: `GradAug`; it gets slices of `model` planned for images of `side` if nothing else is given to it.
        selector: see `set_selector`.
        methods: further `regaug.methods.Method`s.
        **kwargs: of timm's task.
    """
    task = task_class(model, criterion or nn.CrossEntropyLoss(), verbose=False, **kwargs)
    task.rank = rank
    if autocast is not None:
        task.autocast = autocast
    if gradaug is not None and gradaug.make_subnet is None:
        plan = SlimmablePlan(model, (3, side, side))
        gradaug.make_subnet = partial(Twin, plan=plan, width_divisor=width_divisor)
    task.use([*([] if gradaug is None else [gradaug]), *methods])
    if selector is not None:
        set_selector(task, selector)
    return task.train()


def set_selector(task, selector):
    """Let a function (input, target, (num_updates, rank, micro_batch)) -> (input, target, metrics) choose the input.

    It takes the place of one that was there before; None takes that one out.
    """
    others = [method for method in task.active if not isinstance(method, Selection)]
    selections = []
    if selector is not None:
        selections = [Selection('selector', lambda phase, task: selector, None, option='', scores=False)]
        selections[0].attach(task)
        selections[0].start_phase(None)
    task.methods = task.active = (*others, *selections)


def selector_of(task):
    """What chooses the input of a task now, or None."""
    return next((method.selector for method in task.active if isinstance(method, Selection)), None)


class SilentReport:
    """Stands where `report.Report` stands and keeps the records."""

    wants_grad_norm = wants_pictures = False

    def __init__(self):
        self.records = []

    def on_update(self, record):
        self.records.append(record)

    def on_batch(self, input, target, batch_idx, more=()):
        pass

    def on_eval_batch(self, *args, **kwargs):
        pass


class PlainPrecision:
    """float32 or whatever the batches are, without autocast."""

    input_dtype = torch.float32
    autocast = staticmethod(nullcontext)


def make_engine(task, optimizer, *options, loss_scaler=None, stop=None, rank=0, world_size=1, **kwargs):
    """An `Engine` for batches that are ready as they are."""
    args = train_args(*options, rank=rank, world_size=world_size)
    updater = Updater(optimizer, task, loss_scaler=loss_scaler, clip_grad=args.clip_grad, clip_mode=args.clip_mode)
    common = {'device': CPU, 'precision': PlainPrecision(), 'report': SilentReport()}
    stop = stop or StopRequest(device=CPU, distributed=args.distributed)
    return Engine(task, updater, args, stop=stop, **common, **kwargs)


def gradients(model):
    """Copies of a model's gradients by parameter name, zeros where there is none."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
    }


def gradients_at_updates(optimizer, model):
    """A list that receives the gradients of every update, as the optimiser gets them."""
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(gradients(model)))
    return seen


def assert_equal(value, reference, where=''):
    """Nested dicts and lists of tensors and plain values are the same, bit for bit."""
    if torch.is_tensor(reference):
        assert torch.equal(value, reference), f'{where}: largest difference {(value - reference).abs().max()}'
    elif isinstance(reference, dict):
        assert list(value) == list(reference), where
        for key in reference:
            assert_equal(value[key], reference[key], f'{where}[{key}]')
    elif isinstance(reference, (list, tuple)):
        assert len(value) == len(reference), where
        for index, (one, other) in enumerate(zip(value, reference, strict=True)):
            assert_equal(one, other, f'{where}[{index}]')
    else:
        assert value == reference, where


def assert_close(value, reference, tolerance=1e-10):
    """Tensors by name agree within `tolerance` of the largest element of all; not all of them are zero."""
    assert list(value) == list(reference)
    largest = max(float(tensor.abs().max()) for tensor in reference.values())
    assert largest > 0
    for name in reference:
        error = float((value[name] - reference[name]).abs().max())
        assert error <= tolerance * largest, f'{name}: {error / largest:.1e} of the largest gradient'


def sum_of(*tables):
    """Tensors by name, added up over several tables."""
    return {name: sum(table[name] for table in tables) for name in tables[0]}


def read_checkpoint(path):
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location='cpu', weights_only=True)


def read_summary(folder):
    with (folder / 'summary.csv').open(newline='') as file:
        return list(csv.DictReader(file))


def assert_same_training(folder, reference, from_epoch=0):
    """Two runs end alike, and their summaries agree from an epoch on."""
    saved, expected = (read_checkpoint(run / 'last.pth.tar') for run in (folder, reference))
    for key in ('epoch', 'state_dict', 'state_dict_ema', 'optimizer', 'metric'):
        assert_equal(saved.get(key), expected.get(key), key)
    rows = [row for row in read_summary(reference) if int(row['epoch']) >= from_epoch]
    assert rows
    assert [row for row in read_summary(folder) if int(row['epoch']) >= from_epoch] == rows


def follow_log(caplog):
    """The log of runs in this process from now on."""
    caplog.set_level('INFO', logger='train')
    caplog.clear()
    return caplog


@contextmanager
def messages_of(name):
    """A list of the messages that a logger gets while the context lasts, from INFO on."""
    messages, logger = [], logging.getLogger(name)
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def created_gradaug(*options, input_size=(3, 32, 32)):
    """Model and `GradAug` as train.py creates them for these options."""
    args = train_args('--num-classes', CLASSES, '--gradaug', 2, *options)
    torch.manual_seed(4)
    model = build_model(args)
    return model, gradaug_method.create(args, model, {'input_size': input_size})
