"""Claims about every method and some pairs: its log is complete, it resumes exactly, it trains on ranks, it is off."""

import math
import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from regaug import methods
from regaug.data.loaders import mixing_active
from regaug.training.criterion import create_criterion
from regaug.training.phases import phase_at
from tests.helpers.methods import INTENSIVE, MAIN_EPOCH, METHODS, NUM_EPOCHS, PHASES, REFINE_EPOCH, Row
from tests.helpers.ranks import RANKS, run_on_ranks
from tests.helpers.training import (
    CLASSES,
    assert_close,
    assert_equal,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_task,
    messages_of,
    read_checkpoint,
    read_summary,
    run_train,
    sum_of,
    train_args,
)

RUN = ('--exact-resume', '--log-interval', 1, '--labels-per-class', 8, *PHASES)  # two updates an epoch
TIMM_COLUMNS = ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
CASES = {'none': Row({}, {}, INTENSIVE), **METHODS}
every_method = pytest.mark.parametrize('name', METHODS)
every_case = pytest.mark.parametrize('name', CASES)


@pytest.fixture(scope='module')
def runs(image_folder, tmp_path_factory):
    """Runs train.py with given options, the same options once: (folder, messages of the log)."""
    done = {}

    def run(*options, stop_after=NUM_EPOCHS):
        key = (*map(str, options), stop_after)
        if key not in done:
            output = tmp_path_factory.mktemp('methods')
            with messages_of('train') as messages:
                done[key] = run_train(image_folder, output, *RUN, *options, stop_after=stop_after), messages
        return done[key]

    return run


def methods_on(row, epoch):
    """Names of the methods that are on in an epoch."""
    return phase_at(epoch, train_args('--num-classes', CLASSES, *PHASES, *row.words)).methods


def test_every_method_has_a_row():
    names = {method.name for row in METHODS.values() for method in row.build()[3]}
    assert len(names) == len(methods.modules())
    assert all(methods_on(row, MAIN_EPOCH) for row in METHODS.values())


@every_method
def test_it_trains_and_its_log_is_complete(name, runs):
    row = METHODS[name]
    folder, log = runs(*row.words)
    table = read_summary(folder)
    columns = [f'train_{column}' for part in row.columns.values() for column in part]
    assert sorted(table[0]) == sorted([*TIMM_COLUMNS, 'phase', *columns])
    for epoch, values in enumerate(table):
        on = methods_on(row, epoch)
        assert math.isfinite(float(values['train_loss']))
        for method, part in row.columns.items():
            found = [values[f'train_{column}'] for column in part]
            assert method in on or set(found) == {''}, epoch
            assert epoch != MAIN_EPOCH or all(math.isfinite(float(value)) for value in found)

    assert re.search(row.start, '\n'.join(message for message in log if not message.startswith('Train: ')))
    lines = [message for message in log if message.startswith(f'Train: {MAIN_EPOCH} ')]
    assert len(lines) == 2
    for pattern in row.console:
        assert any(re.search(pattern, line) for line in lines), lines
    [switch] = [message for message in log if message.startswith('Phase refine')]
    for method in set(methods_on(row, MAIN_EPOCH)) - set(methods_on(row, REFINE_EPOCH)):
        assert f'--{method.replace("_", "-")}' in switch

    plain, _ = runs(*row.common, stop_after=MAIN_EPOCH + 1)
    trained, untouched = (read_checkpoint(path / f'checkpoint-{MAIN_EPOCH}.pth.tar') for path in (folder, plain))
    assert any(not torch.equal(value, untouched['state_dict'][key]) for key, value in trained['state_dict'].items())


@every_case
@pytest.mark.few(7)
def test_it_resumes_exactly_at_every_phase_boundary(name, runs):
    words = CASES[name].words
    whole, _ = runs(*words)
    rows = read_summary(whole)
    for epoch in range(1, NUM_EPOCHS):
        resumed, _ = runs(*words, '--resume', whole / f'checkpoint-{epoch - 1}.pth.tar', stop_after=epoch + 1)
        saved, expected = (read_checkpoint(folder / f'checkpoint-{epoch}.pth.tar') for folder in (resumed, whole))
        for key in ('epoch', 'state_dict', 'optimizer', 'metric'):
            assert_equal(saved[key], expected[key], f'epoch {epoch}, {key}')
        [row] = read_summary(resumed)
        assert row.items() <= rows[epoch].items()
        assert all(value == '' for column, value in rows[epoch].items() if column not in row)


