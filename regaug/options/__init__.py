"""The options of train.py and validate.py: rows, parsing, and the checks made before anything is built.

timm's rows stand in `timm`, what timm notices late or never in `timm_checks` and `timm_data_checks`. Ours stand in one
module a theme; themes are found by looking into this folder, so that a new method is one new file. A theme offers

- `TRAIN`, `VALIDATE`: a group of rows for either script. A group of `TRAIN` that names a switch is a method: without it
  the others have no effect (a warning if they are given), with it what no method can work with is refused.
- `resolve(args, chosen)`, optional: sets defaults that depend on other options; `chosen` holds what the command line or
  a file says, by attribute name.
- `check(args)`, optional: raises an `OptionError` for what cannot work, once all values are in the bounds of the rows;
  called with the options of each script that the theme has rows for.

Themes come in alphabetical order.
"""

import copy
import importlib
import pkgutil
from argparse import Namespace
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import Any

from regaug.options import timm, timm_checks, timm_data_checks
from regaug.options.config import CONFIG, as_yaml, command_line_wins, read_config
from regaug.options.evaluation import TIMM_VALIDATE
from regaug.options.parser import Group, Parser, check_values, refuse_with, warn_without_effect

_NAMES = sorted(module.name for module in pkgutil.iter_modules(__path__))
_MODULES = [importlib.import_module(f'{__name__}.{name}') for name in _NAMES]
TRAIN_THEMES = [module for module in _MODULES if hasattr(module, 'TRAIN')]
VALIDATE_THEMES = [module for module in _MODULES if hasattr(module, 'VALIDATE')]
OWN_TRAIN = tuple(theme.TRAIN for theme in TRAIN_THEMES)
OWN_VALIDATE = tuple(theme.VALIDATE for theme in VALIDATE_THEMES)
TRAIN = timm.TIMM_TRAIN + OWN_TRAIN
VALIDATE = TIMM_VALIDATE + OWN_VALIDATE

REFUSED_BY_METHODS = {
    '--jsd-loss': 'it compares views that a method would change',
    '--aug-splits': 'a batch then holds several views of each image',
    '--naflex-loader': 'a batch then holds patch sequences instead of images',
    '--torchscript': 'a scripted model takes no hooks and no other widths',
}


def train_parser(*, defaults: bool = True) -> Parser:
    """Return the parser of train.py; without defaults it tells what is given."""
    return Parser((CONFIG, *TRAIN), defaults=defaults, description='Train an image classifier.')


def validate_parser(*, defaults: bool = True) -> Parser:
    """Return the parser of validate.py; without defaults it tells what is given."""
    return Parser(VALIDATE, defaults=defaults, description='Evaluate an image classifier.')


def parse_train(argv: Sequence[str] | None = None) -> Namespace:
    """Parse and check the options of train.py: those of the command line, else of the file of `-c`, else the defaults.

    Raises:
        OptionError: An option, a key of the file or a combination that cannot be used.
    """
    parser = train_parser(defaults=False)
    given = vars(parser.parse_args(argv))
    config = given.pop('config', None)
    file = {} if config is None else read_config(config, parser, TRAIN)
    command_line_wins(given, file)
    themes = [timm, timm_checks, timm_data_checks, *TRAIN_THEMES]
    args = _resolve(TRAIN, themes, {**file, **given})
    for group in OWN_TRAIN:
        for flag, why in REFUSED_BY_METHODS.items() if group.switch else ():
            refuse_with(args, group.switch, [flag], why)
    return _check(args, TRAIN, themes, given)


def parse_validate(argv: Sequence[str] | None = None) -> Namespace:
    """Parse and check the options of validate.py; raise an `OptionError` for what cannot be used."""
    given = vars(validate_parser(defaults=False).parse_args(argv))
    return _check(_resolve(VALIDATE, VALIDATE_THEMES, given), VALIDATE, VALIDATE_THEMES, given)


def args_as_yaml(args: Namespace) -> str:
    """Write the resolved options of train.py as sorted YAML; `-c` reads it back, without resuming and the like."""
    afresh = {option.dest: option.default for group in TRAIN for option in group.options if option.once}
    return as_yaml(vars(args) | afresh)


def _resolve(groups: Iterable[Group], themes: Iterable[ModuleType], chosen: dict[str, Any]) -> Namespace:
    defaults = {option.dest: copy.deepcopy(option.default) for group in groups for option in group.options}
    args = Namespace(**{**defaults, **chosen})
    for theme in themes:
        if hasattr(theme, 'resolve'):
            theme.resolve(args, chosen)
    check_values(args, groups)
    return args


def _check(args: Namespace, groups: Iterable[Group], themes: Iterable[ModuleType], given: Iterable[str]) -> Namespace:
    for theme in themes:
        if hasattr(theme, 'check'):
            theme.check(args)
    warn_without_effect(args, groups, given)
    return args
