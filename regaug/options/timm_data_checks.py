"""Data, augmentation and loaders: what timm notices late or never, and trials of what it refuses."""

import difflib
import math
from argparse import Namespace
from pathlib import Path

from PIL import ImageMode
from timm.data import create_transform
from timm.data.readers.class_map import load_class_map
from timm.data.readers.targets import check_target_format, parse_target_keys
from timm.data.scheduled_sampler import ScheduledBatchSampler
from timm.data.transforms import str_to_interp_mode
from timm.utils import is_distributed_env

from regaug.errors import OptionError
from regaug.options.parser import naming, refuse_with, require, require_known, require_package, shown, value_of

PACKAGES = {'hfds': 'datasets', 'hfids': 'datasets', 'tfds': 'tensorflow_datasets', 'wds': 'webdataset'}
_KINDS = ', '.join(f'{kind}/' for kind in PACKAGES)
STREAMS = ('hfids', 'tfds', 'wds')
TORCHVISION_POLICIES = ('tv-cifar10', 'tv-svhn', 'tv-imagenet', 'trivial')
_SMALL = ('cifar10', 'cifar100', 'mnist', 'kmnist', 'fashion_mnist', 'qmnist')
TORCH_DATASETS = (*_SMALL, 'stl10', 'imagenet', 'places365', 'inaturalist', 'inat', 'image_folder', 'folder')
# What people write, and how timm writes it.
POLICIES = {name: name for name in ('original', 'originalr', 'v0', 'v0r', '3a')}
POLICIES |= {'rand': 'rand-m9-mstd0.5-inc1', 'randaugment': 'rand-m9-mstd0.5-inc1', 'augmix': 'augmix-m5-w4-d2'}
POLICIES |= {'autoaugment': 'original', '3augment': '3a'}


def check(args: Namespace):
    """Check train.py's options of data, loaders and augmentation."""
    check_input(args)
    check_dataset(args)
    check_task(args, '--jsd-loss', '--kd-model-name')
    check_loaders(args)
    check_scheduled_sizes(args)
    check_transforms(args)
    check_mixing(args)
    check_splits(args)


def check_input(args: Namespace):
    """Check sizes and statistics that timm's data configuration asserts on."""
    channels, *sides = args.input_size or (args.in_chans or 3, args.img_size, args.img_size)
    last = args.input_size and sides[-1] <= 4 < channels
    require(args, '--input-size', not last, f'channels come first: --input-size {sides[-1]} {channels} {sides[0]}')
    square = args.img_size is None or sides == [args.img_size] * 2
    require(args, '--img-size', square, f'contradicts {shown(args, "--input-size")}')
    same = args.in_chans in (None, channels)
    require(args, '--input-size', same, f'its first number contradicts {shown(args, "--in-chans")}')
    for flag in ('--mean', '--std'):
        fits = len(value_of(args, flag) or [0]) in (1, channels)
        require(args, flag, fits, f'needs one value, or one for each of the {channels} input channels')
    check_interpolation(args, '--interpolation', '')
    if args.input_img_mode:
        with naming(args, '--input-img-mode', hint='try RGB or L'):
            ImageMode.getmode(args.input_img_mode)


def check_interpolation(args: Namespace, flag: str, *besides: str):
    """Make sure that timm knows an interpolation, or that it is one of the further words."""
    if value_of(args, flag) not in besides:
        with naming(args, flag, hint='try bilinear or bicubic'):
            str_to_interp_mode(value_of(args, flag))


def check_dataset(args: Namespace):
    """Check the name of the data set, and the folder and the class map that it needs."""
    prefix, name = split_dataset_name(args)
    require_known(args, '--dataset', prefix, ('', 'torch', 'regaug', *PACKAGES), 'kind of data set')
    if prefix == 'regaug':
        require_known(args, '--dataset', args.dataset, ('regaug/digits',))
        return refuse_with(args, '--dataset', ['--data-dir', 'data'], 'these images come with regaug')
    if prefix in PACKAGES:
        require_package(args, '--dataset', PACKAGES[prefix])
    if prefix == 'torch':
        require_known(args, '--dataset', name.lower(), TORCH_DATASETS, 'data set')
    folder = args.data_dir or args.data
    same = args.data in (None, folder)
    require(args, '--data-dir', same, f'contradicts the folder {args.data}')
    if not folder and prefix in ('', 'torch', 'wds'):
        raise OptionError(f'--data-dir: {shown(args, "--dataset")} needs a folder; none was given')
    if prefix in ('', 'torch'):  # others may have an address: only reading shows whether it is there
        check_folder(args, '--data-dir' if args.data_dir else 'data', may_be_missing=prefix and args.dataset_download)
    if args.class_map and prefix != 'torch':
        # As given, in the data folder, or (where timm looks) in the folder of a split.
        paths = [Path(folder or '') / args.class_map, *Path(folder or '').glob(f'*/{args.class_map}')]
        found = next((str(path) for path in paths if path.is_file()), args.class_map)
        with naming(args, '--class-map'):
            load_class_map(args.class_map if Path(args.class_map).is_file() else found)


