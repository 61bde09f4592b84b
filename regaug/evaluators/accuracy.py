"""Accuracy, the first evaluation: one pass over the images, judged by timm's evaluators.

`accumulate` is the one loop in which outputs are judged; training validates by it too.
"""

from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from statistics import mean
from typing import Any

import torch
from timm.task import ClassificationEvaluator, MultiLabelClassificationEvaluator
from torch import nn

from regaug.errors import OptionError
from regaug.evaluators.calibration import Calibration
from regaug.evaluators.evaluator import Needs
from regaug.evaluators.progress import Progress
from regaug.evaluators.ranks import gather_samples


def accumulate(
    judges: Iterable[Any],
    batches: Iterable,
    forward: Callable[[Any, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    after_batch: Callable[[int, torch.Tensor], None] | None = None,
):
    """Run all batches through a network and judge its output.

    Args:
        judges: Objects with timm's `update(output, target)`.
        batches: Pairs (input, target).
        forward: Function of both that returns the logits [B, K] and the targets they are judged by.
        after_batch: Function (batch_idx, target) called when a batch is done; it may raise to stop.
    """
    for batch_idx, (input, target) in enumerate(batches):
        output, target = forward(input, target)
        for judge in judges:
            judge.update(output, target)
        if after_batch is not None:
            after_batch(batch_idx, target)


class Accuracy:
    """top-1 and top-5 accuracy, or timm's multi-label metrics, with what else judges the same outputs.

    Args:
        multilabel_threshold: Probability from which on a label counts as given, for multi-label targets; None for
            one class an image.
        log_freq: Batches from one log line to the next.
        judges: Functions from `EvaluationData` to a further judge of the outputs. A judge has `update(output,
            target)` and `compute(distributed)`, as timm's evaluators have; columns of later ones replace earlier ones.
    """

    needs = Needs()

    def __init__(self, *, multilabel_threshold: float | None = None, log_freq: int = 10, judges: Iterable = ()):
        self.multilabel_threshold = multilabel_threshold
        self.log_freq = log_freq
        self.judges = tuple(judges)

    def check(self, model: nn.Module, data: Any):
        """Refuse labels that do not fit the data."""
        for judge in self.judges:
            judge(data)

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Yield the metrics in per cent."""
        judges = [self._main_judge(data), *(judge(data) for judge in self.judges)]
        loader = data.loader(data.dataset)
        metrics = measure(network, data, loader, *judges, progress=Progress('Test', len(loader), self.log_freq))
        del metrics['loss']
        if self.multilabel_threshold is not None:
            metrics['threshold'] = self.multilabel_threshold
        yield from metrics.items()

    def _main_judge(self, data: Any) -> ClassificationEvaluator:
        if self.multilabel_threshold is None:
            return ClassificationEvaluator(data.device)
        return MultiLabelClassificationEvaluator(data.device, threshold=self.multilabel_threshold)


def measure(network: nn.Module, data: Any, loader: Iterable, *judges: Any, progress: Progress | None = None) -> dict:
    """Judge a network on the images of a loader.

    Args:
        network: On its device and in evaluation mode.
        data: `EvaluationData`, which made the loader.
        loader: Images and labels.
        judges: Judges of the outputs; a progress line quotes the first one.
        progress: Logs how far it is.

    Returns:
        Metrics of all judges, over all processes.
    """

    def forward(input, target):
        return data.logits(network, input), target

    def after_batch(batch_idx, target):
        text = ''
        if progress.due():
            text = '  '.join(f'{key}: {value:>7.3f}' for key, value in judges[0].summary().items())
        progress.step(len(target), text)

    accumulate(judges, data.batches(loader), forward, after_batch if progress else None)
    metrics = {}
    for judge in judges:
        metrics.update(judge.compute(distributed=data.distributed))
    return metrics


class RealLabels:
    """Judge by the re-assessed labels of ImageNet (arXiv 2006.07159): a hit if any of an image's labels is predicted.

    Args:
        labels: Sets of class indices in the order of the data set; images with an empty one do not count.
        classes: The class of each output, where they are not all of them in order.
    """

    def __init__(self, labels: Sequence[set[int]], classes: Sequence[int] | None = None):
        self.labels = labels
        self.classes = classes
        self.best = []

    def update(self, output: torch.Tensor, target: torch.Tensor):
        """Keep the five best classes of each image."""
        best = output.topk(min(5, output.shape[1]), dim=1).indices
        self.best.append(best if self.classes is None else torch.tensor(self.classes, device=best.device)[best])

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """`top1` and `top5` in per cent."""
        best = gather_samples(torch.cat(self.best), distributed).tolist()
        if len(best) != len(self.labels):
            raise OptionError('--real-labels: go by the order of the images, of which some cannot be read.')
        judged = [(row, labels) for row, labels in zip(best, self.labels, strict=True) if labels]
        return {f'top{k}': 100 * mean(not labels.isdisjoint(row[:k]) for row, labels in judged) for k in (1, 5)}


class ClassAverages:
    """Precision, recall and F1 over the classes, by scikit-learn.

    Args:
        average: 'micro', 'macro' or 'weighted'.
    """

    def __init__(self, average: str):
        self.average = average
        self.rows = []

    def update(self, output: torch.Tensor, target: torch.Tensor):
        """Keep predicted and true class of each image."""
        self.rows.append(torch.stack([output.argmax(dim=1), target], dim=1))

    def compute(self, distributed: bool = False) -> dict[str, float]:
        """`{average}_precision`, `{average}_recall` and `{average}_f1_score` in per cent."""
        from sklearn.metrics import precision_recall_fscore_support  # optional: only --metrics-avg needs it

        predictions, targets = gather_samples(torch.cat(self.rows), distributed).numpy().T
        values = precision_recall_fscore_support(targets, predictions, average=self.average, zero_division=0)
        names = ('precision', 'recall', 'f1_score')
        return {f'{self.average}_{name}': 100 * float(value) for name, value in zip(names, values[:3], strict=True)}


def create(args: Namespace) -> Accuracy:
    """Build the evaluator from the options of validate.py."""
    judges = []
    if args.real_labels:
        judges.append(lambda data: RealLabels(data.real_labels(), data.valid_labels))
    if args.metrics_avg:
        judges.append(lambda data: ClassAverages(args.metrics_avg))
    if args.ece:
        judges.append(lambda data: Calibration(data.device))
    multilabel = args.task == 'multilabel'
    return Accuracy(
        multilabel_threshold=args.multilabel_threshold if multilabel else None, log_freq=args.log_freq, judges=judges
    )
