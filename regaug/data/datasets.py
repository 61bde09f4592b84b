"""Data sets: timm's factory, what it lacks, and checks of what is in them."""

import logging
import os

from timm.data import create_dataset as create_timm_dataset
from torch.utils.data import IterableDataset
from torchvision.datasets import STL10

from regaug.data.digits import create_digits
from regaug.data.samples import Samples, training_samples
from regaug.data.tiny_imagenet import create_tiny_imagenet, is_tiny_imagenet
from regaug.errors import OptionError

_logger = logging.getLogger('train')
_STL10_SPLITS = {
    **dict.fromkeys(('train', 'training'), 'train'),
    **dict.fromkeys(('val', 'valid', 'validation', 'eval', 'evaluation'), 'test'),
}


def create_dataset(name, root, split, **kwargs):
    """Create a data set by timm's factory, or one that timm lacks.

    These are the embedded digits for the name `regaug/digits`, torchvision's STL-10 for `torch/stl10` and, for a folder
    in which Tiny-ImageNet has been unpacked, Tiny-ImageNet.

    Args:
        name: timm's data set name (`''` for a folder, `torch/...`, `hfds/...`, `wds/...`, ...) or one of ours.
        root: folder of the data.
        split: name of the split.
        **kwargs: further arguments of `timm.data.create_dataset`.

    Raises:
        OptionError: when the folder is missing or holds no image, or there is no such data set.
    """
    if name == 'regaug/digits':
        return create_digits(split, input_img_mode=kwargs.get('input_img_mode'))
    prefix = name.partition('/')[0] if '/' in name else ''
    if prefix in ('', 'torch') and (root is None or not os.path.exists(root)) and not kwargs.get('download'):
        raise OptionError(f'--data-dir {root}: there is no such folder.')
    try:
        if name.lower() == 'torch/stl10':
            return STL10(root, _STL10_SPLITS.get(split, split), download=bool(kwargs.get('download')))
        if name == '' and not kwargs.get('class_map') and is_tiny_imagenet(root):
            return create_tiny_imagenet(root, split, input_img_mode=kwargs.get('input_img_mode') or 'RGB')
        return create_timm_dataset(name, root=root, split=split, **kwargs)
    except (AssertionError, RuntimeError, FileNotFoundError, ValueError) as error:
        raise OptionError(f'--dataset {name!r} --data-dir {root}, split {split!r}: {error}') from error


def class_index(dataset):
    """Mapping from class name to class index where the data set knows it, else None."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    source = getattr(dataset, 'reader', dataset)
    index = getattr(source, 'class_to_idx', None) or getattr(source, 'class_name_to_idx', None)
    if index is None and isinstance(source, STL10):
        return {name: label for label, name in enumerate(source.classes)}
    return index


def check_classes(train_set, eval_set, num_classes, *, given):
    """Compare the classes of the data with the outputs of the model and with one another.

    Args:
        train_set: training data.
        eval_set: evaluation data or None.
        num_classes: outputs of the model.
        given: True if the user gave `--num-classes`.

    Raises:
        OptionError: for more classes than outputs, a number that `--num-classes` contradicts, or a class that has
            another index in the evaluation data.
    """
    train_classes = class_index(train_set)
    eval_classes = class_index(eval_set) if eval_set is not None else None
    if train_classes is None:
        return
    found = max(train_classes.values()) + 1
    if found > num_classes or (given and found != num_classes):
        raise OptionError(f'--num-classes {num_classes}: the training data has {found} classes.')
    if found < num_classes:
        _logger.warning(f'The model has {num_classes} outputs for {found} classes; --num-classes {found} fits.')
    for name, index in (eval_classes or {}).items():
        if train_classes.get(name) != index:
            raise OptionError(
                f'--val-split: class {name!r} has index {index} there and {train_classes.get(name)} in training; '
                f'are folders missing? --class-map fixes the indices.'
            )


def dataset_kwargs(args, data_config):
    """Arguments that all splits have in common."""
    in_data_folder = os.path.join(args.data_dir or '', args.class_map)
    return dict(
        class_map=in_data_folder if args.class_map and os.path.isfile(in_data_folder) else args.class_map,
        download=args.dataset_download,
        batch_size=args.batch_size,
        seed=args.seed,
        input_img_mode=args.input_img_mode or ('RGB' if data_config['input_size'][0] == 3 else 'L'),
        input_key=args.input_key,
        target_key=args.target_key,
        trust_remote_code=args.dataset_trust_remote_code,
    )


def create_datasets(args, data_config):
    """The training set, and the evaluation set (None without `--val-split`).

    The training set comes back as `Samples`, unless it is iterable.
    """
    root, common = args.data_dir, dataset_kwargs(args, data_config)
    train_set = create_dataset(
        args.dataset,
        root,
        args.train_split,
        is_training=True,
        repeats=args.epoch_repeats,
        num_samples=args.train_num_samples,
        **common,
    )
    train_set = training_samples(train_set, labels_per_class=args.labels_per_class, label_split=args.label_split)
    eval_set = None
    if args.val_split:
        eval_set = create_dataset(
            args.dataset, root, args.val_split, is_training=False, num_samples=args.val_num_samples, **common
        )
        if not isinstance(eval_set, IterableDataset):
            eval_set = Samples(eval_set)
    return train_set, eval_set
