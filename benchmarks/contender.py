"""What is compared: training loops that make one update at a time, in turns, each on the same random batches."""

import shlex
import threading
import time
from contextlib import nullcontext
from functools import lru_cache
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from regaug.data.loaders import mixing_active
from regaug.errors import OptionError
from regaug.options import parse_train
from regaug.training.phases import phase_at
from regaug.training.run import Run

_BATCHES = 4  # different ones, used over and over


class Turns:
    """A loader that hands out the batches of one update when it is told to, and times what is done with them.

    The loop over it runs in a thread of its own and waits between two updates. So any loop, the real engine included,
    can be interrupted after every update without knowing it. What a loop does before its first batch and after its
    last one is not timed.

    Args:
        batches: list of (input, target), used over and over.
        num_turns: updates in all.
        batches_per_turn: batches of one update (accumulation).
        device: device that has to be waited for at the end of an update.
    """

    def __init__(self, batches, *, num_turns, batches_per_turn, device):
        self.batches = batches
        self.num_turns = self._turns_left = num_turns
        self.batches_per_turn = batches_per_turn
        self.device = device
        self.times = None
        self._error = None
        self._begin, self._end = threading.Semaphore(0), threading.Semaphore(0)

    def __len__(self):
        return self.num_turns * self.batches_per_turn

    def __iter__(self):
        supply = cycle(self.batches)
        for _ in range(self.num_turns):
            self._begin.acquire()
            start = self._now()
            yield from islice(supply, self.batches_per_turn)
            self.times = tuple(now - then for now, then in zip(self._now(), start, strict=True))
            self._end.release()

    def _now(self):
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        return time.perf_counter(), time.process_time()

    def start(self, loop):
        """Starts `loop(self)` in a thread; it waits for its first turn."""

        def run():
            try:
                loop(self)
            except BaseException as error:
                self._error = error
            self._end.release()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def step(self):
        """Lets the loop make one update; after the last one it ends.

        Returns:
            Seconds it took, and processor seconds of the whole process meanwhile.

        Raises:
            RuntimeError: The loop failed or ended early; its error is the cause.
        """
        self.times = None
        self._begin.release()
        self._end.acquire()
        if self.times is None:
            raise RuntimeError('The training loop stopped before its last update.') from self._error
        self._turns_left -= 1
        if not self._turns_left:
            self._thread.join()
        return self.times


class TrainData:
    """Stands where a run has its `TrainLoader`; there is nothing to rebuild in a new phase."""

    mixup_fn = None

    def __init__(self, loader):
        self.loader = loader

    def use(self, phase):
        return False


class BenchmarkRun(Run):
    """A training run on random batches, built step by step as train.py builds its own.

    Args:
        args: options of train.py.
        num_turns: updates in all.
    """

    def __init__(self, args, *, num_turns):
        super().__init__(args)
        self.num_turns = num_turns
        # The last epoch of the schedule: the warm-up phases of the methods are over.
        self.epoch = max(args.epochs - 1, 0)
        self.build()
        self.start_phase(phase_at(self.epoch, args))

    def open_outputs(self):
        pass

    def build_data(self):
        self.train_set = self.eval_set = None
        self.decreasing = False

    def build_loaders(self):
        args, phase = self.args, phase_at(self.epoch, self.args)
        turns = Turns(
            random_batches(
                (args.batch_size, *self.data_config['input_size']),
                args.num_classes,
                self.precision.input_dtype,
                self.device,
                phase.loader_mixes and mixing_active(phase.options),
            ),
            num_turns=self.num_turns,
            batches_per_turn=args.grad_accum_steps,
            device=self.device,
        )
        self.train_data, self.eval_loader = TrainData(turns), None


def engine_loop(run, loader):
    """The real training loop."""
    run.engine.train_one_epoch(run.epoch, loader, run.train_data.mixup_fn)


def bare_loop(run, loader):
    """The least a training loop can do; one update per batch."""
    scaler = torch.amp.GradScaler(run.device.type, enabled=run.precision.loss_scaler is not None)
    model = run.task.get_trainable_module().train()
    for input, target in loader:
        with run.precision.autocast():
            loss = run.task.criterion(model(laid_out(input, run.args)), target)
        scaler.scale(loss).backward()
        scaler.step(run.optimizer)
        scaler.update()
        run.optimizer.zero_grad()
        loss.item()


def forward_loop(run, loader):
    """The forward pass alone, in training mode and without gradient: the unit of the methods that score candidates."""
    model = run.task.get_trainable_module().train()
    with torch.no_grad():
        for input, target in loader:
            with run.precision.autocast():
                loss = run.task.criterion(model(laid_out(input, run.args)), target)
            loss.item()


LOOPS = {'bare': bare_loop, 'forward': forward_loop}


def laid_out(input, args):
    return input.contiguous(memory_format=torch.channels_last) if args.channels_last else input


class Contender:
    """A configuration of train.py and the loop that runs it.

    Args:
        options: options of train.py; the first word may be `bare` or `forward` for these loops instead of the engine.
        common: options that stand before them.
        num_turns: updates in all.
        count_flops: count operations, in the place of compilation; slow.

    Attributes:
        flops: operations of matrix products and convolutions so far, with `count_flops`.

    Raises:
        OptionError: An option that train.py would refuse.
    """

    def __init__(self, options, *, common, num_turns, count_flops=False):
        words = shlex.split(options)
        self.label = options or 'plain'
        self.loop = LOOPS.get(words[0], engine_loop) if words else engine_loop
        if self.loop is not engine_loop:
            words = words[1:]
        # The embedded data set needs no folder; nothing is read from it.
        args = parse_train(['--dataset', 'regaug/digits', *shlex.split(common), *words])
        self._counter = FlopCounterMode(display=False) if count_flops else nullcontext()
        if count_flops:
            args.torchcompile, args.gradaug_compile = None, 0
        self.run = BenchmarkRun(args, num_turns=num_turns)
        self.turns = self.run.train_data.loader
        self.turns.start(self._run_loop)

    def _run_loop(self, turns):
        with self._counter:  # holds in the thread that enters it
            self.loop(self.run, turns)

    @property
    def flops(self):
        return self._counter.get_total_flops()

    @property
    def input(self):
        """The first batch's images."""
        return self.turns.batches[0][0]

    def step(self):
        """Makes one update; see `Turns.step`."""
        return self.turns.step()


@lru_cache(maxsize=4)
def random_batches(shape, num_classes, dtype, device, soft):
    """Batches of uniform noise in [0, 1] with random labels, the same for every configuration of the same shape.

    Args:
        shape: [B, C, H, W].
        num_classes: classes K.
        dtype: of the images.
        device: where they lie.
        soft: labels as [B, K], as after mixing, in place of [B].
    """
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(_BATCHES):
        input = torch.rand(shape, generator=generator)
        target = torch.randint(num_classes, shape[:1], generator=generator)
        if soft:
            target = F.one_hot(target, num_classes).float()
        batches.append((input.to(device, dtype), target.to(device)))
    return batches


def check_comparable(contenders):
    """Makes sure that all configurations are fed with images of one shape.

    Raises:
        OptionError: They are not.
    """
    shapes = {tuple(contender.input.shape) for contender in contenders}
    if len(shapes) > 1:
        raise OptionError(f'The configurations differ in their batches: {", ".join(map(str, sorted(shapes)))}.')
