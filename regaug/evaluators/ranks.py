"""Sums and rows of all processes, each sample once."""

import torch
import torch.distributed as dist


def sum_over_ranks(tensor: torch.Tensor, distributed: bool) -> torch.Tensor:
    """Add up a tensor over all processes, in place; in a single process it stays as it is."""
    if distributed:
        dist.all_reduce(tensor)
    return tensor


def gather_samples(rows: torch.Tensor, distributed: bool) -> torch.Tensor:
    """Bring the rows of all samples into the order of the data set.

    timm's sampler deals the samples out in turn: process r of W has samples r, r + W, r + 2 W, ...

    Args:
        rows: One row for each sample of this process, padding left out: [n, ...].
        distributed: Whether there are several processes.

    Returns:
        Rows [N, ...] on the CPU, the same in every process.
    """
    if not distributed:
        return rows.cpu()
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.empty_like(count) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, count)
    counts = torch.cat(counts)
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    is_sample = torch.arange(len(padded), device=rows.device)[:, None] < counts
    return torch.stack(gathered, dim=1)[is_sample].cpu()
