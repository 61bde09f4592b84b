"""Rows of options, the argument parser made of them, and how a check says what is wrong."""

import argparse
import copy
import difflib
import importlib.util
import logging
import math
import operator
import os
from argparse import Namespace
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from timm.utils import ParseKwargs

from regaug.errors import OptionError, one_line

_logger = logging.getLogger(__name__)

_BOUNDS = {
    'low': ('at least', operator.ge),
    'above': ('above', operator.gt),
    'high': ('at most', operator.le),
    'below': ('below', operator.lt),
}


@dataclass(frozen=True)
class Option:
    """One command-line option.

    Attributes:
        flags: Its spellings, separated by blanks; a spelling without dashes is a positional argument.
        type: `str`, `int`, `float` or a function of text; `None` for text as it is; `bool` for a switch that is off
            unless given; `dict` for `key=value` pairs.
        default: Value without the option.
        help: One line; known values, and a default worth telling, are added.
        nargs, choices, const: As in argparse.
        low, above, high, below: Bounds of each number: at least, more than, at most, less than. Numbers are finite.
        known: The values allowed where timm's command line has no `choices`.
        nullable: Whether a file may say null although the default is something else.
        needs: Options of which one must be on, or have a value (`--option=value`), for this one to have an effect,
            besides the switch of its group.
        once: Whether it is for one start of a run alone, so that args.yaml does not hand its value on.
    """

    flags: str
    type: Any
    default: Any
    help: str
    nargs: str | int | None = None
    choices: tuple | None = None
    const: Any = None
    low: float | None = None
    above: float | None = None
    high: float | None = None
    below: float | None = None
    known: tuple | None = None
    nullable: bool = False
    needs: str = ''
    once: bool = False

    @property
    def label(self) -> str:
        """The spelling to use in messages: the first long one."""
        return next((name for name in self.flags.split() if name.startswith('--')), self.flags)

    @property
    def dest(self) -> str:
        """Attribute of the parsed namespace, as argparse derives it."""
        return self.label.lstrip('-').replace('-', '_')

    def add_to(self, parser: argparse._ActionsContainer, *, defaults: bool):
        """Declare the option on an argparse parser or group; without defaults it leaves no trace unless given."""
        default = copy.deepcopy(self.default)
        text = self.help + (f': {", ".join(filter(None, self.known))}' if self.known else '')
        text += f' (default: {default})' if is_set(default) and default is not argparse.SUPPRESS else ''
        keywords = {'help': text.replace('%', '%%'), 'default': default if defaults else argparse.SUPPRESS}
        if self.type is bool:
            keywords['action'] = 'store_true'
        elif self.type is dict:
            keywords.update(action=KeyValues, nargs=self.nargs)
        else:
            keywords.update(type=self.type, nargs=self.nargs, choices=self.choices, const=self.const)
        parser.add_argument(*self.flags.split(), **keywords)

    def problem(self, value: Any) -> str:
        """Say why a single value is not allowed; nothing where it is, or where nothing is set."""
        if value is None or isinstance(value, bool):
            return ''
        if self.known is not None and value not in self.known:
            return unknown(value, self.known)
        if not isinstance(value, int | float):
            return ''
        limits = {name: getattr(self, name) for name in _BOUNDS if getattr(self, name) is not None}
        if not math.isfinite(value):
            return 'must be a finite number'
        if all(_BOUNDS[name][1](value, limit) for name, limit in limits.items()):
            return ''
        if limits.keys() == {'low', 'high'}:
            return f'must lie between {self.low} and {self.high}'
        words = ' and '.join(f'{_BOUNDS[name][0]} {limit}' for name, limit in limits.items())
        return {'at least 0': 'must not be negative', 'above 0': 'must be positive'}.get(words, f'must be {words}')


def size(text: str) -> int | float:
    """Read a number of pixels (whole), or a share of the training size (0 to 1)."""
    value = float(text)
    return int(value) if value > 1 and value.is_integer() else value


def flag(flags: str, help: str, **keywords) -> Option:
    """Describe a switch that is off unless given."""
    return Option(flags, bool, False, help, **keywords)


class Group:
    """Options under one heading, which groups may share; they have no effect without the switch."""

    def __init__(self, title: str | None, *options: Option, switch: str = ''):
        self.title, self.options, self.switch = title, options, switch