def split_dataset_name(args: Namespace) -> tuple[str, str]:
    """Return kind (lower case, empty for a folder) and name of `--dataset`."""
    prefix, slash, name = args.dataset.partition('/')
    return (prefix.lower(), name) if slash else ('', args.dataset)


def check_folder(args: Namespace, flag: str, *, may_be_missing: bool):
    """Make sure that the folder (or .tar file) of the data is there, and is not empty."""
    path = Path(value_of(args, flag))
    require(args, flag, path.exists() or may_be_missing, 'there is no such folder')
    require(args, flag, not path.is_file() or path.suffix == '.tar', 'this file is neither a folder nor a .tar file')
    empty = path.is_dir() and not may_be_missing and next(path.iterdir(), None) is None
    require(args, flag, not empty, 'the folder is empty')


def check_task(args: Namespace, *single: str):
    """Check what several labels an image need, and that no option (`single`) counts on one."""
    with naming(args, '--target-key', '--target-format'):
        keys = parse_target_keys(args.target_key)
        check_target_format(args.target_format, keys)
    kind = split_dataset_name(args)[0]
    if args.task != 'multilabel':
        require(args, '--target-key', not keys, 'several labels an image need --task multilabel')
        dense = args.target_format == 'multihot'
        return require(args, '--target-format', not dense, 'several labels an image need --task multilabel')
    require(args, '--task', kind in PACKAGES, f'{shown(args, "--dataset")} has one label an image, as all but {_KINDS}')
    named = args.target_key or kind != 'wds'
    require(args, '--target-key', named, f'{shown(args, "--dataset")} has its labels under a key, which is not given')
    fits = not keys or args.num_classes == len(keys)
    require(args, '--num-classes', fits, f'must be {len(keys or ())}, the fields of {shown(args, "--target-key")}')
    refuse_with(args, '--task', single, 'that is for one label an image')


def refuse_stream(args: Namespace, flag: str, why: str):
    """Raise an `OptionError` if an option is on and the data set is a stream, without length and index."""
    stream = value_of(args, flag) and split_dataset_name(args)[0] in STREAMS
    require(args, flag, not stream, f'does not go with {shown(args, "--dataset")} ({why})')


def check_loaders(args: Namespace):
    """Check what timm's loaders refuse, or fail on later."""
    repeated = not args.aug_repeats or is_distributed_env()
    require(args, '--aug-repeats', repeated, 'needs several processes, started by torchrun')
    samples = args.train_num_samples if split_dataset_name(args)[0] in STREAMS else None
    batches = args.train_batches_per_epoch or (math.ceil(samples / args.batch_size) if samples else math.inf)
    in_time = args.grad_accum_steps <= batches
    require(args, '--grad-accum-steps', in_time, f'an epoch has {batches} batches only')
    refuse_stream(args, '--aug-repeats', 'a stream cannot be repeated')
    refuse_stream(args, '--use-multi-epochs-loader', 'it then has no length')
    refuse_stream(args, '--train-img-sizes', 'a stream cannot be scheduled')
    refuse_stream(args, '--naflex-loader', 'it takes no streams')
    others = ['--aug-repeats', '--aug-splits', '--jsd-loss', '--use-multi-epochs-loader']
    refuse_with(args, '--naflex-loader', others, "timm's NaFlex loader has none of it")
    probs, sizes = args.naflex_patch_size_probs or [1], args.naflex_patch_sizes or []
    fits = args.naflex_patch_size_probs is None or len(probs) == len(sizes)
    require(args, '--naflex-patch-size-probs', fits, f'needs as many values as {shown(args, "--naflex-patch-sizes")}')
    require(args, '--naflex-patch-size-probs', sum(probs) > 0, 'at least one must be above 0')


