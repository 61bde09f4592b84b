"""Two gloo processes that compute the same cases."""

import torch
import torch.distributed as dist
import torch.multiprocessing

RANKS = 2


def run_on_ranks(folder, train_rank, cases):
    """Results of all ranks, by rank: {case: what `train_rank(case, rank, world_size)` returns in its process}."""
    torch.multiprocessing.spawn(work, args=(str(folder), train_rank, list(cases)), nprocs=RANKS)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(RANKS)]


def work(rank, folder, train_rank, cases):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=RANKS)
    torch.save({case: train_rank(case, rank, world_size=RANKS) for case in cases}, f'{folder}/{rank}.pt')
    dist.destroy_process_group()
