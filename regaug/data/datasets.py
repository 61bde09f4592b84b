"""Data sets: timm's factory, what it lacks, and checks of what is in them."""

import logging
import os
from argparse import Namespace
from typing import Any

import torch
from timm.data import create_dataset as create_timm_dataset
from timm.data.target_transforms import MultiLabelTarget
from torch.utils.data import IterableDataset
from torchvision.datasets import STL10

from regaug.data.channels import image_mode, input_channels
from regaug.data.digits import create_digits
from regaug.data.folders import check_tree
from regaug.data.probe import check_samples
from regaug.data.samples import DataError, Samples, training_samples
from regaug.data.splits import EVALUATION, TRAINING, check_splits, check_tar, image_suffixes, is_folder, split_folder
from regaug.data.tiny_imagenet import create_tiny_imagenet, is_tiny_imagenet
from regaug.errors import OptionError, one_line

_logger = logging.getLogger('train')
_STL10_SPLITS = {**dict.fromkeys(TRAINING, 'train'), **dict.fromkeys(EVALUATION, 'test')}
# Of these timm takes the test images for any name but that of the training split.
_TWO_SPLITS = tuple(f'torch/{name}' for name in ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist'))


def create_dataset(name: str, root: Any, split: str, *, option: str = '--split', **kwargs):
    """Create a data set by timm's factory, or one that timm lacks.

    These are the embedded digits for the name `regaug/digits`, torchvision's STL-10 for `torch/stl10` and, for a folder
    in which Tiny-ImageNet has been unpacked, Tiny-ImageNet.

    Args:
        name: timm's data set name (`''` for a folder, `torch/...`, `hfds/...`, `wds/...`, ...) or one of ours.
        root: folder of the data.
        split: name of the split.
        option: the option that named the split, for messages.
        **kwargs: further arguments of `timm.data.create_dataset`.

    Raises:
        OptionError: when the folder is missing or holds no image, there is no such data set or split, or it cannot be
            downloaded.
    """
    if name == 'regaug/digits':
        return create_digits(split, input_img_mode=kwargs.get('input_img_mode'))
    from_torch = name.lower().startswith('torch/')
    if (is_folder(name) or from_torch) and (root is None or not os.path.exists(root)) and not kwargs.get('download'):
        raise OptionError(f'--data-dir {root}: there is no such folder.')
    if name.lower() in _TWO_SPLITS and split not in (*TRAINING, *EVALUATION, 'test'):
        raise OptionError(f'{option} {split}: --dataset {name} has the splits train and test.')
    try:
        if name.lower() == 'torch/stl10':
            return STL10(root, _STL10_SPLITS.get(split, split), download=bool(kwargs.get('download')))
        if name == '' and not kwargs.get('class_map') and is_tiny_imagenet(root):
            return create_tiny_imagenet(root, split, input_img_mode=kwargs.get('input_img_mode') or 'RGB')
        if is_folder(name):
            return create_folder(name, root, split, option=option, **kwargs)
        return create_timm_dataset(name, root=root, split=split, **kwargs)
    except OptionError:
        raise
    except (AssertionError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        given = f'--dataset {name!r} --data-dir {root}' + (' --dataset-download' if kwargs.get('download') else '')
        class_map = kwargs.get('class_map')
        given += f' --class-map {class_map}' if class_map and isinstance(class_map, str) else ''
        raise OptionError(f'{given}, split {split!r}: {one_line(error)}') from error


def create_folder(name: str, root: Any, split: str, *, option: str, **kwargs):
    """The data set of a folder of class folders, or of a .tar file; arguments and errors as for `create_dataset`."""
    if kwargs.get('target_key') or kwargs.get('target_format'):
        raise OptionError(
            f'--target-key, --target-format: the images of --dataset {name!r} have their folder as label.'
        )
    suffixes = image_suffixes(kwargs.get('input_key'))
    folder = split_folder(root, split, option, suffixes)
    if os.path.isdir(folder):
        check_tree(folder, suffixes)
    dataset = create_timm_dataset(name, root=folder, split=split, search_split=False, **kwargs)
    if os.path.isfile(root):
        check_tar(root, split, option, (sample[0].path for sample in dataset.reader.samples))
    return dataset


def class_index(dataset: Any):
    """Mapping from class name to class index where the data set knows it, else None."""
    while hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    source = getattr(dataset, 'reader', dataset)
    if getattr(source, 'dense_target', False):  # the names are those of a label's values, not of the labels
        return None
    index = getattr(source, 'class_to_idx', None) or getattr(source, 'class_name_to_idx', None)
    if index is None and isinstance(source, STL10):
        return {name: label for label, name in enumerate(source.classes)}
    return index


def check_classes(train_set: Any, eval_set: Any, num_classes: int, *, given: bool):
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


def target_kwargs(args: Namespace, num_classes: int):
    """Arguments of `create_dataset` that say what the labels are."""
    if args.task != 'multilabel':
        return dict(target_key=args.target_key)
    dense = args.target_format == 'multihot'
    return dict(
        target_key=args.target_key,
        target_format=args.target_format,
        target_transform=LabelVector(num_classes, dense=dense),
    )


class LabelVector(MultiLabelTarget):
    """timm's label vector float32 [K] of an image's labels, with one line for labels that it cannot be made of."""

    def __call__(self, target: torch.Tensor):
        try:
            return super().__call__(target)
        except (TypeError, ValueError) as error:
            raise DataError(f'--task multilabel --num-classes {self.num_classes}: {error}') from error


def check_data(args: Namespace):
    """What the options and the folders' names tell of the data, before a model is built.

    Raises:
        OptionError: when a split is missing, training and evaluation read the same images, or images have another
            number of channels than the model.
    """
    check_splits(args)
    if not args.dataset.lower().startswith('torch/'):  # torchvision's images stay as they are
        image_mode(args.input_img_mode, input_channels(args))


def class_map_path(path: str, root: str | None) -> str:
    """Where `--class-map` is: in the folder of the data, or as given, which timm also seeks in the split's."""
    in_data_folder = os.path.join(root or '', path)
    return in_data_folder if path and os.path.isfile(in_data_folder) else path


def dataset_kwargs(args: Namespace, data_config: dict[str, Any]):
    """Arguments of `create_dataset` that all splits have in common."""
    return dict(
        class_map=class_map_path(args.class_map, args.data_dir),
        download=args.dataset_download,
        batch_size=args.batch_size,
        seed=args.seed,
        input_img_mode=image_mode(args.input_img_mode, data_config['input_size'][0]),
        input_key=args.input_key,
        trust_remote_code=args.dataset_trust_remote_code,
        **target_kwargs(args, args.num_classes),
    )


def create_datasets(args: Namespace, data_config: dict[str, Any]):
    """The training set, and the evaluation set (None without `--val-split`).

    Unless they are iterable, they come back as `Samples` of which some can be read.
    """
    root, channels, common = args.data_dir, data_config['input_size'][0], dataset_kwargs(args, data_config)
    train_set = create_dataset(
        args.dataset,
        root,
        args.train_split,
        option='--train-split',
        is_training=True,
        repeats=args.epoch_repeats,
        num_samples=args.train_num_samples,
        **common,
    )
    train_set = training_samples(train_set, labels_per_class=args.labels_per_class, label_split=args.label_split)
    check_samples(train_set, channels, f'--data-dir {root} --train-split {args.train_split}')
    eval_set = None
    if args.val_split:
        eval_set = create_dataset(
            args.dataset,
            root,
            args.val_split,
            option='--val-split',
            is_training=False,
            num_samples=args.val_num_samples,
            **common,
        )
        if not isinstance(eval_set, IterableDataset):
            eval_set = Samples(eval_set, leave_out=True)
        check_samples(eval_set, channels, f'--data-dir {root} --val-split {args.val_split}')
    return train_set, eval_set
