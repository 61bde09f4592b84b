"""Two processes that train together agree when to stop; train.py under torchrun. Gradients are in `test_methods`."""

import contextlib
import os
import signal
import socket
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
import torch.distributed as dist
from torch import nn

import train as train_script
from regaug.errors import OptionError
from regaug.training import loop
from regaug.training.engine import Engine
from regaug.training.resume import newest_for_all
from regaug.training.run import Run
from tests.helpers.checkpoints import create_saver
from tests.helpers.ranks import RANKS, run_on_ranks, run_processes
from tests.helpers.training import (
    CLASSES,
    assert_close,
    assert_same_training,
    gradients,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
    train_args,
    train_argv,
)

STOPS = {'signal': {'signal_on': 1}, 'bad loss': {'bad_on': 1}}
FOLDERS = ('shared folder', 'own folder')
AVERAGE = 'moving average'
PATCHES = 'patches'  # of which each rank gets another number


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


class PatchModel(nn.Module):
    """A linear model of the dict of tensors that the NaFlex loader delivers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(2)
        self.linear = nn.Linear(3 * 8 * 8, CLASSES, dtype=torch.float64)

    def forward(self, input):
        return self.linear(input['patches'].flatten(1))


def patch_batch(rank):
    """Two images on the first rank, six on the second one."""
    [(input, target)] = make_batches(1, size=2 + 4 * rank, side=8, seed=rank)
    return {'patches': input}, target


def patch_case(rank):
    """The gradients that the optimiser gets from one NaFlex batch of each rank."""
    model = PatchModel()
    task = make_task(model, rank=rank).prepare_distributed(device_ids=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    options = ['--model', 'naflexvit_base_patch16_gap', '--naflex-loader', '--naflex-loss-scale', 'none']
    make_engine(task, optimizer, *options, rank=rank, world_size=RANKS).train_one_epoch(0, [patch_batch(rank)])
    return seen[0]


def resume_case(case, rank):
    """What a rank goes on from in the folder `run`, which is that of the first rank or each rank's own."""
    with tempfile.TemporaryDirectory() as own:
        places = [own]
        dist.broadcast_object_list(places)
        if case == FOLDERS[0] or rank:
            create_saver(make_model(dtype=torch.float32), f'{own}/run').save_recovery(7)  # of another run
        if rank == 0:
            create_saver(make_model(dtype=torch.float32), f'{own}/run').save_checkpoint(3, 1.0)
        with contextlib.chdir(places[0] if case == FOLDERS[0] else own):
            dist.barrier()
            try:
                return newest_for_all('run', finished_only=rank == 0, rank=rank, distributed=True)
            except OptionError as error:
                return str(error)
            finally:
                dist.barrier()


def average_case(rank):
    """The moving average before the first update, of a network that each rank starts otherwise."""
    torch.manual_seed(rank)
    task = make_task(timm.create_model('test_resnet', num_classes=CLASSES).double(), rank=rank)
    args = train_args('--model-ema', '--model-ema-decay', 0.9, rank=rank, world_size=RANKS)
    Run.wrap_model(SimpleNamespace(args=args, task=task, methods=[], device=torch.device('cpu')))
    return [parameter.detach() for parameter in task.get_eval_model(ema=True).parameters()]


def train_rank(case, rank, world_size):
    if case == AVERAGE:
        return average_case(rank)
    if case in FOLDERS:
        return resume_case(case, rank)
    return patch_case(rank) if case == PATCHES else stop_case(rank, **STOPS[case])


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """What both ranks saw, by rank."""
    return run_on_ranks(tmp_path_factory.mktemp('ranks'), train_rank, [*STOPS, *FOLDERS, AVERAGE, PATCHES])


def test_a_signal_to_one_rank_stops_all_after_the_same_update(results):
    assert [results[rank]['signal'] for rank in range(RANKS)] == [('Interrupted', 3)] * RANKS


def test_a_bad_loss_on_one_rank_counts_on_all(results):
    assert [results[rank]['bad loss'] for rank in range(RANKS)] == [('Diverged', 4)] * RANKS


def test_all_ranks_resume_what_the_first_one_finds(results):
    assert [results[rank]['shared folder'] for rank in range(RANKS)] == ['run/last.pth.tar'] * RANKS
    first, second = (results[rank]['own folder'] for rank in range(RANKS))
    assert first == 'run/last.pth.tar'
    assert '--resume auto: ' in second and 'is not there for process 1' in second


