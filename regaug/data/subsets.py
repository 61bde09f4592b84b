"""Which samples of a map-style data set a run sees, in which order: the same on every machine, after a resume too."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch.utils.data import Sampler

from regaug.errors import OptionError
from regaug.seeds import derived_seed

_logger = logging.getLogger('train')


def sample_labels(dataset: Any):
    """Class index of every sample of a map-style data set, int64 array [N]; from its index where it keeps one."""
    reader = getattr(dataset, 'reader', dataset)
    for name in ('targets', 'labels'):  # torchvision's STL-10 calls them labels
        if hasattr(reader, name):
            return np.array([int(target) for target in getattr(reader, name)])
    if hasattr(reader, 'samples'):
        return np.array([sample[1] for sample in reader.samples])
    _logger.info(f'{type(dataset).__name__} keeps no list of its labels: reading all {len(dataset)} samples once.')
    return np.array([dataset[index][1] for index in range(len(dataset))])


def stratified_subset(labels: Any, per_class: int, split: int):
    """Indices of a fixed subset with the same number of samples of every class.

    The same labels, number and split give the same subset on every machine and with every version of the libraries
    (NumPy guarantees the stream of `RandomState`). With the same split, a smaller subset is part of a larger one.

    Args:
        labels: class indices [N].
        per_class: samples of each class.
        split: which of the many possible subsets; any integer from 0.

    Returns:
        Sorted sample indices, int64 array [per_class * classes].

    Raises:
        OptionError: when a class has fewer samples.
    """
    random_state = np.random.RandomState(split)
    chosen = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) < per_class:
            raise OptionError(f'--labels-per-class {per_class}: class {label} has only {len(members)} samples.')
        chosen.append(random_state.permutation(members)[:per_class])
    return np.sort(np.concatenate(chosen))


class RepeatedSamples(Sampler):
    """Sample indices for epochs of any length, cut from an endless row of shuffled passes over the data.

    Each pass holds every sample once, so all samples are seen equally often, whatever the length of an epoch: the next
    one goes on where the last one stopped. The row follows from the seed alone (NumPy guarantees the stream of
    `RandomState`); the ranks take its entries in turn.

    Args:
        num_samples: samples of the data set.
        epoch_length: indices that each rank gets in an epoch.
        seed: of the run.
        rank, world_size: this process among those that train together.

    Attributes:
        start: place in the row, which all ranks share, with which the next epoch begins.
    """

    def __init__(self, num_samples: int, epoch_length: int, *, seed: int, rank: int = 0, world_size: int = 1):
        self.num_samples = num_samples
        self.epoch_length = epoch_length
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.start = 0

    def set_epoch(self, epoch: int):
        """Go to an epoch, counted from 0."""
        self.start = epoch * self.epoch_length * self.world_size

    def __len__(self) -> int:
        return self.epoch_length

    def __iter__(self) -> Iterator[int]:
        stop = self.start + self.epoch_length * self.world_size
        current, order = None, []
        for position in range(self.start + self.rank, stop, self.world_size):
            number, place = divmod(position, self.num_samples)
            if number != current:
                current, order = number, self._pass(number)
            yield order[place]

    def _pass(self, number: int) -> list[int]:
        seed = derived_seed('pass', self.seed, number) % 2**32
        return np.random.RandomState(seed).permutation(self.num_samples).tolist()
