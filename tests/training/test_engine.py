"""The training loop: what shares an update, what an update is made of, and when it stops."""

import copy
import weakref

import pytest
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import dispatch_clip_grad
from torch import nn

from regaug.device import LossScaler
from regaug.training.averages import FULL
from regaug.training.engine import accumulation
from regaug.training.interrupt import Interrupted, StopRequest
from regaug.training.task import RegAugTask
from tests.helpers.training import (
    CPU,
    assert_close,
    assert_equal,
    gradients,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_gradaug,
    make_model,
    make_task,
    sum_of,
)


@pytest.mark.parametrize(
    ('num_batches', 'steps', 'updates'),
    [
        (4, 1, [[0], [1], [2], [3]]),
        (8, 4, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (7, 4, [[0, 1, 2, 3], [4, 5, 6]]),
        (5, 4, [[0, 1, 2, 3], [4]]),
        (3, 4, [[0, 1, 2]]),
        (6, 5, [[0, 1, 2, 3, 4], [5]]),
        (1, 1, [[0]]),
    ],
)
def test_batches_of_an_epoch_are_shared_out_to_updates(num_batches, steps, updates):
    expected = [(len(update), batch == update[-1]) for update in updates for batch in update]
    assert [accumulation(batch, num_batches, steps) for batch in range(num_batches)] == expected


class PlainLoop:
    """One process, one term: training as a user of timm's task would write it."""

    def __init__(self, task, optimizer, scheduler=None, clip=None):
        self.task, self.optimizer, self.scheduler, self.clip = task, optimizer, scheduler, clip
        self.num_updates = 0

    def epoch(self, batches, groups):
        self.task.train()
        self.optimizer.zero_grad()
        losses, count = 0.0, 0
        for group in groups:
            for index in group:
                loss = self.task(*batches[index])['loss'] / len(group)
                loss.backward()
                losses += loss.item() * len(group) * len(batches[index][1])
                count += len(batches[index][1])
            if self.clip is not None:
                value, mode = self.clip
                dispatch_clip_grad(self.task.get_clip_parameters(exclude_head=mode == 'agc'), value=value, mode=mode)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.num_updates += 1
            self.task.update_ema(step=self.num_updates)
            if self.scheduler is not None:
                self.scheduler.step_update(num_updates=self.num_updates, metric=losses / count)
        return losses / count


@pytest.mark.parametrize(
    ('steps', 'groups', 'clip', 'opt'),
    [
        (1, [[0], [1], [2], [3], [4], [5], [6]], None, 'sgd'),
        (4, [[0, 1, 2, 3], [4, 5, 6]], None, 'sgd'),
        (3, [[0, 1, 2], [3, 4, 5], [6]], (0.1, 'norm'), 'adamw'),
        (2, [[0, 1], [2, 3], [4, 5], [6]], (0.01, 'value'), 'sgd'),
        (4, [[0, 1, 2, 3], [4, 5, 6]], (0.02, 'agc'), 'lamb'),
    ],
)
@pytest.mark.few(1)
def test_epochs_equal_a_bare_loop_over_timms_task_bit_for_bit(steps, groups, clip, opt):
    model = make_model(dtype=torch.float32, drop_rate=0.2)
    sizes = [8, 8, 8, 8, 8, 8, 5]
    batches = [make_batches(1, size, dtype=torch.float32, seed=seed)[0] for seed, size in enumerate(sizes)]

    def prepared(task_class):
        task = task_class(copy.deepcopy(model), nn.CrossEntropyLoss(), verbose=False)
        optimizer = create_optimizer_v2(task.get_trainable_module(), opt=opt, lr=0.05, momentum=0.9, weight_decay=0.01)
        task.setup_ema(decay=0.9, use_warmup=True)
        scheduler, _ = create_scheduler_v2(
            optimizer, sched='cosine', num_epochs=2, step_on_epochs=False, updates_per_epoch=len(groups)
        )
        torch.manual_seed(5)  # of the dropout
        return task, optimizer, scheduler

    task, optimizer, scheduler = prepared(ClassificationTask)
    plain = PlainLoop(task, optimizer, scheduler, clip)
    expected_losses = [plain.epoch(batches, groups) for _ in range(2)]

    ours, our_optimizer, our_scheduler = prepared(RegAugTask)
    options = ['--grad-accum-steps', steps, *(('--clip-grad', clip[0], '--clip-mode', clip[1]) if clip else ())]
    engine = make_engine(ours, our_optimizer, *options, scheduler=our_scheduler)
    losses = [engine.train_one_epoch(epoch, batches)['loss'] for epoch in range(2)]

    assert_equal(ours.state_dict(), task.state_dict())  # model and moving average
    assert_equal(our_optimizer.state_dict(), optimizer.state_dict())
    assert losses == pytest.approx(expected_losses, rel=1e-6)
    assert not torch.equal(next(ours.trainable_module.parameters()), next(model.parameters()))


class ThreeTerms(RegAugTask):
    """A task with three terms of different inputs and weights."""

    def term(self, input, target, weight):
        output = self.trainable_module(input)
        return {'loss': weight * self.criterion(output, target), 'output': output, 'factor': weight}

    def loss_terms(self, input, target):
        return [
            (FULL, lambda: self.term(input, target, 1.0)),
            ('mirrored', lambda: self.term(input.flip(-1), target, 0.5)),
            ('turned', lambda: self.term(input.flip(-2), target, 0.25)),
        ]


def separate_gradients(model, loss):
    """Gradients of `loss(model)`, computed on a copy."""
    model = copy.deepcopy(model)
    model.zero_grad()
    loss(model).backward()
    return gradients(model)


def test_gradients_of_several_terms_are_the_sum_of_the_terms_under_accumulation():
    model, criterion = make_model(), nn.CrossEntropyLoss()
    batches = make_batches(3)
    task = ThreeTerms(model, criterion, verbose=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    start = copy.deepcopy(model)
    make_engine(task, optimizer, '--grad-accum-steps', 2).train_one_epoch(0, batches)

    def expected(group):
        return sum_of(
            *(
                separate_gradients(start, lambda model, x=x, y=y, w=w: w / len(group) * criterion(model(x), y))
                for input, y in group
                for x, w in ((input, 1.0), (input.flip(-1), 0.5), (input.flip(-2), 0.25))
            )
        )

    assert len(seen) == 2
    assert_close(seen[0], expected(batches[:2]))
    assert_close(seen[1], expected(batches[2:]))


@pytest.mark.parametrize('accum', [1, 2])
def test_no_saved_tensor_of_a_term_outlives_its_backward_pass(accum):
    class Packed:
        def __init__(self, tensor):
            self.tensor = tensor

    alive, before, after = weakref.WeakSet(), [], []

    def pack(tensor):
        packed = Packed(tensor)
        alive.add(packed)
        return packed

    class Watched(RegAugTask):
        def loss_terms(self, input, target):
            return [(name, self.watched(term)) for name, term in super().loss_terms(input, target)]

        def watched(self, term):
            def run():
                before.append(len(alive))
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda packed: packed.tensor):
                    result = term()
                after.append(len(alive))
                return result

            return run

    model = make_model()
    task = make_task(model, task_class=Watched, gradaug=make_gradaug())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    make_engine(task, optimizer, '--grad-accum-steps', accum).train_one_epoch(0, make_batches(2))
    assert len(before) == 2 * 4  # two batches, the full network and three sub-networks
    assert before == [0] * 8
    assert min(after) > 20


def test_the_loss_scaler_changes_no_weight_of_several_terms():
    """Powers of two drop out of the gradients: scaled and plain training agree, clipping included."""
    results = []
    for scaler in (None, LossScaler(device='cpu')):
        torch.manual_seed(3)
        model = make_model(dtype=torch.float32)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        options = ['--grad-accum-steps', 2, '--clip-grad', 0.5]
        task = make_task(model, gradaug=make_gradaug())
        engine = make_engine(task, optimizer, *options, loss_scaler=scaler)
        engine.train_one_epoch(0, make_batches(5, dtype=torch.float32))
        results.append({name: value.detach().clone() for name, value in model.named_parameters()})
    assert_close(results[1], results[0], tolerance=1e-5)


class Recorder:
    """Notes the calls that a scheduler and a task get."""

    def __init__(self):
        self.steps = []

    def step_update(self, num_updates, metric):
        self.steps.append((num_updates, round(float(metric), 6)))


def test_scheduler_and_task_learn_of_every_update_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    task, scheduler, begun = make_task(model), Recorder(), []
    task.begin_update = begun.append
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = make_engine(task, optimizer, '--grad-accum-steps', 4, scheduler=scheduler)
    batches = make_batches(7, side=8, dtype=torch.float32)
    engine.train_one_epoch(0, batches)
    engine.train_one_epoch(1, batches)
    assert begun == [0, 1, 2, 3]
    losses = [nn.functional.cross_entropy(model(input), target).item() for input, target in batches]
    means = [sum(losses[:4]) / 4, sum(losses) / 7]
    assert [number for number, _ in scheduler.steps] == [1, 2, 3, 4]
    assert [metric for _, metric in scheduler.steps] == pytest.approx(means * 2, abs=1e-5)


def test_a_signal_stops_after_the_running_update_and_lets_an_epoch_end():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 4))
    batches = make_batches(6, side=8, dtype=torch.float32)

    def stopped_after(batch_idx):
        stop, seen = StopRequest(device=CPU), []
        task = make_task(model)

        def choose_input(input, target):
            if len(seen) == batch_idx:
                stop.signum = 15
            seen.append(len(target))
            return input, target, {}

        task.choose_input = choose_input
        engine = make_engine(task, torch.optim.SGD(model.parameters(), lr=0.0), '--grad-accum-steps', 2, stop=stop)
        try:
            engine.train_one_epoch(0, batches)
        except Interrupted as interrupted:
            return interrupted.update_idx, len(seen)
        return None, len(seen)

    assert stopped_after(0) == (1, 2)
    assert stopped_after(2) == (2, 4)
    assert stopped_after(5) == (None, 6)
