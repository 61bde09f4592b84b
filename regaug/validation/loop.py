"""One network, all evaluators: what runs under which gradient mode, and which columns belong to which row."""

from argparse import Namespace
from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from regaug.evaluators import CONDITION, Evaluator
from regaug.validation.data import EvaluationData


def gradient_mode(evaluators: Iterable[Evaluator]) -> AbstractContextManager:
    """The mode in which networks run: without gradients.

    Inference mode leaves its mark on what a model keeps between calls (cached positions), so if an evaluator asks for
    gradients it is not entered at all.
    """
    return torch.no_grad() if any(evaluator.needs.gradients for evaluator in evaluators) else torch.inference_mode()


def warm_up(args: Namespace, network: nn.Module, data: EvaluationData):
    """Run one random batch, so that the first real one is timed as the others are.

    The batch comes from torch's global generator, as in timm's script. With the NaFlex loader there is none.
    """
    if args.naflex_loader:
        return
    input = data.to_device(torch.randn(args.batch_size, *data.data_config['input_size']))
    with data.precision.autocast():
        network(input)


def evaluate(
    evaluators: Iterable[Evaluator], network: nn.Module, data: EvaluationData, width: float | None = None
) -> list[dict[str, Any]]:
    """Run the evaluators on one network.

    Args:
        evaluators: In the order of the columns.
        network: On its device and in evaluation mode.
        data: The images.
        width: Width of the network, None without `--width`.

    Returns:
        The columns of the network itself, then those of each condition, which begin with `condition`.
    """
    rows = [{}]
    for evaluator in evaluators:
        row = rows[0]
        view = data.as_needed(evaluator.needs, width=width, metrics=rows[0])
        for column, value in evaluator.run(network, view):
            if column == CONDITION:
                row = {}
                rows.append(row)
            row[column] = value
    return rows
