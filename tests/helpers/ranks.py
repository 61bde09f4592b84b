"""Two gloo processes that compute the same cases."""

import time
from datetime import timedelta

import torch
import torch.distributed as dist
import torch.multiprocessing

RANKS = 2
SECONDS = 600  # after which waiting is a deadlock
PRELOADED = ['timm', 'wandb', 'regaug.training.run', 'tests.helpers.training']


def run_on_ranks(folder, train_rank, cases):
    """Results of all ranks, by rank: {case: what `train_rank(case, rank, world_size)` returns in its process}."""
    run_processes(work, (str(folder), train_rank, list(cases)))
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(RANKS)]


def run_processes(function, args):
    """Run `function(rank, *args)` in one process for each rank, and wait for their end.

    They are forked from one process that has imported what takes seconds, and live no longer than the caller.
    """
    torch.multiprocessing.set_forkserver_preload(PRELOADED)
    context = torch.multiprocessing.start_processes(
        function, args, nprocs=RANKS, join=False, daemon=True, start_method='forkserver'
    )
    end = time.monotonic() + SECONDS
    try:
        while not context.join(timeout=1):
            assert time.monotonic() < end, f'still running after {SECONDS} s'
    finally:
        for process in context.processes:
            process.kill()


def work(rank, folder, train_rank, cases):
    torch.set_num_threads(1)
    timeout = timedelta(seconds=SECONDS)
    dist.init_process_group('gloo', f'file://{folder}/group', rank=rank, world_size=RANKS, timeout=timeout)
    torch.save({case: train_rank(case, rank, world_size=RANKS) for case in cases}, f'{folder}/{rank}.pt')
    dist.destroy_process_group()
