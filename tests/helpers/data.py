"""What the tests of data sets and loaders share: data sets in memory, loaders built by hand, views of this process."""

import gc
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from regaug.data.loaders import TrainLoader
from regaug.data.samples import training_samples
from regaug.training.phases import phase_at
from tests.helpers.training import CPU, train_args

BYTES_CONFIG = {  # delivers the bytes of the images as they are, as floats
    'input_size': (3, 32, 32),
    'interpolation': 'bicubic',
    'mean': (0.0, 0.0, 0.0),
    'std': (1 / 255, 1 / 255, 1 / 255),
    'crop_pct': 1.0,
}


class MemoryDataset(Dataset):
    """A map-style data set of the most general kind: no list of labels, no file names.

    Args:
        images: arrays uint8 [H, W, 3].
        labels: class indices.
    """

    def __init__(self, images, labels):
        self.images = images
        self.labels = labels
        self.transform = None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = Image.fromarray(self.images[index])
        return (image if self.transform is None else self.transform(image)), int(self.labels[index])


def noise_images(count, height=32, width=32, seed=5):
    """`count` images of noise, no part of which is like another: uint8 [count, height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def noise_set(count, height=32, width=32, classes=4):
    """A `MemoryDataset` of noise with labels 0, 1, ..., classes - 1, 0, 1, ..."""
    return MemoryDataset(noise_images(count, height, width), np.arange(count) % classes)


def make_train_data(dataset, *options, config=BYTES_CONFIG, classes=4, rank=0, world_size=1):
    """A `TrainLoader` in its first phase and the options it was made of."""
    args = train_args('--num-classes', classes, *options, rank=rank, world_size=world_size)
    train_data = TrainLoader(
        training_samples(dataset), config, device=CPU, img_dtype=torch.float32, num_classes=classes
    )
    train_data.use(phase_at(0, args))
    return train_data, args


def deliver(train_data):
    """One epoch's images [N, 3, H, W] and targets [N] or [N, K], as the loop gets them."""
    batches = [train_data.mixup_fn(*batch) if train_data.mixup_fn else batch for batch in train_data.loader]
    return tuple(torch.cat([batch[part].clone() for batch in batches]) for part in (0, 1))


def as_bytes(images):
    """Delivered images [N, 3, H, W] of `BYTES_CONFIG` as arrays uint8 [N, H, W, 3]."""
    return images.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


def child_processes():
    """Process ids of this process's children that have not ended."""
    children = set()
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, parent = stat.read_text().rpartition(')')[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state != 'Z':
            children.add(int(stat.parent.name))
    return children


def shared_memory():
    """Blocks of PyTorch's shared memory: those mapped or held open by this process, and those with a name."""
    gc.collect()
    mapped = Path('/proc/self/maps').read_text().count('/torch_')
    opened = 0
    for descriptor in Path('/proc/self/fd').iterdir():
        try:
            opened += '/torch_' in os.readlink(descriptor)
        except FileNotFoundError:
            continue
    named = sum(name.startswith(f'torch_{os.getpid()}_') for name in os.listdir('/dev/shm'))
    return mapped, opened, named
