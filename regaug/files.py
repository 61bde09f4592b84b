"""Files that both scripts share: written whole or not at all, checkpoints and weights read with clear messages."""

import argparse
import logging
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import clean_state_dict
from torch import nn

from regaug.errors import OptionError

_logger = logging.getLogger('train')
NUMPY = ('.npz', '.npy')  # suffixes of weights that timm's models read themselves


def write_whole(path: str | Path, text: str):
    """Write a text file under a temporary name, then rename it.

    Raises:
        OptionError: when it cannot be written (a full disk); what was there before is intact.
    """
    path = Path(path)
    temporary = Path(f'{path}.tmp')
    try:
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OptionError(f'--output {path.parent}: {path.name} cannot be written ({error}).') from error


def read_checkpoint(path: str | Path, option: str, mmap: bool = False):
    """Read a training checkpoint or a file of weights, tensors and plain values only.

    Raises:
        OptionError: naming `option`, when the file is missing, truncated or no checkpoint.
    """
    try:
        mmap = mmap and zipfile.is_zipfile(path)  # PyTorch's older format cannot be mapped
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except FileNotFoundError as error:
        raise OptionError(f'{option} {path}: there is no such file.') from error
    except Exception as error:  # on bytes that are no checkpoint the unpickler raises whatever it stumbles over
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OptionError(f'{option} {path}: truncated, or no checkpoint of PyTorch ({reason}).') from error
    if not isinstance(checkpoint, dict):
        raise OptionError(f'{option} {path}: holds a {type(checkpoint).__name__}, not a dict of weights.')
    return checkpoint


def first_not_finite(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Name of the first tensor that holds a NaN or +inf, None where there is none; of -inf masks are made."""
    for name, tensor in tensors.items():
        # A sum may overflow, but one that is finite tells enough, and takes no memory.
        suspect = tensor.is_floating_point() and not tensor.sum().isfinite()
        if suspect and (tensor.isnan().any() or tensor.isposinf().any()):
            return name
    return None


def check_finite(tensors: Mapping[str, torch.Tensor], option: str, path: str | Path):
    """Refuse weights of a run that diverged.

    Raises:
        OptionError: naming the first tensor that is not finite.
    """
    name = first_not_finite({name: value for name, value in tensors.items() if torch.is_tensor(value)})
    if name is not None:
        raise OptionError(f'{option} {path}: {name} holds numbers that are not finite.')


def read_weights(path: str | Path, option: str, *, use_ema: bool | None = None):
    """The weights in a file by name: a checkpoint of timm's or ours, a state dict, or safetensors.

    Args:
        path: the file.
        option: the option that named it, for messages.
        use_ema: take the moving average: no, yes, or where there is one, as timm does (None).

    Raises:
        OptionError: when the file is missing, truncated or foreign, or its weights are not finite.
    """
    if not Path(path).is_file():
        raise OptionError(f'{option} {path}: there is no such file.')
    try:
        is_safe = Path(path).suffix.lower() == '.safetensors'
        checkpoint = load_file(path) if is_safe else read_checkpoint(path, option, mmap=True)
    except SafetensorError as error:
        raise OptionError(f'{option} {path}: truncated, or no safetensors file ({error}).') from error
    keys = (*(('state_dict_ema', 'model_ema') if use_ema is not False else ()), 'state_dict', 'model')
    key = next((key for key in keys if isinstance(checkpoint.get(key), Mapping)), None)
    if key in ('state_dict_ema', 'model_ema'):
        _logger.info(f'{option} {path}: the moving average of the weights is taken ({key}).')
    elif use_ema:
        _logger.warning(f'{option} {path}: it has no moving average, its plain weights are taken.')
    state_dict = checkpoint if key is None else checkpoint[key]
    state_dict = clean_state_dict({name: value for name, value in state_dict.items() if isinstance(name, str)})
    check_finite(state_dict, option, path)
    return state_dict


def check_weights(state_dict: Mapping[str, torch.Tensor], model: nn.Module, option: str, path: str | Path):
    """Compare weights with a model before they are loaded.

    Raises:
        OptionError: naming `option`, with a summary of the names and shapes that differ.
    """
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state_dict.items() if torch.is_tensor(value)}
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shapes = [
        f'{name} {found[name]} for {shape}'
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    differences = [
        f'{len(names)} {what} ({", ".join(names[:3])}{", ..." if len(names) > 3 else ""})'
        for names, what in ((missing, 'missing'), (unexpected, 'unexpected'), (shapes, 'of another shape'))
        if names
    ]
    if differences:
        # Where all that differs is the length of what has one row a class, the number of classes was forgotten.
        classes = {
            found[name][:1] if shape == (getattr(model, 'num_classes', None), *found[name][1:]) else ()
            for name, shape in expected.items()
            if name in found and found[name] != shape
        }
        forgotten = not (missing or unexpected or () in classes) and len(classes) == 1
        hint = f' With --num-classes {max(classes)[0]} it would.' if forgotten else ''
        raise OptionError(f'{option} {path}: does not fit {type(model).__name__}: {"; ".join(differences)}.{hint}')


def load_weights(model: nn.Module, path: str | Path, *, use_ema: bool, option: str):
    """Load the weights of a checkpoint (timm's or ours, `.pth.tar`, `.pth`, `.safetensors`, `.npz`) into a model.

    Args:
        use_ema: take the moving average where the checkpoint has one.
        option: the option that named the file, for messages.

    Raises:
        OptionError: when the file is missing, truncated, foreign or does not fit.
    """
    suffix = Path(path).suffix.lower()
    if suffix in NUMPY:
        if not Path(path).is_file():
            raise OptionError(f'{option} {path}: there is no such file.')
        if not hasattr(model, 'load_pretrained'):
            raise OptionError(f'{option} {path}: {type(model).__name__} cannot read NumPy checkpoints.')
        model.load_pretrained(str(path))
        return
    state_dict = read_weights(path, option, use_ema=use_ema)
    check_weights(state_dict, model, option, path)
    model.load_state_dict(state_dict)
