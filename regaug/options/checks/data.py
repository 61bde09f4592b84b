"""Data sets, and what timm's loaders refuse."""

from argparse import Namespace
from pathlib import Path

from PIL import ImageMode
from timm.utils import is_distributed_env

from regaug.errors import OptionError
from regaug.options.checks.require import (
    refuse_with,
    require,
    require_known,
    require_one_of,
    require_package,
    spell,
    value_of,
)

EMBEDDED = ('regaug/digits',)
PACKAGES = {'hfds': 'datasets', 'hfids': 'datasets', 'tfds': 'tensorflow_datasets', 'wds': 'webdataset'}
ITERABLE = ('hfids', 'tfds', 'wds')
PREFIXES = ('', 'torch', 'regaug', *PACKAGES)
TORCH_DATASETS = (
    'cifar10',
    'cifar100',
    'stl10',
    'mnist',
    'kmnist',
    'fashion_mnist',
    'qmnist',
    'imagenet',
    'places365',
    'inaturalist',
    'inat',
    'image_folder',
    'folder',
)


def check_dataset(args: Namespace):
    """The name of the data set, and the folder it needs."""
    prefix, name = split_dataset_name(args)
    require_known(args, '--dataset', prefix in PREFIXES, 'kind of data set', prefix, PREFIXES)
    if prefix == 'regaug':
        require_one_of(args, '--dataset', EMBEDDED)
    elif prefix == 'torch':
        require_known(args, '--dataset', name.lower() in TORCH_DATASETS, 'data set', name.lower(), TORCH_DATASETS)
        check_folder(args, may_be_missing=args.dataset_download)
    elif prefix in PACKAGES:
        require_package(args, '--dataset', PACKAGES[prefix])
        if prefix == 'wds':
            # May be the address of a bucket: only reading shows whether it is there.
            require_folder(args)
    else:
        check_folder(args)
    if args.class_map and prefix not in ('regaug', 'torch'):
        check_class_map(args)
    check_image_mode(args)


def split_dataset_name(args: Namespace) -> tuple[str, str]:
    """Kind (lower case, empty for a folder) and name of `--dataset`."""
    prefix, slash, name = args.dataset.partition('/')
    return (prefix.lower(), name) if slash else ('', args.dataset)


def data_folder(args: Namespace) -> str | None:
    return args.data_dir or args.data


def require_folder(args: Namespace) -> str:
    folder = data_folder(args)
    if not folder:
        raise OptionError(f'--data-dir: {spell(args, "--dataset")} needs a folder; none was given')
    return folder


def check_folder(args: Namespace, *, may_be_missing: bool = False):
    """Makes sure that the folder (or .tar file) of the data is given, is there, and is not empty."""
    folder = require_folder(args)
    flag = '--data-dir' if args.data_dir else 'data'
    path = Path(folder)
    require(args, flag, path.exists() or may_be_missing, 'there is no such folder')
    require(args, flag, not path.is_file() or path.suffix == '.tar', 'this file is neither a folder nor a .tar file')
    empty = path.is_dir() and not may_be_missing and next(path.iterdir(), None) is None
    require(args, flag, not empty, 'the folder is empty')


def check_class_map(args: Namespace):
    folder = Path(data_folder(args) or '')
    # As given, in the data folder, or (where timm looks) in the folder of a split.
    places = [Path(args.class_map), folder / args.class_map, *folder.glob(f'*/{args.class_map}')]
    found = any(path.is_file() for path in places)
    require(args, '--class-map', found, 'there is no such file, not in the data folder either')
    require(args, '--class-map', Path(args.class_map).suffix.lower() in ('.txt', '.pkl'), 'must be a .txt or .pkl file')


def check_image_mode(args: Namespace):
    if args.input_img_mode:
        try:
            ImageMode.getmode(args.input_img_mode)
        except KeyError:
            raise OptionError(f'{spell(args, "--input-img-mode")}: PIL has no such mode, try RGB or L') from None


def is_iterable(args: Namespace) -> bool:
    """Whether the data set is a stream, without length and index."""
    return split_dataset_name(args)[0] in ITERABLE


def refuse_iterable(args: Namespace, flag: str, why: str):
    require(args, flag, not is_iterable(args), f'does not go with {spell(args, "--dataset")} ({why})')


def check_repeats(args: Namespace):
    if args.aug_repeats:
        require(args, '--aug-repeats', is_distributed_env(), 'needs several processes, started by torchrun')
        refuse_iterable(args, '--aug-repeats', 'a stream cannot be repeated')
    if args.use_multi_epochs_loader:
        refuse_iterable(args, '--use-multi-epochs-loader', 'it then has no length')


def check_updates_per_epoch(args: Namespace):
    if args.updates_per_epoch:
        refuse_iterable(args, '--updates-per-epoch', 'a stream is not repeated by index')
        others = ['--train-img-sizes', '--aug-repeats', '--use-multi-epochs-loader', '--naflex-loader']
        refuse_with(args, '--updates-per-epoch', others, 'it brings an order of the images of its own')


def check_subset(args: Namespace):
    if args.labels_per_class:
        refuse_iterable(args, '--labels-per-class', 'a subset is made of indices, which a stream has not')
    chooses = args.labels_per_class or not args.label_split
    require(args, '--label-split', chooses, 'chooses among the subsets of --labels-per-class, which is not given')


def check_scheduled_sizes(args: Namespace):
    """What timm's loader and sampler of scheduled sizes refuse."""
    sizes = args.train_img_sizes
    if not sizes:
        for flag in ('--train-batch-sizes', '--train-size-probs', '--train-batches-per-epoch'):
            require(args, flag, not value_of(args, flag), 'works with --train-img-sizes only, which is not given')
        schedule = args.train_size_schedule
        require(args, '--train-size-schedule', schedule == 'constant', 'needs several --train-img-sizes')
        return
    for flag in ('--train-batch-sizes', '--train-size-probs'):
        given = value_of(args, flag)
        fits = given is None or len(given) == len(sizes)
        require(args, flag, fits, f'needs as many values as {spell(args, "--train-img-sizes")}')
    probs = args.train_size_probs
    require(args, '--train-size-probs', probs is None or sum(probs) > 0, 'at least one must be above 0')
    if args.train_size_schedule == 'progressive':
        require(args, '--train-img-sizes', len(sizes) > 1, '--train-size-schedule progressive needs at least two')
        require(args, '--epochs', args.epochs > 0, 'leaves no time for --train-size-schedule progressive')
    refuse_with(
        args,
        '--train-img-sizes',
        ['--use-multi-epochs-loader', '--aug-splits', '--naflex-loader'],
        "timm's loader cannot combine them",
    )
    refuse_iterable(args, '--train-img-sizes', 'a stream cannot be scheduled')


def check_naflex(args: Namespace):
    """What timm's NaFlex loader refuses."""
    probs, sizes = args.naflex_patch_size_probs, args.naflex_patch_sizes
    if probs is not None:
        fits = sizes is not None and len(probs) == len(sizes)
        require(
            args, '--naflex-patch-size-probs', fits, f'needs as many values as {spell(args, "--naflex-patch-sizes")}'
        )
        require(args, '--naflex-patch-size-probs', sum(probs) > 0, 'at least one must be above 0')
    if args.naflex_loader:
        others = ['--aug-repeats', '--aug-splits', '--jsd-loss', '--use-multi-epochs-loader']
        refuse_with(args, '--naflex-loader', others, "timm's NaFlex loader has none of it")
        refuse_iterable(args, '--naflex-loader', 'it takes no streams')