def test_the_moving_average_starts_as_the_first_ranks_weights_on_all(results):
    first, second = (results[rank][AVERAGE] for rank in range(RANKS))
    assert all(map(torch.equal, first, second)) and len(first) == len(second)


def test_every_image_weighs_the_same_where_naflex_batches_differ_in_size(results):
    model = PatchModel()
    losses = [
        nn.functional.cross_entropy(model(input), target, reduction='none')
        for input, target in map(patch_batch, range(RANKS))
    ]
    torch.cat(losses).mean().backward()
    for rank in range(RANKS):
        assert_close(results[rank][PATCHES], gradients(model))


@pytest.mark.parametrize(
    ('distributed', 'option', 'expected'),
    [(True, 'reduce', [True]), (True, 'broadcast', [False]), (True, '', []), (False, 'reduce', [])],
)
def test_ranks_share_their_batch_norm_statistics_as_the_option_says(monkeypatch, distributed, option, expected):
    shared, model = [], make_model()
    monkeypatch.setattr(loop, 'distribute_bn', lambda *args: shared.append(args))
    args = SimpleNamespace(distributed=distributed, dist_bn=option, world_size=2)
    loop.share_batch_norm(args, model)
    assert shared == [(model, 2, reduce) for reduce in expected]


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


def free_port():
    with socket.socket() as taken:
        taken.bind(('127.0.0.1', 0))
        return taken.getsockname()[1]


def train_as_rank(rank, argv, port):
    """train.py in a process such as torchrun starts."""
    torch.set_num_threads(1)
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(RANKS)}
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    assert train_script.main(argv) == 0


def test_torchrun_stops_with_one_recovery_file_goes_on_and_ends_with_one_set_of_files(
    start_train, image_folder, tmp_path
):
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', RANKS]
    options = ['--gradaug', 2, '--grad-accum-steps', 2, '--batch-size', 4, '--log-interval', 1]
    program = start_train('--epochs', 500, *options, launcher=launcher)
    program.wait_for('Train: 0 [   1/4')
    ranks = ranks_of(program.process)
    assert sorted(ranks) == [0, 1]
    os.kill(ranks[1], signal.SIGTERM)
    status, output = program.finish()
    assert status != 0
    assert 'Stopped in epoch' in output
    folder = tmp_path / 'run'
    [recovery] = folder.glob('recovery-*.pth.tar')
    epoch = read_checkpoint(recovery)['epoch']
    assert output.count(str(recovery)) == 1  # one rank speaks
    time.sleep(0.2)
    assert not any(Path(f'/proc/{pid}').exists() for pid in ranks.values())

    argv = train_argv(image_folder, tmp_path, '--experiment', 'run', '--epochs', epoch + 1, *options)
    run_processes(train_as_rank, ([*argv, '--resume', str(recovery)], free_port()))
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith('checkpoint-'))
    assert names == ['args.yaml', 'last.pth.tar', 'model_best.pth.tar', recovery.name, 'summary.csv']
    rows = read_summary(folder)
    assert [int(row['epoch']) for row in rows] == list(range(epoch + 1))
    assert float(rows[-1]['train_sub2_loss']) > 0
    state = read_checkpoint(folder / 'last.pth.tar')
    assert state['epoch'] == epoch
    assert not any(name.startswith('module.') for name in state['state_dict'])


def test_the_moving_average_of_two_ranks_resumes_exactly_between_evaluations(image_folder, tmp_path):
    """Its batch-norm statistics differ between the ranks until they are shared; one rank's are saved."""
    options = ['--exact-resume', '--model-ema', '--model-ema-decay', 0.9, '--epochs', 2, '--val-interval', 3]
    for name, resume in (('whole', []), ('resumed', ['--resume', str(tmp_path / 'whole' / 'recovery-0-end.pth.tar')])):
        argv = train_argv(image_folder, tmp_path, '--experiment', name, *options, '--batch-size', 4, *resume)
        run_processes(train_as_rank, (argv, free_port()))
    assert_same_training(tmp_path / 'resumed', tmp_path / 'whole', from_epoch=1)


def test_statistics_are_shared_after_an_epoch_and_before_the_average_is_evaluated(train, monkeypatch):
    events, evaluate = [], Engine.evaluate

    def noted(engine, loader, model, *, ema=False):
        events.append('average' if ema else 'model')
        return evaluate(engine, loader, model, ema=ema)

    monkeypatch.setattr(Engine, 'evaluate', noted)
    monkeypatch.setattr(loop, 'share_batch_norm', lambda args, model: events.append('shared'))
    train('--epochs', 1, '--model-ema')
    assert events == ['shared', 'model', 'shared', 'average']
