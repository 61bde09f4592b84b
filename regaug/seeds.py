"""Random state that follows from given values alone: a resumed run draws what the uninterrupted one drew."""

import hashlib
import random
from contextlib import contextmanager

import numpy as np
import torch


def derived_seed(*parts):
    """A 63-bit seed that depends on every part and on nothing else, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') >> 1


def reseed_epoch(seed: int, epoch: int, rank: int):
    """Seed every generator of the process for one epoch (`--exact-resume`)."""
    value = derived_seed('epoch', seed, epoch, rank)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@contextmanager
def separate_randomness(device: torch.device, *parts):
    """Seed PyTorch's generators from the given values, and restore them on exit.

    Dropout and drop path inside leave the random stream outside as it is.
    """
    with torch.random.fork_rng(devices=[device] if device.type == 'cuda' else []):
        torch.manual_seed(derived_seed(*parts))
        yield
