"""What the input channels of a model mean for its images: the mode they are read in, and their normalisation."""

import logging
from argparse import Namespace
from typing import Any

import numpy as np
from PIL import ImageMode

from regaug.errors import OptionError

_logger = logging.getLogger('train')


def input_channels(args: Namespace) -> int:
    """Input channels of the model that train.py builds: `--in-chans`, the first of `--input-size`, or 3."""
    if args.in_chans is not None:
        return args.in_chans
    return args.input_size[0] if args.input_size else 3


def image_mode(given: str | None, channels: int) -> str:
    """Choose the mode of PIL in which images are read.

    Args:
        given: `--input-img-mode`, or None.
        channels: Input channels of the model.

    Raises:
        OptionError: Images of that mode have another number of channels.
    """
    mode = given or ('RGB' if channels == 3 else 'L')
    found = len(ImageMode.getmode(mode).bands)
    if found != channels:
        option = f'--input-img-mode {given}' if given else f'--in-chans {channels} without --input-img-mode'
        raise OptionError(f'{option}: images in mode {mode} have {found} channels, the model takes {channels}.')
    return mode


def fit_channels(data_config: dict[str, Any], channels: int) -> dict[str, Any]:
    """Fit timm's data configuration to a model: its channels, and for each of them a mean and a standard deviation.

    Statistics of another number of channels are averaged, as each of timm's loaders would do with a warning.

    Args:
        data_config: As timm resolves it.
        channels: Input channels of the model.
    """
    fitted = {**data_config, 'input_size': (channels, *data_config['input_size'][1:])}
    for key in ('mean', 'std'):
        if len(fitted[key]) != channels:
            fitted[key] = (np.mean(fitted[key]).item(),) * channels
            _logger.info(f'The {key} of {len(data_config[key])} channels is averaged: {fitted[key][0]:.4g}.')
    return fitted
