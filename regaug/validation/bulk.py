"""Many models in one call of validate.py, and smaller batches where memory is short."""

import copy
import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timm.models import is_model, list_models, parse_model_name
from timm.utils import natural_key

from regaug.errors import OptionError
from regaug.evaluators import CONDITION
from regaug.options.parser import nearest

_logger = logging.getLogger('validate')

# Published weights for other classes than the 1,000 of ImageNet-1k: `--model all` leaves them out, as timm does.
_OTHER_CLASSES = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']


def find_jobs(args: Namespace) -> list[tuple[str, str]]:
    """Find out what bulk validation has to evaluate.

    Args:
        args: Options. A folder as `--checkpoint` stands for each `.pth.tar` and `.pth` in it; `all`, a wildcard or a
            file of names as `--model` stands for the published weights of each model.

    Returns:
        List of (model, checkpoint) pairs, empty if the options name a single model.

    Raises:
        OptionError: An unknown name in the file, no checkpoint in the folder, or one checkpoint for several models.
    """
    folder = Path(args.checkpoint) if args.checkpoint else None
    if folder and folder.is_dir():
        paths = [str(path) for pattern in ('*.pth.tar', '*.pth') for path in folder.glob(pattern)]
        if not paths:
            raise OptionError(f'--checkpoint {folder}: no *.pth.tar and no *.pth in this folder.')
        return [(args.model, path) for path in sorted(paths, key=natural_key)]
    names = _model_names(args.model)
    if names and args.checkpoint:
        raise OptionError(
            f'--checkpoint {args.checkpoint}: one checkpoint for the {len(names)} models of --model {args.model}.'
        )
    return [(name, '') for name in names]


def _model_names(model: str) -> list[str]:
    """Names that `--model` stands for if it is not itself the name of a model; else an empty list."""
    if model == 'all':
        return list_models(pretrained=True, exclude_filters=_OTHER_CLASSES)
    if is_model(model):
        return []
    if not Path(model).is_file():
        return list_models(model, pretrained=True)
    names = Path(model).read_text().split()
    unknown = next((name for name in names if not (is_model(name) or parse_model_name(name)[0])), None)
    if unknown or not names:
        problem = f'unknown model {unknown!r}{nearest(unknown, list_models())}' if unknown else 'no name in this file'
        raise OptionError(f'--model {model}: {problem}')
    return names


def validate_all(
    validate: Callable[[Namespace], list[dict[str, Any]]], args: Namespace, jobs: list[tuple[str, str]]
) -> list[dict[str, Any]]:
    """Evaluate one model after the other; one that fails is named in the log and left out.

    Ctrl-C ends the list and keeps the results so far.

    Args:
        validate: Function from options to result rows.
        args: Options of all jobs.
        jobs: (model, checkpoint) pairs.

    Returns:
        The rows of all models, the best first, with the checkpoint as the last column where there is one.

    Raises:
        OptionError: Every model failed.
    """
    _logger.info(f'Evaluating {len(jobs)} models: {", ".join(checkpoint or model for model, checkpoint in jobs)}')
    rows, error = [], None
    try:
        for model, checkpoint in jobs:
            job = copy.copy(args)
            job.model, job.checkpoint = model, checkpoint
            try:
                found = with_retry(validate, job)
            except (OptionError, RuntimeError) as failure:
                error = failure
                _logger.error(f'{checkpoint or model} failed: {failure}')
                continue
            rows += [row | {'checkpoint': checkpoint} if checkpoint else row for row in found]
    except KeyboardInterrupt:
        _logger.warning(f'Interrupted; {len(rows)} results so far.')
    if not rows and error is not None:
        raise OptionError(f'all {len(jobs)} models failed, the last with: {error}') from error
    return best_first(rows)


def best_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort the networks by top-1, or by mAP where that was measured; the rows of conditions follow their network."""
    networks = []
    for row in rows:
        if row.get(CONDITION, 'clean') == 'clean':
            networks.append([])
        networks[-1].append(row)
    metric = 'top1' if rows and 'top1' in rows[0] else 'map'
    networks.sort(key=lambda network: network[0][metric], reverse=True)
    return [row for network in networks for row in network]


def with_retry(validate: Callable[[Namespace], list[dict[str, Any]]], args: Namespace) -> list[dict[str, Any]]:
    """Evaluate a model, with half the batch size as often as memory runs out.

    Args:
        validate: Function from options to result rows.
        args: Options.

    Raises:
        OptionError: Memory is too small for a single image.
    """
    args = copy.copy(args)
    while True:
        try:
            return validate(args)
        except RuntimeError as error:
            if not _is_out_of_memory(error) or args.distributed:
                raise  # the other processes would go on with batches of another size
            _logger.warning(f'Out of memory at batch size {args.batch_size}: {error}')
        # Outside of the handler, where the exception no longer keeps the tensors of the failed attempt alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if args.batch_size == 1:
            raise OptionError(f'--batch-size: the memory of --device {args.device} is too small for {args.model}.')
        args.batch_size //= 2
        _logger.warning(f'Trying again with --batch-size {args.batch_size}.')


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        part in text for part in ('out of memory', "can't allocate memory", 'alloc_failed')
    )
