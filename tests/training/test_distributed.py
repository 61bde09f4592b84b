"""Two processes that train together: gradients, draws, agreement to stop, and train.py under torchrun."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from tests.helpers.training import (
    assert_close,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_gradaug,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
    sum_of,
)

RANKS = 2
CASES = {  # sub-networks, micro-batches per update
    'plain': (0, 1),
    'plain, accumulated': (0, 3),
    'gradaug': (3, 1),
    'gradaug, accumulated': (3, 3),
}


def batches_of(rank):
    return make_batches(4, seed=100 + rank)


def train_case(case, rank, world_size=1):
    """Run an epoch of 4 batches and return what there is to compare of it."""
    num_subnetworks, accum = CASES[case]
    torch.manual_seed(1)
    model = make_model()
    gradaug = make_gradaug(num_subnetworks=num_subnetworks) if num_subnetworks else None
    task = make_task(model, gradaug=gradaug, rank=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    options = ['--grad-accum-steps', accum, '--log-interval', 1]
    engine = make_engine(task, optimizer, *options, rank=rank, world_size=world_size)
    reduced = []
    if world_size > 1:
        task.prepare_distributed(device_ids=None)

        def counting_hook(group, bucket):
            reduced.append(bucket.index())
            return allreduce_hook(group, bucket)

        task.trainable_module.register_comm_hook(None, counting_hook)
    figures = engine.train_one_epoch(0, batches_of(rank))
    return {
        'gradients': seen,
        'figures': dict(figures),
        'losses': [record.loss.avg for record in engine.report.records],
        'draws': [
            {f'{term} {key}': value for (term, key), value in record.terms.items() if key in ('width', 'size')}
            for record in engine.report.records
        ],
        'all-reduces': len(reduced),
    }


class BadOnRank:
    """A criterion whose loss is not a number on one rank from a call on; the gradients are sound."""

    def __init__(self, rank, bad_rank, first):
        self.bad, self.calls, self.first = rank == bad_rank, 0, first

    def __call__(self, output, target):
        self.calls += 1
        loss = nn.functional.cross_entropy(output, target)
        return loss + float('nan') if self.bad and self.calls > self.first else loss


def stop_case(rank, *, signal_on=None, bad_on=None):
    """Train until a signal or a bad loss of one rank stops it; returns how, and after how many updates."""
    model = make_model()
    task = make_task(model, BadOnRank(rank, bad_on, first=2), rank=rank).prepare_distributed(device_ids=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    options = ['--max-bad-updates', 2]
    engine = make_engine(task, optimizer, *options, rank=rank, world_size=RANKS)
    if rank == signal_on:
        optimizer.register_step_post_hook(lambda *_: setattr(engine.stop, 'signum', 15) if len(seen) == 3 else None)
    try:
        engine.train_one_epoch(0, make_batches(20, size=2))
    except Exception as stop:
        return type(stop).__name__, len(seen)
    return None, len(seen)


def work(rank, folder):
    """What a rank of the process group computes, into a file."""
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=RANKS)
    results = {case: train_case(case, rank, world_size=RANKS) for case in CASES}
    results['signal'] = stop_case(rank, signal_on=1)
    results['bad loss'] = stop_case(rank, bad_on=1)
    torch.save(results, Path(folder) / f'{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What both ranks saw, by rank."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize('case', CASES)
def test_gradients_are_the_mean_of_single_processes(case, results):
    alone = [train_case(case, rank) for rank in range(RANKS)]
    assert len(alone[0]['gradients']) == {1: 4, 3: 2}[CASES[case][1]]
    for update, single in enumerate(zip(*(run['gradients'] for run in alone), strict=True)):
        mean = {name: value / RANKS for name, value in sum_of(*single).items()}
        for rank in range(RANKS):
            assert_close(results[rank][case]['gradients'][update], mean, tolerance=1e-6 if 'gradaug' in case else 1e-10)
        with pytest.raises(AssertionError):
            assert_close(single[0], mean, tolerance=1e-2)  # the ranks' own gradients differ


@pytest.mark.parametrize('case', CASES)
def test_figures_are_averaged_over_the_ranks(case, results):
    alone = [train_case(case, rank)['figures'] for rank in range(RANKS)]
    mean = {name: (alone[0][name] + alone[1][name]) / 2 for name in alone[0]}
    for rank in range(RANKS):
        assert results[rank][case]['figures'] == pytest.approx(mean, rel=1e-5)
    assert alone[0]['loss'] != pytest.approx(alone[1]['loss'], rel=1e-3)


@pytest.mark.parametrize('case', ['gradaug', 'gradaug, accumulated'])
def test_ranks_draw_the_same_widths_and_sizes(case, results):
    draws = [results[rank][case]['draws'] for rank in range(RANKS)]
    assert draws[0] == draws[1]
    assert len(draws[0][0]) == 6
    assert len({str(draw) for draw in draws[0]}) == len(draws[0]) > 1


def test_ranks_synchronise_once_in_an_update_however_many_terms_and_micro_batches(results):
    counts = {case: results[0][case]['all-reduces'] for case in CASES}
    assert counts['plain'] > 0
    assert counts['gradaug'] == counts['plain']
    assert counts['gradaug, accumulated'] == counts['plain, accumulated'] < counts['plain']


def test_a_signal_to_one_rank_stops_all_after_the_same_update(results):
    assert [results[rank]['signal'] for rank in range(RANKS)] == [('Interrupted', 3)] * RANKS


def test_a_bad_loss_on_one_rank_counts_on_all(results):
    assert [results[rank]['bad loss'] for rank in range(RANKS)] == [('Diverged', 4)] * RANKS


def ranks_of(torchrun):
    """Process ids of the training processes that a torchrun process started, by rank."""
    found = {}
    for path in Path('/proc').glob('[0-9]*/environ'):
        try:
            parent = int((path.parent / 'stat').read_text().rpartition(')')[2].split()[1])
            environment = path.read_bytes().split(b'\0')
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        rank = [entry.partition(b'=')[2] for entry in environment if entry.startswith(b'RANK=')]
        if parent == torchrun.pid and rank:
            found[int(rank[0])] = int(path.parent.name)
    return found


def test_torchrun_stops_with_one_recovery_file_goes_on_and_ends_with_one_set_of_files(start_train, tmp_path):
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', RANKS]
    options = ['--gradaug', 2, '--grad-accum-steps', 2, '--batch-size', 4, '--log-interval', 1]
    program = start_train('--epochs', 500, *options, launcher=launcher)
    program.wait_for('Train: 0 [   1/4', 120)
    ranks = ranks_of(program.process)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGTERM)
    status, output = program.finish(120)
    assert status != 0
    assert 'Stopped in epoch' in output
    folder = tmp_path / 'run'
    [recovery] = folder.glob('recovery-*.pth.tar')
    epoch = read_checkpoint(recovery)['epoch']
    assert output.count(str(recovery)) == 1  # one rank speaks
    time.sleep(0.2)
    assert not any(Path(f'/proc/{pid}').exists() for pid in ranks.values())

    program = start_train('--epochs', epoch + 1, *options, '--resume', recovery, launcher=launcher)
    status, output = program.finish(120)
    assert status == 0, output
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith('checkpoint-'))
    assert names == ['args.yaml', 'last.pth.tar', 'model_best.pth.tar', recovery.name, 'summary.csv']
    rows = read_summary(folder)
    assert [int(row['epoch']) for row in rows] == list(range(epoch + 1))
    assert float(rows[-1]['train_sub2_loss']) > 0
    state = read_checkpoint(folder / 'last.pth.tar')
    assert state['epoch'] == epoch
    assert not any(name.startswith('module.') for name in state['state_dict'])
