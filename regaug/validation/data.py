"""Images and labels that networks are evaluated on, as the evaluators ask for them."""

import copy
import logging
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from timm.data import create_loader, create_naflex_loader
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from regaug.data.channels import image_mode
from regaug.data.counted import Counted
from regaug.data.datasets import class_index, class_map_path, create_dataset, target_kwargs
from regaug.data.probe import check_samples
from regaug.data.samples import Samples, sample_labels
from regaug.device import Precision
from regaug.errors import OptionError
from regaug.evaluators import Needs
from regaug.evaluators.ranks import sum_over_ranks
from regaug.validation.labels import read_real_labels, read_valid_labels
from regaug.validation.model import job_name
from regaug.validation.training_images import TrainingImages

_logger = logging.getLogger('validate')


class EvaluationData:
    """The images and labels that a model is evaluated on.

    Args:
        args: Options.
        data_config: timm's data configuration.
        num_classes: Outputs of the model.
        device: Where batches are delivered.
        precision: `regaug.device.Precision` of the run.

    Attributes:
        dataset: Data set of `--split`.
        valid_labels: Outputs to keep (`--valid-labels`), None for all.
        distributed: Whether several processes share the images.
        needs: What the evaluator asks for that this view was made for.
        job_name: Name of the model and its checkpoint, fit for a file name.
        width: Width of the network that is being evaluated, None without `--width`.
        metrics: The columns of that network so far.
        passes: What counted in each pass over images for the network.

    Raises:
        OptionError: Data or labels are missing, or do not fit the model.
    """

    def __init__(
        self,
        args: Namespace,
        data_config: dict[str, Any],
        *,
        num_classes: int,
        device: torch.device,
        precision: Precision,
    ):
        self.args = args
        self.data_config = data_config
        self.num_classes = num_classes
        self.device = device
        self.precision = precision
        self.distributed = args.distributed
        self.needs = Needs()
        self.job_name = job_name(args)
        self.width = None
        self.metrics = {}
        self.passes = []
        self.dataset = self.open(args.split)
        self.valid_labels = read_valid_labels(args.valid_labels, num_classes) if args.valid_labels else None
        if not args.real_labels:
            self._check_classes(self.dataset)

    def as_needed(self, needs: Needs, *, width: float | None, metrics: dict[str, Any]) -> 'EvaluationData':
        """A view of the data for one evaluator and one network."""
        view = copy.copy(self)
        view.needs, view.width, view.metrics = needs, width, metrics
        return view

    @property
    def network_name(self) -> str:
        """Name of the network that is being evaluated, fit for a file name."""
        return self.job_name if self.width is None else f'{self.job_name}-w{self.width:g}'

    @property
    def networks_name(self) -> str:
        """Name of all networks that are evaluated together, fit for a file name."""
        widths = '-'.join(f'{width:g}' for width in self.args.width or ())
        return f'{self.job_name}-w{widths}' if widths else self.job_name

    def class_names(self) -> dict[int, str]:
        """Names of the classes of the data set by index, empty where it does not know them."""
        return {index: name for name, index in (class_index(self.dataset) or {}).items()}

    def training_images(self, args_yaml: str, model: nn.Module) -> TrainingImages:
        """The training images of the run whose options a file holds."""
        return TrainingImages(args_yaml, self, model)

    def open(self, split: str, option: str = '--split') -> Dataset:
        """Open a split of the data set.

        Args:
            split: Its name.
            option: The option that named it, for messages.
        """
        args = self.args
        root, channels = args.data or args.data_dir, self.data_config['input_size'][0]
        dataset = create_dataset(
            args.dataset,
            root,
            split,
            option=option,
            download=args.dataset_download,
            load_bytes=args.tf_preprocessing,
            class_map=class_map_path(args.class_map, root),
            num_samples=args.num_samples,
            input_key=args.input_key,
            input_img_mode=image_mode(args.input_img_mode, channels),
            trust_remote_code=args.dataset_trust_remote_code,
            seed=args.seed,
            **target_kwargs(args, self.num_classes),
        )
        check_samples(dataset, channels, f'--data-dir {root} {option} {split}')
        return dataset

    def open_folder(self, root: Path) -> Dataset:
        """Open a folder of images with the classes of the data set, one sub-folder each."""
        classes = class_index(self.dataset)
        return create_dataset('', root, '', class_map=classes, input_img_mode=self.image_mode)

    @property
    def image_mode(self) -> str:
        """Mode of the images, as Pillow names it."""
        return self.args.input_img_mode or ('RGB' if self.data_config['input_size'][0] == 3 else 'L')

    def labels(self) -> set[int] | None:
        """The classes that the data set has images of, None for a stream."""
        return None if isinstance(self.dataset, IterableDataset) else set(sample_labels(self.dataset).tolist())

    def classes_with_images(self) -> set[str] | None:
        """Their names, None where the data set does not know them."""
        classes, labels = class_index(self.dataset), self.labels()
        return {name for name, index in classes.items() if index in labels} if classes and labels else None

    def part(self, indices: Sequence[int], *, leave_out: bool = False) -> Dataset:
        """Some images of the data set, by their places in it; `leave_out` as in `Samples`."""
        return Samples(self.dataset, indices, leave_out=leave_out)

    def loader(self, dataset: Dataset, *, shared: bool = True, crop_only: bool = False, **changes: Any) -> Iterable:
        """Make timm's loader of a data set, with the transform of evaluation.

        Args:
            dataset: The images.
            shared: Deal the images out to the processes; otherwise each one gets all of them.
            crop_only: Crop at the centre without resizing first.
            **changes: Entries of the data configuration to be replaced.
        """
        args = self.args
        workers = args.workers
        data_config = self.data_config | changes
        if self.needs.pixels:
            data_config |= {'mean': (0.0,) * len(data_config['mean']), 'std': (1.0,) * len(data_config['std'])}
        if not isinstance(dataset, IterableDataset | Samples):
            dataset = Samples(dataset, leave_out=True)
        elif self.distributed and isinstance(dataset, IterableDataset):
            workers = min(2, workers)  # these readers pad every worker's share to equal length
        common = dict(
            batch_size=args.batch_size,
            use_prefetcher=not args.no_prefetcher,
            interpolation=data_config['interpolation'],
            mean=data_config['mean'],
            std=data_config['std'],
            num_workers=workers,
            distributed=self.distributed and shared,
            crop_pct=data_config['crop_pct'],
            crop_mode=data_config['crop_mode'],
            crop_border_pixels=args.crop_border_pixels,
            pin_memory=args.pin_mem,
            device=self.device,
            img_dtype=self.precision.input_dtype,
        )
        if args.naflex_loader:
            return create_naflex_loader(
                dataset,
                patch_size=data_config['patch_size'],
                max_seq_len=args.naflex_max_seq_len,
                channels=data_config['input_size'][0],
                **common,
            )
        loader = create_loader(
            dataset, input_size=data_config['input_size'], tf_preprocessing=args.tf_preprocessing, **common
        )
        if crop_only:
            steps = loader.dataset.transform.transforms
            first_crop = next(index for index, step in enumerate(steps) if 'Crop' in type(step).__name__)
            del steps[:first_crop]
        return loader

    def batches(self, loader: Iterable) -> Iterator[tuple[Any, torch.Tensor]]:
        """Yield the batches of a loader on the device, without the samples that do not count (`Counted`)."""
        return ((input, target) for input, target, _ in self.placed_batches(loader))

    def placed_batches(self, loader: Iterable) -> Iterator[tuple[Any, torch.Tensor, list[int]]]:
        """Yield batches as `batches` does, and the place of each sample in the data set.

        timm's sampler deals the samples out in turn: process r of W has samples r, r + W, r + 2 W, ...
        """
        counted = Counted(loader)
        self.passes.append(counted)
        delivered = 0
        for input, target in loader:
            index = counted(target)
            places = torch.arange(delivered, delivered + len(target))[
                index if isinstance(index, slice) else index.cpu()
            ]
            delivered += len(target)
            if len(target := target[index]):
                places = (self.args.rank + self.args.world_size * places).tolist()
                yield self.to_device(samples_of(input, index)), target.to(self.device), places

    def count_unreadable(self) -> int:
        """How many images the evaluation of a network left out, in all processes, because they cannot be read."""
        found = max((counted.unreadable for counted in self.passes), default=0)
        self.passes.clear()
        count = int(sum_over_ranks(torch.tensor(found, device=self.device), self.distributed))
        if count:
            _logger.warning(f'{count} images of --split {self.args.split} cannot be read and were left out.')
        return count

    def to_device(self, input: Any) -> Any:
        """Bring an input to the device, the number format and the memory format of the model.

        Args:
            input: Images [B, C, H, W], or the NaFlex loader's dict of patches and their places.
        """
        dtype = self.precision.model_dtype
        if isinstance(input, dict):
            tensors = {key: value.to(self.device) for key, value in input.items() if torch.is_tensor(value)}
            return input | tensors | {'patches': tensors['patches'].to(dtype)}
        memory_format = torch.channels_last if self.args.channels_last else torch.preserve_format
        return input.to(self.device, dtype, memory_format=memory_format)

    def logits(self, network: nn.Module, input: Any) -> torch.Tensor:
        """The outputs of a network for a normalised input, those of `--valid-labels` where it is given: [B, K]."""
        with nullcontext() if self.needs.float32 else self.precision.autocast():
            output = network(input)
        if isinstance(output, (tuple, list)):
            output = output[0]
        return output if self.valid_labels is None else output[:, self.valid_labels]

    def real_labels(self) -> list[set[int]]:
        """The re-assessed labels of `--real-labels`, a set of class indices for each image of the data set."""
        return read_real_labels(self.args.real_labels, self.dataset, self.args.split)

    def _check_classes(self, dataset: Dataset):
        classes = class_index(dataset)
        if not classes:
            return
        found = max(classes.values()) + 1
        outputs = self.num_classes if self.valid_labels is None else len(self.valid_labels)
        given = self.args.num_classes is not None
        if found > outputs or (given and found != outputs):
            option = f'--model {self.args.model} ({self.num_classes} outputs)'
            option = f'--num-classes {self.num_classes}' if given else option
            kept = '' if self.valid_labels is None else f', {outputs} of them kept by --valid-labels'
            raise OptionError(f'{option}{kept}: the data has {found} classes.')
        if found < outputs:
            _logger.warning(f'The model has {outputs} outputs for {found} classes of the data.')


def samples_of(input: Any, index: slice | torch.Tensor) -> Any:
    """Some samples of a batch: a tensor, or NaFlex's dict of tensors."""
    if isinstance(input, dict):
        return {key: value[index] if torch.is_tensor(value) else value for key, value in input.items()}
    return input[index]
