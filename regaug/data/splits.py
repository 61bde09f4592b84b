"""Where the images of a split lie: timm's search, without its silent fall-back to the whole data folder.

timm takes the data folder itself for a split that has no folder of its own, and a .tar file for any split. That serves
those who point at the folder of one split; a mistyped name mixes training and evaluation images.
"""

import os
from argparse import Namespace
from collections.abc import Iterable, Set
from pathlib import PurePosixPath

from timm.data.readers.img_extensions import get_img_extensions
from torchvision.datasets.folder import IMG_EXTENSIONS

from regaug.errors import OptionError

# Names that mean the same split, as timm knows them.
TRAINING = ('train', 'training')
EVALUATION = ('val', 'valid', 'validation', 'eval', 'evaluation')
_SPLITS = {*TRAINING, *EVALUATION, 'test', 'testing'}
_SHOWN = 10


def is_folder(name: str) -> bool:
    """Whether a data set of that name is read from class folders (or a .tar file of them)."""
    return '/' not in name or name.lower() in ('torch/image_folder', 'torch/folder')


def image_suffixes(input_key: str | None = None) -> set[str]:
    """Suffixes of the files that a folder's reader takes for images."""
    return set(input_key.split(';')) if input_key else {*get_img_extensions(), *IMG_EXTENSIONS}


def split_folder(root: str, split: str | None, option: str, suffixes: Set[str]) -> str:
    """Find the folder of a split as timm does: by its name, or one of its other names.

    The data folder itself is the split where its sub-folders are the classes, and where the split is left empty.

    Args:
        root: The data folder, or a .tar file.
        split: Name of the split.
        option: The option that named it, for messages.
        suffixes: Those of image files.

    Raises:
        OptionError: There is no such split; the message names those there are.
    """
    if not split:
        return root
    if os.path.isfile(root):
        if split not in _SPLITS:
            raise OptionError(f'{option} {split}: the .tar file {root} has no splits.')
        return root
    if '[' in split:
        raise OptionError(f'{option} {split}: folders are read whole, not in slices.')
    for name in (split, *synonyms(split)):
        if os.path.exists(os.path.join(root, name)):
            return os.path.join(root, name)
    folders = sub_folders(root)
    if holds_classes(root, folders, suffixes):
        return root
    shown = ', '.join(folders[:_SHOWN]) + (', ...' if len(folders) > _SHOWN else '')
    raise OptionError(f'{option} {split}: there is no such folder in {root}, there are {shown or "none"}.')


def synonyms(split: str) -> tuple[str, ...]:
    """All names of a split."""
    return next((names for names in (TRAINING, EVALUATION) if split in names), (split,))


def sub_folders(folder: str) -> list[str]:
    """Sorted names of the folders in a folder, and of the .tar files, which may be splits too."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() or entry.name.endswith('.tar')]
    return sorted(name for name in names if not name.startswith('.'))


def holds_classes(root: str, folders: Iterable[str], suffixes: Set[str]) -> bool:
    """Whether images lie in a folder's sub-folders, or in itself, and no sub-folder is one of splits."""
    holding = {name: holds_images(os.path.join(root, name), suffixes) for name in folders if not name.endswith('.tar')}
    splits = any(name.lower() in _SPLITS and not holds for name, holds in holding.items())
    return not splits and (any(holding.values()) or holds_images(root, suffixes))


def holds_images(folder: str, suffixes: Set[str]) -> bool:
    """Whether an image lies in a folder itself; False for one that may not be read."""
    try:
        with os.scandir(folder) as entries:
            return any(os.path.splitext(entry.name)[1].lower() in suffixes for entry in entries)
    except OSError:
        return False


def check_tar(root: str, split: str | None, option: str, names: Iterable[str]):
    """Refuse a .tar file that holds other splits than the one that is asked for: timm reads it whole.

    Args:
        root: The file.
        split: Name of the split.
        option: The option that named it.
        names: Paths of the images in it.

    Raises:
        OptionError: It holds folders of other splits.
    """
    tops = {parts[0] for name in names if len(parts := PurePosixPath(name).parts) > 2}
    others = sorted(top for top in tops if top.lower() in _SPLITS and top not in synonyms(split or ''))
    if split and others:
        raise OptionError(
            f'{option} {split}: timm reads {root} as a whole, and there is {", ".join(others)} in it; unpack it.'
        )


def check_splits(args: Namespace):
    """Make sure that train.py trains and evaluates on two folders, neither of which lies in the other.

    Raises:
        OptionError: There is no such split, or both would read the same images.
    """
    root = args.data_dir
    if not is_folder(args.dataset) or not root or not os.path.exists(root):
        return
    suffixes = image_suffixes(args.input_key)
    training = split_folder(root, args.train_split, '--train-split', suffixes)
    if not args.val_split:
        return
    evaluation = split_folder(root, args.val_split, '--val-split', suffixes)
    paths = [os.path.realpath(path) for path in (training, evaluation)]
    if os.path.commonpath(paths) in paths:
        raise OptionError(
            f'--val-split {args.val_split}: evaluation would read images of --train-split {args.train_split!r}, '
            f"those in {max(paths, key=len)}; --val-split '' trains without evaluation."
        )


def check_evaluation_split(args: Namespace):
    """Make sure that the split which validate.py evaluates is there.

    Raises:
        OptionError: There is no such split.
    """
    root = args.data or args.data_dir
    if is_folder(args.dataset) and root and os.path.exists(root):
        split_folder(root, args.split, '--split', image_suffixes(args.input_key))