class KeyValues(ParseKwargs):
    """timm's action for `key=value` pairs; a pair without '=' is a clear error instead of a stack trace."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None):
        for value in values:
            if value and '=' not in value:
                raise OptionError(f'{option_string} {value}: pairs are written key=value')
        super().__call__(parser, namespace, values, option_string)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `OptionError`; without defaults, only what is given ends up in the namespace."""

    def __init__(self, groups: Iterable[Group], *, defaults: bool = True, **keywords):
        super().__init__(**keywords)
        targets = {None: self}
        for group in groups:
            if group.title not in targets:
                targets[group.title] = self.add_argument_group(group.title)
            for option in group.options:
                option.add_to(targets[group.title], defaults=defaults)

    def error(self, message: Any):
        raise OptionError(message)

    def parse_args(self, args: Namespace | None = None, namespace: Any = None):
        """Parse the command line; unknown options are named together with the nearest known ones."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            known = [name for action in self._actions for name in action.option_strings]
            raise OptionError(f'unknown argument {extra[0]}{nearest(extra[0].split("=")[0], known)}')
        return parsed


def nearest(name: str, known: Iterable[str]) -> str:
    """Say which known names are nearest to a wrong one: a piece of text to append to a message, maybe empty."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f'; did you mean {" or ".join(matches)}?' if matches else ''


def unknown(value: str, known: Iterable[str], kind: str = 'value') -> str:
    """Say that a value is none of the known ones; of a long list only the nearest are named."""
    known = [name for name in known if name]
    choice = f', the choice is {", ".join(known)}' if len(known) <= 12 else ''
    return f'unknown {kind} {value!r}{choice}{nearest(value, known)}'


def value_of(args: Namespace, flag: str) -> Any:
    """Return the value of the option spelled `flag`."""
    return getattr(args, flag.lstrip('-').replace('-', '_'))


def is_set(value: Any) -> bool:
    """Whether a value says something: 0 does."""
    return value is not None and value is not False and value not in ('', [], {})


def shown(args: Namespace, flag: str) -> str:
    """Show an option as it would stand on the command line, value included."""
    value = value_of(args, flag)
    if value is True or value is None or value in ([], {}):
        return flag
    if value == '':
        return f"{flag} ''"
    if isinstance(value, dict):
        value = [f'{key}={item}' for key, item in value.items()]
    return f'{flag} {" ".join(map(str, value)) if isinstance(value, list) else value}'


def require(args: Namespace, flag: str, condition: Any, why: str):
    """Raise an `OptionError` that names option, value and reason unless the condition holds."""
    if not condition:
        raise OptionError(f'{shown(args, flag)}: {why}')


def refuse_with(args: Namespace, flag: str, others: Iterable[str], why: str):
    """Raise an `OptionError` if `flag` and one of the other options are on: set, not zero, not empty."""
    for other in others if value_of(args, flag) else ():
        require(args, flag, not value_of(args, other), f'does not go with {shown(args, other)} ({why})')


def require_known(args: Namespace, flag: str, value: str, known: Iterable[str], kind: str = 'value'):
    """Raise an `OptionError` unless a value of an option is known."""
    known = list(known)
    require(args, flag, value in known, '' if value in known else unknown(value, known, kind))


def require_package(args: Namespace, flag: str, module: str, package: str | None = None):
    """Raise an `OptionError` unless the Python package that an option needs is installed."""
    found = not value_of(args, flag) or importlib.util.find_spec(module) is not None
    require(args, flag, found, f'needs the Python package {package or module}, which is not installed')


@contextmanager
def naming(args: Namespace, *flags: str, hint: str = ''):
    """Raise an `OptionError` that names options if what is built from them inside fails, whatever timm or torch says.

    Args:
        flags: The one most likely to blame, and others, which are named where they are set.
        hint: What to try instead.
    """
    try:
        yield
    except Exception as error:  # whatever a library makes of values that it does not like
        given = ' '.join(shown(args, flag) for flag in flags if flag == flags[0] or is_set(value_of(args, flag)))
        raise OptionError(f'{given}: cannot be used ({one_line(error)}){hint and "; "}{hint}') from error


def check_values(args: Namespace, groups: Iterable[Group]):
    """Hold every value to the bounds and known values of its row."""
    for option in (option for group in groups for option in group.options):
        value = value_of(args, option.label)
        for item in value if isinstance(value, list) else [value]:
            problem = option.problem(item)
            require(args, option.label, not problem, problem)


def warn_without_effect(args: Namespace, groups: Iterable[Group], given: Iterable[str]):
    """Warn of options on the command line (attribute names `given`) whose switch is off; a file's may wait for it."""
    for group in groups:
        for option in group.options:
            conditions = ('' if option.label == group.switch else group.switch).split(), option.needs.split()
            lacking = [needs for needs in conditions if needs and not any(is_on(args, need) for need in needs)]
            if option.dest in given and lacking:
                switches = ' or '.join(need.replace('=', ' ') for need in lacking[0])
                warn(f'{shown(args, option.label)} has no effect without {switches}.')


def is_on(args: Namespace, need: str) -> bool:
    """Whether an option is set, not zero and not empty; for `--option=value`, whether that is (among) its value."""
    name, _, wanted = need.partition('=')
    value = value_of(args, name)
    return wanted in (value.split('+') if isinstance(value, str) else value or ()) if wanted else bool(value)


def warn(message: str):
    """Log a warning about the options, in one process of many."""
    if os.environ.get('RANK', '0') == '0':
        _logger.warning(message)
