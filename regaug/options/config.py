"""The configuration file of `-c`: YAML that takes the place of the options' defaults."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from regaug.errors import OptionError
from regaug.options.option import Group, Option
from regaug.options.parser import Parser, nearest

KIND_NAMES = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'text', None: 'text'}


def config_parser() -> Parser:
    """The parser of `-c` alone; it runs before the main one, which it also lends its line in `--help`."""
    parser = Parser(add_help=False)
    # Without a default the option leaves no trace in the namespace, and so none in the dumped options.
    parser.add_argument(
        '-c',
        '--config',
        default=argparse.SUPPRESS,
        metavar='FILE',
        help='YAML file of option values; the command line wins over it',
    )
    return parser


def read_config(path: str, groups: Iterable[Group]) -> dict[str, Any]:
    """Reads a YAML file into values for the options of some groups.

    Args:
        path: The file. Its keys are names of options, written with '-' or '_'.
        groups: The options that may be set.

    Returns:
        Values by attribute name.

    Raises:
        OptionError: The file cannot be read, a key is unknown or given twice, or a value does not fit its option.
    """
    options = {name: option for group in groups for option in group.options for name in config_names(option)}
    values = {}
    for key, value in load_mapping(path).items():
        option = options.get(str(key).replace('-', '_'))
        if option is None:
            raise OptionError(f'--config {path}: unknown key {key!r}{nearest(str(key).replace("-", "_"), options)}')
        if option.dest in values:
            raise OptionError(f'--config {path}: key {key!r} sets {option.label} a second time')
        values[option.dest] = convert(option, key, value, path)
    return values


def load_mapping(path: str) -> dict:
    """Loads the top level of a YAML file.

    Raises:
        OptionError: No such file, no YAML, or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise OptionError(f'--config {path}: cannot be read ({error.strerror})') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f'--config {path}: no valid YAML ({" ".join(str(error).split())})') from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise OptionError(f'--config {path}: expected "option: value" lines, got {content!r}')
    return content


def config_names(option: Option) -> list[str]:
    """The keys that stand for an option: its attribute name and its other long spellings."""
    spellings = [name.removeprefix('--').replace('-', '_') for name in option.names if name.startswith('--')]
    return [option.dest, *spellings]


def convert(option: Option, key: Any, value: Any, path: str) -> Any:
    """Brings a YAML value to the type of its option.

    Numbers may be given as text, since YAML takes `1e-3` for text, and whole numbers as `90.0`.

    Raises:
        OptionError: The value does not fit; the message names key and value.
    """

    def misfit(expected):
        return OptionError(f'--config {path}: {key}: {value!r} does not fit {option.label}, which takes {expected}')

    if value is None:
        if option.default in (None, '') or option.nullable:
            return option.default if option.default == '' else None
        raise misfit('no null')
    if option.type is dict:
        if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
            raise misfit('a mapping of names to values')
        return value
    if option.nargs in ('+', '*') or isinstance(option.nargs, int):
        if not isinstance(value, list):
            raise misfit('a list')
        if option.nargs == '+' and not value and value != option.default:
            raise misfit('a list of at least one value')
        if isinstance(option.nargs, int) and len(value) != option.nargs:
            raise misfit(f'a list of {option.nargs} values')
        items = [convert_item(option, item) for item in value]
    else:
        items = [convert_item(option, value)]
    if None in items:
        raise misfit(KIND_NAMES[option.type])
    if option.choices and not set(items) <= set(option.choices):
        raise misfit(f'one of {", ".join(option.choices)}')
    return items if isinstance(value, list) else items[0]


def convert_item(option: Option, value: Any) -> Any:
    """One value in the type of its option, or `None` if it does not fit."""
    if option.type is bool or isinstance(value, bool):
        return value if option.type is bool and isinstance(value, bool) else None
    if option.type in (str, None):
        return value if isinstance(value, str) else None
    if not isinstance(value, int | float | str):
        return None
    try:
        number = option.type(value)
    except ValueError:
        return None
    return None if isinstance(value, float) and number != value else number
