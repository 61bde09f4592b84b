"""Many models in one call of validate.py, and smaller batches where memory is short."""

import copy
import logging
from pathlib import Path

import torch
from timm.models import is_model, list_models, parse_model_name
from timm.utils import natural_key

from regaug.errors import OptionError
from regaug.options.parser import nearest

_logger = logging.getLogger('validate')

# Published weights for other classes than the 1,000 of ImageNet-1k: `--model all` leaves them out, as timm does.
_OTHER_CLASSES = ['*_in21k', '*_in22k', '*in12k', '*_dino', '*fcmae', '*seer']


def find_jobs(args):
    """Finds out what bulk validation has to evaluate.

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


def _model_names(model):
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


def validate_all(validate, args, jobs):
    """Evaluates one model after the other; one that fails is named in the log and left out.

    Ctrl-C ends the list and keeps the results so far.

    Args:
        validate: Function from options to result rows.
        args: Options of all jobs.
        jobs: (model, checkpoint) pairs.

    Returns:
        The rows of all models, the best top-1 first, with the checkpoint as the last column where there is one.

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
    return sorted(rows, key=lambda row: row['top1'], reverse=True)


def with_retry(validate, args):
    """Evaluates a model, with half the batch size as often as memory runs out.

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
            if not _is_out_of_memory(error):
                raise
            _logger.warning(f'Out of memory at batch size {args.batch_size}: {error}')
        # Outside of the handler, where the exception no longer keeps the tensors of the failed attempt alive.
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if args.batch_size == 1:
            raise OptionError(f'--batch-size: the memory of --device {args.device} is too small for {args.model}.')
        args.batch_size //= 2
        _logger.warning(f'Trying again with --batch-size {args.batch_size}.')


def _is_out_of_memory(error):
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        part in text for part in ('out of memory', "can't allocate memory", 'alloc_failed')
    )
