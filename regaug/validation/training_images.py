"""The training images of a run as it augmented them, the same for any number of processes and workers.

What is random about an image depends on the seed and its place alone, what is random about a batch (mixing) on the
seed and its number. Batches are dealt out to the processes whole, since mixing makes them depend on their neighbours.
"""

import random
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.data import Mixup, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from regaug.data.channels import fit_channels, input_channels
from regaug.data.loaders import create_train_loader, mixing_active
from regaug.data.samples import training_samples
from regaug.errors import OptionError
from regaug.options import parse_train
from regaug.seeds import derived_seed
from regaug.training.phases import Phase, refinement

# Augmentation that looks at the network or reaches into it, and what makes batches of another kind.
_NOT_OF_THE_IMAGE = ('maxup', 'uada', 'manifold_mixup', 'aug_splits', 'train_img_sizes', 'naflex_loader')


@contextmanager
def seeded(*parts: Any) -> Iterator[None]:
    """Seed the three CPU generators from some values; restore them on exit."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    value = derived_seed(*parts)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededImages(Dataset):
    """A map-style data set whose transform draws from the seed and the place of the image alone."""

    def __init__(self, dataset: Dataset, seed: int):
        self.dataset = dataset
        self.seed = seed

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index: Any):
        with seeded('risk image', self.seed, index):
            return self.dataset[index]


class TrainingImages:
    """The training set of a run.

    Args:
        path: `args.yaml` of the run.
        data: `EvaluationData`: the same data set.
        model: The full network.

    Raises:
        OptionError: The file is no options of a run, the run was on other data, or its augmentation depends on more
            than the images.
    """

    def __init__(self, path: str, data: Any, model: nn.Module):
        self.path = path
        self.train_args = self._read(data.args)
        self._check_data(data)
        split = self.train_args.train_split
        dataset = data.open(split)
        if isinstance(dataset, IterableDataset):
            self._refuse(f'the split {split} is a stream')
        subset = {name: getattr(self.train_args, name) for name in ('labels_per_class', 'label_split')}
        self.samples = training_samples(dataset, **subset)
        data_config = resolve_data_config(vars(self.train_args), model=model)
        self.data_config = fit_channels(data_config, input_channels(self.train_args))
        self.batch_size = data.args.batch_size

    def batches(self, kind: str, data: Any) -> tuple[Iterable, int]:
        """The batches of this process on the device, and how many.

        Args:
            kind: 'clean' (the evaluation transform), 'crop_flip' or 'augmented'.
            data: `EvaluationData`.
        """
        if kind == 'clean':
            loader = data.loader(self.samples)
            return data.batches(loader), len(loader)
        phase = Phase('main', self.train_args, padding=self.train_args.pad_crop)
        phase = refinement(phase) if kind == 'crop_flip' else phase
        self._set_transform(phase, data)
        seed, rank, world_size = data.args.seed, data.args.rank, data.args.world_size
        order = torch.randperm(len(self.samples), generator=torch.Generator().manual_seed(seed)).tolist()
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        numbers = range(rank, len(batches), world_size)
        loader = DataLoader(
            SeededImages(self.samples, seed),
            batch_sampler=[batches[number] for number in numbers],
            num_workers=data.args.workers,
        )
        mixup = self._mixup(phase.options, data)
        return self._mixed(loader, numbers, mixup, data), len(loader)

    def _mixed(self, loader: Iterable, numbers: Iterable[int], mixup: Mixup | None, data: Any) -> Iterator:
        for number, (input, target) in zip(numbers, loader):
            if mixup is not None:
                even = len(target) // 2 * 2  # timm mixes in pairs
                with seeded('risk batch', data.args.seed, number):
                    input, target = mixup(input[:even], target[:even])
            yield data.to_device(input), target.to(data.device)

    def _set_transform(self, phase: Phase, data: Any):
        """Give the images the transform of training: that of timm's loader, complete without its prefetcher."""
        alone = {'workers': 0, 'batch_size': 1, 'distributed': False, 'rank': 0, 'world_size': 1}
        plain = {'no_prefetcher': True, 'aug_repeats': 0, 'use_multi_epochs_loader': False, 'updates_per_epoch': 0}
        create_train_loader(
            replace(phase.with_options(**alone, **plain), loader_mixes=False),
            self.samples,
            self.data_config,
            device=torch.device('cpu'),
            img_dtype=torch.float32,
            num_classes=data.num_classes,
        )

    def _mixup(self, options: Namespace, data: Any) -> Mixup | None:
        if not mixing_active(options):
            return None
        return Mixup(
            mixup_alpha=options.mixup,
            cutmix_alpha=options.cutmix,
            cutmix_minmax=options.cutmix_minmax,
            prob=options.mixup_prob,
            switch_prob=options.mixup_switch_prob,
            mode=options.mixup_mode,
            label_smoothing=0.0,
            num_classes=data.num_classes if data.valid_labels is None else len(data.valid_labels),
        )

    def _read(self, args: Namespace) -> Namespace:
        here = ['--device', 'cpu', '--workers', str(args.workers), '--resume', '', '--initial-checkpoint', '']
        try:
            return parse_train(['-c', self.path, *here])
        except OptionError as error:
            self._refuse(str(error))

    def _check_data(self, data: Any):
        train_args, args = self.train_args, data.args
        theirs, ours = (
            f'--dataset {each.dataset or "folder"} --data-dir {each.data_dir or each.data}'
            for each in (train_args, args)
        )
        folders = [Path(each.data_dir or each.data or '').resolve() for each in (train_args, args)]
        if train_args.dataset != args.dataset or folders[0] != folders[1]:
            self._refuse(f'it is of a run on {theirs}, not on {ours}')
        if train_args.num_classes not in (None, data.num_classes):
            self._refuse(f'its run had {train_args.num_classes} classes, the model has {data.num_classes}')
        for name in _NOT_OF_THE_IMAGE:
            if getattr(train_args, name):
                self._refuse(f'its run had --{name.replace("_", "-")}, whose images are not those of the loader alone')

    def _refuse(self, why: str):
        raise OptionError(f'--risk {self.path}: {why}.')
