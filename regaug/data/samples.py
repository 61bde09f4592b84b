"""Map-style data sets as training sees them: a fixed subset of the samples, unreadable images replaced and counted."""

import logging
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from regaug.data.counted import left_out
from regaug.data.subsets import sample_labels, stratified_subset
from regaug.errors import OptionError

_logger = logging.getLogger('train')
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)  # no second look, which a bad network may pass
_MAX_NEIGHBOURS = 50  # so many unreadable images in a row are no accident
_NAMED = 10  # unreadable evaluation images that the log names


class DataError(OptionError):
    """An `OptionError` that may come from a worker: PyTorch hands it on as the end of a long text."""

    def __init__(self, message: str):
        super().__init__(message.rpartition(f'{type(self).__name__}: ')[2].strip())


class Samples(Dataset):
    """A map-style data set seen through a list of indices.

    A sample that cannot be read is replaced by the next one in the list, named in the log and counted across all
    worker processes. The transform stays where timm expects it: assigning `transform` reaches the data set below.

    Args:
        dataset: map-style data set that returns (image, class index), or a vector of labels in place of the index.
        indices: which samples, in which order; all when None.
        leave_out: an unreadable image does not count: its replacement has a target that `Counted` knows.

    Raises:
        DataError: when 50 samples in a row cannot be read.
    """

    def __init__(self, dataset: Any, indices: Any = None, *, leave_out: bool = False):
        self.dataset = dataset
        self.indices = indices
        self.leave_out = leave_out
        self._unreadable = multiprocessing.Value('l', 0)
        if hasattr(dataset, '_max_retries'):
            dataset._max_retries = 1  # timm's own replacement knows neither the file nor the subset

    @property
    def transform(self):
        return self.dataset.transform

    @transform.setter
    def transform(self, transform: Any):
        self.dataset.transform = transform

    @property
    def num_unreadable(self):
        """How often an unreadable image was replaced so far, in all workers."""
        return self._unreadable.value

    def __len__(self):
        return len(self.dataset) if self.indices is None else len(self.indices)

    def index(self, position: Any):
        """Index in the data set below of the sample at a position of the list."""
        return position if self.indices is None else int(self.indices[position])

    def __getitem__(self, position: Any):
        for offset in range(_MAX_NEIGHBOURS):
            index = self._neighbour(position, offset)
            try:
                image, target, *others = self.dataset[index]
            except Exception as error:  # decoders raise whatever they stumble over
                if self._can_be_read(index, error):
                    raise
                self._count_unreadable(index, error)
                continue
            return (image, left_out(target) if offset and self.leave_out else target, *others)
        raise DataError(
            f'--data-dir: {_MAX_NEIGHBOURS} unreadable images in a row, the last is {self.filename(index)}.'
        )

    def _neighbour(self, position: Any, offset: int):
        """Index of the sample `offset` places further: in the list, or among all where it only fills the place."""
        if self.leave_out:
            return (self.index(position) + offset) % len(self.dataset)
        return self.index((position + offset) % len(self))

    def _can_be_read(self, index: Any, error: Any):
        """Whether an error is the fault of a transform, or of a label, and not of the image."""
        if isinstance(error, _UNREADABLE) or 'consecutive samples' in str(error):  # the latter is timm's data set
            return False
        try:
            with untransformed(self.dataset):
                self.dataset[index]
        except Exception:
            return False
        return True

    def _count_unreadable(self, index: Any, error: Any):
        with self._unreadable.get_lock():
            self._unreadable.value += 1
            count = self._unreadable.value
        if not self.leave_out or count <= _NAMED:
            fate = 'left out of the metrics' if self.leave_out else 'replaced by the next one'
            _logger.warning(f'Unreadable image {fate}: {self.filename(index)} ({error})')

    def filename(self, index: Any, basename: bool = False, absolute: bool = False):
        if hasattr(self.dataset, 'filename'):
            return self.dataset.filename(index, basename=basename, absolute=absolute)
        samples = getattr(self.dataset, 'samples', None)  # torchvision's folders
        return samples[index][0] if samples else f'sample {index}'


@contextmanager
def untransformed(dataset: Dataset) -> Iterator[None]:
    """Let a data set give its images and labels as they are."""
    kept = {name: value for name in ('transform', 'target_transform') if (value := getattr(dataset, name, None))}
    for name in kept:
        setattr(dataset, name, None)
    try:
        yield
    finally:
        for name, value in kept.items():
            setattr(dataset, name, value)


class Views(Dataset):
    """A map-style data set that gives several versions of each image, which is read once and transformed several times.

    Args:
        dataset: map-style data set; its own transform is taken away.
        num_views: versions of each image.

    Attributes:
        transform: set by timm's loader factory.
    """

    def __init__(self, dataset: Any, num_views: Any):
        self.dataset = dataset
        self.num_views = num_views
        self.transform = None
        dataset.transform = None

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, position: Any):
        image, target = self.dataset[position]
        return tuple(self.transform(image) for _ in range(self.num_views)), target


def training_samples(dataset: Any, *, labels_per_class: int | None = None, label_split: int = 0):
    """Wrap a training set: all of it, or the subset of `--labels-per-class`; iterable data sets stay as they are."""
    if isinstance(dataset, IterableDataset):
        if labels_per_class:
            raise OptionError(f'--labels-per-class {labels_per_class}: {type(dataset).__name__} has no sample index.')
        return dataset
    indices = None
    if labels_per_class:
        indices = stratified_subset(sample_labels(dataset), labels_per_class, label_split)
    return Samples(dataset, indices)