def check_scheduled_sizes(args: Namespace):
    """Check what timm's loader of scheduled sizes refuses, and let timm build the sampler."""
    sizes = args.train_img_sizes
    if not sizes:
        for flag in ('--train-batch-sizes', '--train-size-probs', '--train-batches-per-epoch'):
            require(args, flag, not value_of(args, flag), 'works with --train-img-sizes only, which is not given')
        constant = args.train_size_schedule == 'constant'
        return require(args, '--train-size-schedule', constant, 'needs several --train-img-sizes')
    batch_sizes = args.train_batch_sizes or [args.batch_size] * len(sizes)
    as_many = len(batch_sizes) == len(sizes)
    require(args, '--train-batch-sizes', as_many, f'needs as many values as {shown(args, "--train-img-sizes")}')
    others = ['--use-multi-epochs-loader', '--aug-splits', '--naflex-loader']
    refuse_with(args, '--train-img-sizes', others, "timm's loader cannot combine them")
    progress = {'choice_schedule': args.train_size_schedule, 'schedule_epochs': args.epochs}
    with naming(args, '--train-img-sizes', '--train-size-probs', '--train-size-schedule', '--epochs'):
        ScheduledBatchSampler(range(2 * sum(batch_sizes)), batch_sizes, args.train_size_probs, **progress)


def check_transforms(args: Namespace):
    """Check pairs of numbers, and let timm read interpolation and policy."""
    check_interpolation(args, '--train-interpolation', '', 'random')
    for flag in ('--scale', '--ratio', '--cutmix-minmax'):
        value = value_of(args, flag) or [0, 1]
        ordered = len(value) == 2 and 0 <= value[0] <= value[1]
        require(args, flag, ordered, 'needs two values, the smaller one first')
    if args.aa in TORCHVISION_POLICIES:
        refuse_with(args, '--aa', ['--naflex-loader'], "that loader has timm's policies only")
    elif args.aa:
        near = [POLICIES[name] for name in difflib.get_close_matches(args.aa.split('-')[0], POLICIES)]
        examples = ', '.join(dict.fromkeys(near or POLICIES.values()))
        with naming(args, '--aa', hint=f'a policy is written as in {examples}'):
            create_transform(224, is_training=True, auto_augment=args.aa)


def mixing_flags(args: Namespace) -> list[str]:
    """Return the options that switch mixing on."""
    return [flag for flag in ('--mixup', '--cutmix', '--cutmix-minmax') if value_of(args, flag)]


def check_mixing(args: Namespace):
    """Check the mode of mixing, and that batches are even where images are mixed in pairs."""
    # 'half' exists in timm's collate function only.
    modes = ('batch', 'pair', 'elem') if args.no_prefetcher else ('batch', 'pair', 'elem', 'half')
    require_known(args, '--mixup-mode', args.mixup_mode, modes)
    mixing = mixing_flags(args)
    # The NaFlex loader and MaxUp pair the images of a batch in their own ways, whatever their number.
    if mixing and not args.naflex_loader and not args.maxup:
        flag = '--train-batch-sizes' if args.train_batch_sizes else '--batch-size'
        even = all(size % 2 == 0 for size in args.train_batch_sizes or [args.batch_size])
        require(args, flag, even, f'must be even, since {shown(args, mixing[0])} mixes images in pairs')


def check_splits(args: Namespace):
    """Check augmentation splits, the loss and the batch-norm that go with them."""
    on = args.aug_splits
    require(args, '--jsd-loss', on or not args.jsd_loss, f'needs --aug-splits of 2 or more, not {on}')
    halves = args.split_bn and not on
    require(args, '--split-bn', args.resplit or not halves, f'needs --aug-splits of 2 or more, not {on}, or --resplit')
    even = not halves or args.batch_size % 2 == 0
    require(args, '--batch-size', even, 'must be even, since --split-bn with --resplit halves the batch')
    require(args, '--aug-splits', on != 1, 'must be 0 (off), or 2 and more')
    refuse_with(args, '--aug-splits', mixing_flags(args), 'views of one image are not mixed')
    refuse_with(args, '--aug-splits', ['--no-aug'], 'there is nothing to split')
    refuse_with(args, '--aug-splits', ['--no-prefetcher'], 'only the collate function of the prefetcher joins views')
    refuse_stream(args, '--aug-splits', 'views are made by index, which a stream has not')
