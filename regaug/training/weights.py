"""The weights that training starts from: found in a file, and fitted to the model."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from timm.models import get_pretrained_cfg
from torch import nn

from regaug.files import NUMPY, check_weights, load_weights, read_weights

_logger = logging.getLogger('train')
_PREFIXES = ('module.', '_orig_mod.', 'model.', 'backbone.', 'encoder.')  # that wrappers put before a model's names


def load_initial(model: nn.Module, path: str, option: str = '--initial-checkpoint'):
    """Load the weights that training starts from.

    Those of a classifier for another number of classes, and what a file holds beside a model, are left out, with one
    line in the log.

    Raises:
        OptionError: The file is missing, truncated or foreign, or more than the classifier does not fit.
    """
    if Path(path).suffix.lower() in NUMPY:
        load_weights(model, path, use_ema=True, option=option)
        return
    where, found = find_weights(read_weights(path, option), model)
    expected = model.state_dict()
    classifier = classifier_names(model)
    starts_anew = [name for name in classifier if name not in found or found[name].shape != expected[name].shape]
    check_weights({**found, **{name: expected[name] for name in starts_anew}}, model, option, path)
    if starts_anew:
        found = {**found, **{name: expected[name] for name in classifier}}
    model.load_state_dict(found)
    notes = [f'found as {where}'] if where else []
    notes += [f'the classifier ({", ".join(classifier)}) starts anew'] if starts_anew else []
    _logger.info(f'{option} {path}: {len(found) - len(starts_anew)} tensors loaded{"; ".join(["", *notes])}.')


def find_weights(checkpoint: Mapping[str, Any], model: nn.Module) -> tuple[str, dict[str, torch.Tensor]]:
    """Find a model's weights in what a file holds: nested in it, or under a prefix.

    Returns:
        (where, weights): the place and prefix, empty if there are none, and the tensors there by name. Of several
        places it is the first of those in which most names are the model's.
    """
    expected = set(model.state_dict())
    places = list(find_places(checkpoint))
    return max(places, key=lambda place: len(expected & set(place[1])), default=('', {}))


def find_places(mapping: Mapping[str, Any], where: str = '') -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yield the places in a nested mapping where tensors lie, once for each prefix that they may have."""
    tensors = {name: value for name, value in mapping.items() if isinstance(name, str) and torch.is_tensor(value)}
    prefixes = ['']
    for prefix in prefixes:  # grows as it is walked
        under = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if under:
            yield where + prefix, under
        prefixes += [prefix + word for word in _PREFIXES if any(name.startswith(word) for name in under)]
    for name, value in mapping.items():
        if isinstance(value, Mapping):
            yield from find_places(value, f'{where}{name}/')


def classifier_names(model: nn.Module) -> list[str]:
    """Names of the tensors of a model's classifier, none if it has none."""
    classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None
    layers = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    return [
        f'{name}.{key}'
        for name, module in model.named_modules()
        if any(module is layer for layer in layers)
        for key in module.state_dict()
    ]


def pretrained_overlay(name: str, path: str) -> dict[str, Any]:
    """What makes timm take a file for the published weights of a model (`--pretrained-path`).

    timm's own script has the classifier start anew, always. Here it is kept where the file has one for as many classes
    as the model, or as the model gets where nobody says how many.

    Args:
        name: The model's.
        path: The file.

    Returns:
        `pretrained_cfg_overlay` for timm's `create_model`.

    Raises:
        OptionError: The file is missing, truncated or foreign.
    """
    overlay = dict(file=path, source=None, label_offset=0)
    if Path(path).suffix.lower() in NUMPY:
        return dict(overlay, custom_load=True)
    state_dict = read_weights(path, '--pretrained-path')
    return dict(overlay, state_dict=state_dict, num_classes=count_classes(name, state_dict))


def forget_weights(model: nn.Module, path: str):
    """Take the weights out of a model's configuration, which a moving average would copy, and say what became of them.

    Args:
        model: Built with `pretrained_overlay`.
        path: The file.
    """
    if model.pretrained_cfg.pop('state_dict', None) and model.pretrained_cfg.get('classifier'):
        fate = 'is kept' if model.pretrained_cfg['num_classes'] == model.num_classes else 'starts anew'
        _logger.info(f'--pretrained-path {path}: the classifier of {model.num_classes} classes {fate}.')


def count_classes(name: str, state_dict: Mapping[str, torch.Tensor]) -> int:
    """Classes that the classifier in a model's weights has, -1 if there is no such classifier."""
    try:
        cfg = get_pretrained_cfg(name)
    except RuntimeError:  # a name that is looked up elsewhere
        cfg = None
    names = cfg.classifier if cfg is not None and cfg.classifier else ()
    names = (names,) if isinstance(names, str) else names
    counts = {len(state_dict[f'{layer}.weight']) if f'{layer}.weight' in state_dict else -1 for layer in names}
    return counts.pop() if len(counts) == 1 else -1
