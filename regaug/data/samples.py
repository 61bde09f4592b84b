"""Map-style data sets as training sees them: a fixed subset of the samples, unreadable images replaced and counted."""

import logging
import multiprocessing

from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from regaug.data.subsets import sample_labels, stratified_subset
from regaug.errors import OptionError

_logger = logging.getLogger('train')
# What Pillow raises for broken images, and timm's data set (a RuntimeError, after it has logged the reason).
_UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError, RuntimeError)
_MAX_NEIGHBOURS = 50  # so many unreadable images in a row are no accident


class Samples(Dataset):
    """A map-style data set seen through a list of indices.

    A sample that cannot be read is replaced by the next one in the list, named in the log and counted across all
    worker processes. The transform stays where timm expects it: assigning `transform` reaches the data set below.

    Args:
        dataset: map-style data set that returns (image, class index).
        indices: which samples, in which order; all when None.

    Raises:
        RuntimeError: when 50 samples in a row cannot be read.
    """

    def __init__(self, dataset, indices=None):
        self.dataset = dataset
        self.indices = indices
        self._unreadable = multiprocessing.Value('l', 0)
        if hasattr(dataset, '_max_retries'):
            dataset._max_retries = 1  # timm's own replacement knows neither the file nor the subset

    @property
    def transform(self):
        return self.dataset.transform

    @transform.setter
    def transform(self, transform):
        self.dataset.transform = transform

    @property
    def num_unreadable(self):
        """How often an unreadable image was replaced so far, in all workers."""
        return self._unreadable.value

    def __len__(self):
        return len(self.dataset) if self.indices is None else len(self.indices)

    def _index(self, position):
        return position if self.indices is None else int(self.indices[position])

    def __getitem__(self, position):
        for offset in range(_MAX_NEIGHBOURS):
            index = self._index((position + offset) % len(self))
            try:
                return self.dataset[index]
            except _UNREADABLE as error:
                if isinstance(error, RuntimeError) and 'consecutive samples' not in str(error):
                    raise
                with self._unreadable.get_lock():
                    self._unreadable.value += 1
                _logger.warning(f'Unreadable image replaced by the next one: {self.filename(index)} ({error})')
        raise RuntimeError(f'{_MAX_NEIGHBOURS} unreadable images in a row, the last is {self.filename(index)}.')

    def filename(self, index, basename=False, absolute=False):
        if hasattr(self.dataset, 'filename'):
            return self.dataset.filename(index, basename=basename, absolute=absolute)
        samples = getattr(self.dataset, 'samples', None)  # torchvision's folders
        return samples[index][0] if samples else f'sample {index}'


class Views(Dataset):
    """A map-style data set that gives several versions of each image, which is read once and transformed several times.

    Args:
        dataset: map-style data set; its own transform is taken away.
        num_views: versions of each image.

    Attributes:
        transform: set by timm's loader factory.
    """

    def __init__(self, dataset, num_views):
        self.dataset = dataset
        self.num_views = num_views
        self.transform = None
        dataset.transform = None

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, position):
        image, target = self.dataset[position]
        return tuple(self.transform(image) for _ in range(self.num_views)), target


def training_samples(dataset, *, labels_per_class=None, label_split=0):
    """Wrap a training set: all of it, or the subset of `--labels-per-class`; iterable data sets stay as they are."""
    if isinstance(dataset, IterableDataset):
        if labels_per_class:
            raise OptionError(f'--labels-per-class {labels_per_class}: {type(dataset).__name__} has no sample index.')
        return dataset
    indices = None
    if labels_per_class:
        indices = stratified_subset(sample_labels(dataset), labels_per_class, label_split)
    return Samples(dataset, indices)
