"""What a reader of class folders stumbles over without a word: links in a circle, pipes, folders it may not read."""

import os
from collections.abc import Callable, Set

from regaug.errors import OptionError


def check_tree(folder: str, suffixes: Set[str]):
    """Walk a folder once, as its reader will, through symbolic links.

    Args:
        folder: Where images are looked for, at any depth.
        suffixes: Those of image files.

    Raises:
        OptionError: A link leads back into a folder it lies in, so that the walk has no end; an image is no regular
            file, so that opening it may wait for ever; or a folder cannot be read, which readers pass over.
    """
    waiting = [(folder, (os.path.realpath(folder),))]
    while waiting:
        path, chain = waiting.pop()
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if is_true(entry.is_dir):
                        real = os.path.realpath(entry.path) if entry.is_symlink() else f'{chain[-1]}/{entry.name}'
                        if entry.is_symlink() and real in chain:
                            raise OptionError(f'--data-dir {folder}: the link {entry.path} leads back to {real}.')
                        waiting.append((entry.path, (*chain, real)))
                    elif is_special(entry, suffixes):
                        raise OptionError(f'--data-dir {folder}: the image {entry.path} is no regular file.')
        except OSError as error:
            raise OptionError(f'--data-dir {folder}: {path} cannot be read ({error.strerror}).') from error


def is_special(entry: os.DirEntry, suffixes: Set[str]) -> bool:
    """Whether an entry that is no folder has the name of an image but is a pipe, a socket or a device."""
    is_image = os.path.splitext(entry.name)[1].lower() in suffixes
    return is_image and not is_true(entry.is_file) and os.path.exists(entry.path)


def is_true(test: Callable[[], bool]) -> bool:
    """The answer of a test of a file; False where the file cannot be found, as for a link to itself."""
    try:
        return test()
    except OSError:
        return False
