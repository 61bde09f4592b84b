"""The file of `-c`: a command line written as YAML; and args.yaml, which it reads back."""

from argparse import SUPPRESS
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from regaug.errors import OptionError, one_line
from regaug.options.parser import Group, Option, Parser, nearest

# Without a default it leaves no trace in the namespace, and so none in args.yaml.
CONFIG = Group(
    None, Option('-c --config', str, SUPPRESS, 'YAML file of option values (option: value); the command line wins')
)
# What one option sets, another one does too: given on the command line, it takes the place of the file's.
_SAME = {
    'input_size': ['img_size', 'in_chans'],
    'drop_connect': ['drop_path'],
    'cutmix': ['cutmix_minmax'],
    'data': ['data_dir'],
    'data_dir': ['data'],
    'lr_base': ['lr'],
}
BASE = 'base'
_TUPLE = 'tag:yaml.org,2002:python/tuple'


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader, and tuples (values in `key=value` options); a key given twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False):
        keys = [key.value for key, _ in node.value]
        for index, (key, _) in enumerate(node.value):
            if key.value in keys[:index]:
                raise yaml.MarkedYAMLError(problem=f'key {key.value!r} is given twice', problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, and tuples."""


Loader.add_constructor(_TUPLE, lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))
Dumper.add_representer(tuple, lambda dumper, value: dumper.represent_sequence(_TUPLE, value))


def as_yaml(values: dict[str, Any]) -> str:
    """Write options as sorted YAML that `read_config` reads back."""
    return yaml.dump(values, Dumper=Dumper, default_flow_style=False)


def read_config(path: str, parser: Parser, groups: Iterable[Group]) -> dict[str, Any]:
    """Read values by attribute name from a YAML file, each line as what it stands for on the command line.

    A line `base: FILE` names another file, relative to this one, whose values hold where this one says nothing. That
    one has no base itself.

    Args:
        path: The file. Its keys are names of options, written with '-' or '_'.
        parser: Of the command line, without defaults.
        groups: The options that may be set.
    """
    options = {name: option for group in groups for option in group.options for name in _names(option)}
    content = _load(path)
    if BASE not in content:
        return _values(path, content, parser, options)
    base = content.pop(BASE)
    if not isinstance(base, str):
        raise OptionError(f'--config {path}: {BASE}: {base!r}: takes the name of one file')
    base = str(Path(path).parent / base)
    inherited = _load(base)
    if BASE in inherited:
        raise OptionError(f'--config {path}: {BASE}: {base} has a base itself; one is all there may be')
    return {**_values(base, inherited, parser, options), **_values(path, content, parser, options)}


def _load(path: str) -> dict[str, Any]:
    """Return the lines of a file by key."""
    try:
        content = yaml.load(Path(path).read_text(encoding='utf-8'), Loader) or {}
    except OSError as error:
        raise OptionError(f'--config {path}: cannot be read ({error.strerror})') from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f'--config {path}: no valid YAML ({one_line(error)})') from None
    if not isinstance(content, dict):
        raise OptionError(f'--config {path}: expected "option: value" lines, got {content!r}')
    return content


def _values(path: str, content: dict[str, Any], parser: Parser, options: dict[str, Option]) -> dict[str, Any]:
    """Return the values of a file by attribute name."""
    values = {}
    for key, value in content.items():
        name = str(key).replace('-', '_')
        if name not in options:
            raise OptionError(f'--config {path}: unknown key {key!r}{nearest(name, options)}')
        option = options[name]
        if option.dest in values:
            raise OptionError(f'--config {path}: key {key!r} sets {option.label} a second time')
        try:
            values[option.dest] = _parse(parser, option, value)
        except OptionError as error:
            raise OptionError(f'--config {path}: {key}: {value!r}: {error}') from None
    return values


def command_line_wins(given: dict[str, Any], file: dict[str, Any]):
    """Drop from a file's values (changed in place) what another option of the command line sets."""
    if file.get('input_size') and 'input_size' not in given:
        channels, *sides = file['input_size']
        sides = [given['img_size']] * 2 if 'img_size' in given else sides
        file['input_size'] = [given.get('in_chans', channels), *sides]
    for name in given:
        for other in _SAME.get(name, ()):
            file.pop(other, None)


def _names(option: Option) -> list[str]:
    """Return the keys that stand for an option: its attribute name and its other long spellings."""
    return [option.dest, *(name[2:].replace('-', '_') for name in option.flags.split() if name.startswith('--'))]


def _parse(parser: Parser, option: Option, value: Any) -> Any:
    """Return what argparse makes of a line of the file; YAML's own types settle switches, null and mappings."""
    if value is None and (option.default in (None, '') or option.nullable):
        return '' if option.default == '' else None
    if option.type is bool and isinstance(value, bool):
        return value
    if option.type is dict and isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return value
    several = option.nargs not in (None, '?')
    kind = {bool: 'true or false', dict: 'a mapping of names to values'}.get(option.type)
    if value is None or kind or isinstance(value, list) is not several:
        raise OptionError(f'{option.label} takes {kind or ("a list" if several else "one value")}')
    if repr(value) == repr(option.default):
        return value
    words = [_word(option, item) for item in (value if several else [value])]
    tokens = [f'{option.label}={words[0]}'] if len(words) == 1 else [option.label, *words]
    parsed = vars(parser.parse_args(tokens if option.label.startswith('-') else words))
    if parsed.keys() != {option.dest}:  # some of the words were taken for other options
        raise OptionError(f'{option.label} does not take so many values, or such ones')
    return parsed[option.dest]


def _word(option: Option, item: Any) -> str:
    """Write one value as a word of the command line."""
    if isinstance(item, str):
        return item
    if option.type in (None, str):
        raise OptionError(f'{option.label} takes text, in quotes where YAML sees something else')
    word = f'{item:.0f}' if isinstance(item, float) and item.is_integer() else str(item)  # 90.0 is a whole number
    return f' {word}' if word.startswith('-') else word  # a number, no option