@every_method
def test_off_is_off(name, runs, tmp_path):
    """A configuration that sets all options of a method but switches it off trains as if there were no such method."""
    row = METHODS[name]
    config = row.write_config(tmp_path / 'off.yaml')
    plain, _ = runs(*row.common, stop_after=MAIN_EPOCH + 1)
    off, _ = runs('-c', config, *row.common, stop_after=MAIN_EPOCH + 1)
    for epoch in range(MAIN_EPOCH + 1):
        saved, expected = (read_checkpoint(folder / f'checkpoint-{epoch}.pth.tar') for folder in (off, plain))
        assert_equal(saved['state_dict'], expected['state_dict'])
        assert_equal(saved['optimizer'], expected['optimizer'])
    assert read_summary(off) == read_summary(plain)


# --- two processes ------------------------------------------------------------------------------------------------


def batches_of(rank, phase):
    """Batches of a rank as its loader would deliver them in a phase."""
    soft = phase.loader_mixes and mixing_active(phase.options)
    batches = []
    for input, target in make_batches(4, seed=100 + rank):
        if not phase.normalises:
            input = input.float().sigmoid()
        if soft:
            target = (0.7 * nn.functional.one_hot(target, CLASSES) + 0.3 / CLASSES).double()
        views = phase.num_views
        batches.append((torch.cat([input.roll(view, -1) for view in range(views)]), torch.cat([target] * views)))
    return batches


def train_rank(case, rank, world_size=1):
    """Train for two updates of two micro-batches; what there is to compare of it."""
    torch.manual_seed(1)
    random.seed(1)  # what loaders of methods draw
    np.random.seed(1)
    _, phase, model, chosen = CASES[case].build(rank, RANKS, distributed=world_size > 1)
    task = make_task(model, methods=chosen, rank=rank)
    task.start_phase(phase, create_criterion(phase))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen, synchronised = gradients_at_updates(optimizer, model), []
    options = ('--grad-accum-steps', 2, '--log-interval', 1)
    engine = make_engine(task, optimizer, *options, rank=rank, world_size=world_size)
    if world_size > 1:
        task.prepare_distributed(device_ids=None)
        task.trainable_module.register_comm_hook(synchronised, counting_hook)
    metrics = engine.train_one_epoch(MAIN_EPOCH, batches_of(rank, phase))
    draws = [
        {f'{term} {key}': value for (term, key), value in record.terms.items() if key in ('width', 'size')}
        for record in engine.report.records
    ]
    return {'gradients': seen, 'metrics': dict(metrics), 'draws': draws, 'synchronised': len(synchronised)}


def counting_hook(synchronised, bucket):
    """Averages gradients as DDP does by itself, and notes the last bucket of each time."""
    if bucket.is_last():
        synchronised.append(True)
    return allreduce_hook(None, bucket)


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What both ranks saw, by rank."""
    return run_on_ranks(tmp_path_factory.mktemp('ranks'), train_rank, CASES)


@every_case
def test_ranks_train_as_single_processes_do_on_average_and_synchronise_once_an_update(name, ranks):
    alone = [train_rank(name, rank) for rank in range(RANKS)]
    # The soft-label loss is computed in float32, which is as good as 1e-7.
    tolerance = 1e-6 if 'gradaug' in name else 1e-10
    for update, single in enumerate(zip(*(run['gradients'] for run in alone), strict=True)):
        mean = {key: value / RANKS for key, value in sum_of(*single).items()}
        for rank in range(RANKS):
            assert_close(ranks[rank][name]['gradients'][update], mean, tolerance=tolerance)
        with pytest.raises(AssertionError):
            assert_close(single[0], mean, tolerance=1e-2)  # the ranks' own gradients differ
    metrics = {key: (alone[0]['metrics'][key] + alone[1]['metrics'][key]) / RANKS for key in alone[0]['metrics']}
    for rank in range(RANKS):
        assert ranks[rank][name]['metrics'] == pytest.approx(metrics, rel=1e-5)
        assert ranks[rank][name]['synchronised'] == len(alone[rank]['gradients']) == 2
    draws = [ranks[rank][name]['draws'] for rank in range(RANKS)]
    assert draws[0] == draws[1]
    if 'gradaug' in CASES[name].columns and 'depth' not in name:
        assert len(draws[0][0]) == 2 * CASES[name].options['gradaug']
        assert draws[0][0] != draws[0][1]  # of another update
