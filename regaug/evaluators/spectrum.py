"""Singular values of penultimate features, as in the refinement paper's figure 3 (He et al., arXiv 1909.09148).

The paper takes those of the covariance matrix of one class (class 0) and of all classes. Its axes, 10^3 and 10^5 for
100 classes, suggest the scatter matrix, which is not divided by the number of images; so both are written.
"""

import csv
import importlib.util
import io
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import unwrap_model
from torch import nn

from regaug.errors import OptionError
from regaug.evaluators.evaluator import Needs
from regaug.evaluators.progress import Progress
from regaug.evaluators.ranks import sum_over_ranks
from regaug.files import write_whole

_logger = logging.getLogger('validate')


class Moments:
    """Count, sum and sum of outer products of features, in float64 and in one pass.

    Args:
        num_features: Features of an image, D.
        device: Where the sums stay.
    """

    def __init__(self, num_features: int, device: torch.device):
        dtype = torch.float32 if device.type == 'mps' else torch.float64
        self.count = torch.zeros((), dtype=dtype, device=device)
        self.sum = torch.zeros(num_features, dtype=dtype, device=device)
        self.products = torch.zeros(num_features, num_features, dtype=dtype, device=device)

    def update(self, features: torch.Tensor, weight: torch.Tensor):
        """Add features [B, D] with weights [B] of 0 or 1."""
        features = features.to(self.sum.dtype)
        weighted = features * weight.to(features.dtype)[:, None]
        self.count += weight.sum()
        self.sum += weighted.sum(0)
        self.products.addmm_(weighted.T, features)

    def singular_values(self, distributed: bool) -> tuple[int, np.ndarray]:
        """Number of images, and singular values of the centred scatter matrix, the largest first: [D].

        They are the squares of those of the centred matrix of features.
        """
        for total in (self.count, self.sum, self.products):
            sum_over_ranks(total, distributed)
        scatter = self.products - torch.outer(self.sum, self.sum) / self.count.clamp(min=1)
        values = torch.linalg.eigvalsh(scatter.cpu().double()).flip(0).clamp(min=0)
        return int(self.count), values.numpy()


class Spectrum:
    """Writes the singular values of features, of class 0 and of all classes, for each network.

    Args:
        folder: Where to write.
        log_freq: Batches from one log line to the next.
    """

    needs = Needs()

    def __init__(self, folder: str | Path, log_freq: int = 10):
        self.folder = Path(folder)
        self.log_freq = log_freq

    def check(self, model: nn.Module, data: Any):
        """Refuse a model without penultimate features, and data without images of class 0."""
        if not hasattr(model, 'forward_head') or not isinstance(model.get_classifier(), nn.Linear):
            raise OptionError(f'--spectrum {self.folder}: {type(model).__name__} has no features before a classifier.')
        labels = data.labels()
        if labels is not None and 0 not in labels:
            raise OptionError(f'--spectrum {self.folder}: --split {data.args.split} has no images of class 0.')

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Write `.npz`, `.csv` and, where matplotlib is installed, `.png`; yield the number of images."""
        network = unwrap_model(network)
        class_0 = everything = None
        loader = data.loader(data.dataset)
        progress = Progress('Spectrum', len(loader), self.log_freq)
        for input, target in data.batches(loader):
            with data.precision.autocast():
                features = network.forward_head(network.forward_features(input), pre_logits=True)
            if everything is None:
                class_0, everything = (Moments(features.shape[1], features.device) for _ in range(2))
            class_0.update(features, target == 0)
            everything.update(features, torch.ones_like(target))
            progress.step(len(target))
        moments = {'class_0': class_0, 'all': everything}
        found = {name: each.singular_values(data.distributed) for name, each in moments.items()}
        if data.args.rank == 0:
            self._write(data.network_name, found)
        yield 'class_0_images', found['class_0'][0]

    def _write(self, name: str, found: dict[str, tuple[int, np.ndarray]]):
        columns = {}
        for which, (count, values) in found.items():
            columns[f'{which}_scatter'] = values
            columns[f'{which}_covariance'] = values / max(count - 1, 1)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            counts = {f'{which}_images': count for which, (count, _) in found.items()}
            np.savez(self.folder / f'{name}.npz', **columns, **counts)
        except OSError as error:
            raise OptionError(f'--spectrum {self.folder}: {error}') from error
        buffer = io.StringIO(newline='')
        writer = csv.writer(buffer)
        writer.writerow(['rank', *columns])
        writer.writerows([index + 1, *row] for index, row in enumerate(zip(*columns.values())))
        write_whole(self.folder / f'{name}.csv', buffer.getvalue())
        _logger.info(f'Singular values of {name} in {self.folder}.')
        if importlib.util.find_spec('matplotlib') is not None:
            draw(self.folder / f'{name}.png', columns)


def draw(path: Path, columns: dict[str, np.ndarray]):
    """Draw the singular values of the scatter matrices as the paper does: class 0 left, all classes right."""
    from matplotlib.figure import Figure  # optional

    figure = Figure(figsize=(9, 4), layout='constrained')
    for axes, which, title in zip(figure.subplots(1, 2), ('class_0', 'all'), ('class 0', 'all classes')):
        axes.plot(columns[f'{which}_scatter'])
        axes.set(title=title, xlabel='ordered largest to smallest', ylabel='singular value of the scatter matrix')
    figure.savefig(path)


def create(args: Namespace) -> Spectrum | None:
    """Build the evaluator from the options of validate.py."""
    return Spectrum(args.spectrum, log_freq=args.log_freq) if args.spectrum else None
