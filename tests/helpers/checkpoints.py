"""What the tests of checkpoints share: a saver in a folder, a full disk, a dangerous file."""

import errno
import hashlib
import os

import torch

from regaug.training.checkpoints import Saver
from tests.helpers.training import train_args


def create_saver(model, folder, max_history=2):
    """A `Saver` that keeps the files of a run of `model` in a folder."""
    os.makedirs(folder, exist_ok=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    args = train_args('--model', 'test_resnet', '--epochs', 5)
    folders = dict(checkpoint_dir=str(folder), recovery_dir=str(folder))
    return Saver(model, optimizer, args, **folders, max_history=max_history)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')


def hashes(folder):
    """{name: hash of the content} of every file in a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


class Dangerous:
    """Runs a command when it is unpickled by a careless program."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)
