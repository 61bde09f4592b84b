"""Sub-networks of a model at given widths, for evaluation: their batch-norm statistics are estimated anew.

GradAug (arXiv 2006.07989) trains sub-networks that keep no running statistics, and those of the full network do not fit
them. So they are estimated on training images, prepared as for evaluation, as the mean over batches.
"""

import copy
import itertools
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from torchvision.datasets import ImageFolder

from regaug.data.samples import Samples
from regaug.errors import OptionError
from regaug.files import read_checkpoint
from regaug.slimmable import SlimmablePlan, calibrate, extract
from regaug.slimmable.structure import batch_norms
from regaug.validation.data import EvaluationData
from regaug.validation.model import to_device

_logger = logging.getLogger('validate')


def networks_at_widths(
    args: Namespace, model: nn.Module, data: EvaluationData
) -> Iterator[tuple[nn.Module, dict[str, Any]]]:
    """Yield the networks to evaluate, each with the columns that its result row has on top of the usual ones.

    Without `--width` that is the model alone. Width 1 is the model with its own statistics.

    Args:
        args: Options.
        model: The full network, on the CPU, left as it is if there are widths.
        data: `regaug.validation.data.EvaluationData`.

    Raises:
        OptionError: The model cannot run at the width, or there are no training images.
    """
    if not args.width:
        yield model, {}
        return
    if min(args.width) < 1:
        plan, width_divisor = plan_widths(args, model, data.data_config['input_size'])
        training_set = open_training_set(args, data) if batch_norms(model) else None
    for width in args.width:
        images = 0
        network = copy.deepcopy(model) if width == 1 else extract(model, plan, width, width_divisor)
        if width < 1 and training_set is not None:
            # In float32 even under --model-dtype, which would round the statistics while they are summed.
            network = to_device(args, network, device=data.device, dtype=None)
            with data.precision.autocast():
                images = calibrate(network, calibration_inputs(args, data, training_set))
            _logger.info(f'Width {width:g}: batch-norm statistics estimated on {images} training images.')
        yield network, {'width': width, 'calibrate_images': images}


def plan_widths(args: Namespace, model: nn.Module, input_size: tuple[int, int, int]) -> tuple[SlimmablePlan, int]:
    """Plan the sub-networks, with the rounding of channels that the checkpoint was trained with (otherwise 8).

    Args:
        args: Options.
        model: The full network.
        input_size: (C, H, W).

    Returns:
        (plan, width divisor)
    """
    option = f'--width {" ".join(f"{width:g}" for width in args.width)}'
    if args.reparam:
        raise OptionError(f"{option}: --reparam merges the full network's batch-norm statistics into the weights.")
    try:
        plan = SlimmablePlan(model, input_size)
    except ValueError as error:
        raise OptionError(f'{option} --model {args.model}: {error}') from error
    width_divisor = 8
    if args.checkpoint and Path(args.checkpoint).suffix not in ('.safetensors', '.npz', '.npy'):
        trained = read_checkpoint(args.checkpoint, '--checkpoint', mmap=True).get('args')
        width_divisor = getattr(trained, 'gradaug_width_divisor', width_divisor)
    _logger.info(plan.report(min(args.width), width_divisor))
    return plan, width_divisor


def open_training_set(args: Namespace, data: EvaluationData) -> Dataset:
    """Open the training split, from which statistics are estimated.

    Returns:
        The data set, or the `--calibrate-images` of it if it is not iterable. They are drawn from all of it, because a
        folder is sorted by class, and are always the same ones for a `--seed`.

    Raises:
        OptionError: There is no such split.
    """
    split = args.calibrate_split
    dataset = data.open(split, '--calibrate-split')
    source = getattr(dataset, 'reader', dataset)
    # timm takes the data folder itself for a split without a folder of its own.
    root = Path(args.data or args.data_dir or '')
    of_evaluation = isinstance(source, ReaderImageFolder | ImageFolder) and Path(source.root) == root
    if of_evaluation or root.is_file():  # an archive has no splits
        raise OptionError(
            f'--calibrate-split {split}: no such folder in --data-dir {root}; --width below 1 needs its images.'
        )
    if isinstance(dataset, IterableDataset):
        return dataset
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    return Samples(dataset, order[: args.calibrate_images].tolist())


def calibration_inputs(args: Namespace, data: EvaluationData, training_set: Dataset) -> Iterator[torch.Tensor]:
    """Yield float32 inputs [B, C, H, W] on the device: the full batches in `--calibrate-images`, at least one batch.

    All batches are of equal size because each has the same weight in the statistics.
    """
    num_images = args.calibrate_images
    if isinstance(training_set, Samples):
        num_images = len(training_set)
    num_batches = max(1, num_images // args.batch_size)
    for input, _ in itertools.islice(data.loader(training_set, shared=False), num_batches):
        yield data.to_device(input).float()
