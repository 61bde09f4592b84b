"""A look at the first image of a data set, before a model is trained or evaluated on it."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from regaug.data.samples import Samples, untransformed
from regaug.errors import OptionError

_TRIED = 50  # images, spread over the data set


def check_samples(dataset: Dataset, channels: int, where: str):
    """Read the first image that can be read, as it is, and see whether it and its label fit.

    No random number is drawn, and nothing stays open that workers would share. Iterable data sets are left alone.

    Args:
        dataset: The data set.
        channels: Input channels of the model.
        where: The options that name the data, for messages.

    Raises:
        OptionError: No image can be read, the images have another number of channels, or the labels do not fit the
            task.
    """
    if isinstance(dataset, IterableDataset):
        return
    samples = dataset if isinstance(dataset, Samples) else Samples(dataset)
    image, target = first_sample(samples, where)
    found = len(image.getbands()) if isinstance(image, Image.Image) else channels
    if found != channels:
        raise OptionError(f'{where}: the images have {found} channels, the model takes {channels} (--in-chans).')
    transform = getattr(samples.dataset, 'target_transform', None)
    if transform is not None:
        transform(target)
    elif np.ndim(target):
        raise OptionError(f'{where}: an image has several labels ({target}), which --task multilabel takes.')


def first_sample(samples: Samples, where: str) -> tuple[Any, Any]:
    """The first image that can be read and its label, both untransformed.

    Raises:
        OptionError: None of some 50 images can be read.
    """
    count = len(samples)
    tried = range(0, count, max(1, count // _TRIED))
    with undisturbed(samples.dataset) as reasons:
        for position in tried:
            index = samples.index(position)
            try:
                return samples.dataset[index][:2]
            except Exception as error:  # decoders raise whatever they stumble over
                if 'consecutive samples' not in str(error):  # timm's data set, which has logged the reason
                    reasons.append(str(error))
    reason = ' '.join(reasons[-1].split())
    raise OptionError(
        f'{where}: none of the {len(tried)} images tried can be read, the last is {samples.filename(index)} ({reason}).'
    )


@contextmanager
def undisturbed(dataset: Dataset) -> Iterator[list[str]]:
    """Read without transforms, without a trace in the log, and without leaving a .tar file open.

    Yields:
        What timm would have logged.
    """
    kept = []
    logger = logging.getLogger('timm.data.dataset')
    reader = getattr(dataset, 'reader', None)
    caches = getattr(reader, 'cache_tarfiles', False)

    def keep(record):
        kept.append(record.getMessage())

    logger.addFilter(keep)  # returns nothing, which drops the record
    if caches:
        reader.cache_tarfiles = False
    try:
        with untransformed(dataset), warnings.catch_warnings():
            warnings.simplefilter('ignore', ResourceWarning)  # timm's readers leave closing to the garbage collector
            yield kept
    finally:
        logger.removeFilter(keep)
        if caches:
            reader.cache_tarfiles = True
