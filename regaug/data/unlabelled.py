"""Unlabelled images beside the labelled ones: a data set and a loader of their own."""

from argparse import Namespace
from typing import Any

from torch.utils.data import IterableDataset
from torchvision.datasets import STL10

from regaug.data.datasets import create_dataset, dataset_kwargs
from regaug.data.loaders import TrainLoader
from regaug.data.probe import check_samples
from regaug.data.samples import Samples
from regaug.errors import OptionError

# Images for it follow one another, whatever an epoch of the labelled ones is: the stream is put in its place instead.
_ENDLESS = 2**40


class UnlabelledData:
    """A stream of unlabelled batches, transformed as the phase transforms labelled images, but never mixed.

    Which images come with which micro-batch of the run follows from the seed; the ranks share them out.

    Args:
        dataset: map-style data set.
        data_config: timm's data configuration.
        batch_size: images in a batch.
        **delivery: `device`, `img_dtype` and `num_classes`, as for `TrainLoader`.
    """

    def __init__(self, dataset: Any, data_config: dict[str, Any], *, batch_size: int, **delivery):
        self.dataset = dataset
        self.batch_size = batch_size
        self._data = TrainLoader(dataset, data_config, **delivery)
        self._batches = None

    def use(self, phase: Any):
        """Make the loader that of a `training.phases.Phase`; an old one's workers end first."""
        unmixed = dict(mixup=0.0, cutmix=0.0, cutmix_minmax=None)
        phase = phase.with_options(batch_size=self.batch_size, updates_per_epoch=_ENDLESS, **unmixed)
        if self._data.use(phase):
            self._batches = None

    def restart(self):
        """Let go of the batches that were to come: the next one asked for says where the stream goes on."""
        self._batches = None

    def next(self, number: int):
        """The next batch.

        Args:
            number: of the micro-batch in the run; after a restart the stream begins there.

        Returns:
            (images, labels): images as the loader delivers them, labels [B] as the data set has them.
        """
        if self._batches is None:
            sampler = self._data.loader.batch_sampler.sampler
            sampler.start = number * self.batch_size * sampler.world_size
            self._batches = iter(self._data.loader)
        return next(self._batches)

    def close(self):
        """End the workers."""
        self._batches = self._data = None


def create_unlabelled(args: Namespace, data_config: dict[str, Any]):
    """The unlabelled images of these options.

    Returns:
        (data set, labels_known): the latter says whether its labels are those of the labelled images, for the log.

    Raises:
        OptionError: when there are no images, or they come as a stream.
    """
    labelled = args.dataset, args.data_dir or args.data
    name, root = args.unlabeled_dataset, args.unlabeled_data_dir or labelled[1]
    same_source = (name, root) == labelled
    where = f'--unlabeled-data-dir {root} --unlabeled-split {args.unlabeled_split}'
    kwargs = dataset_kwargs(args, data_config)
    if not same_source:
        kwargs.update(class_map='', target_key=None, target_format=None, target_transform=None)
    try:
        dataset = create_dataset(
            name, root, args.unlabeled_split, option='--unlabeled-split', is_training=True, **kwargs
        )
    except OptionError as error:
        raise OptionError(f'{where}: {error}') from error
    if isinstance(dataset, IterableDataset):
        raise OptionError(f'--unlabeled-dataset {name}: {type(dataset).__name__} has no sample index.')
    dataset = Samples(dataset)
    check_samples(dataset, data_config['input_size'][0], where)
    has_labels = not isinstance(dataset.dataset, STL10) or min(dataset.dataset.labels) >= 0
    return dataset, same_source and has_labels and args.task != 'multilabel'
