"""How a check speaks: option, value, reason."""

import importlib.util
from argparse import Namespace
from collections.abc import Iterable

from regaug.errors import OptionError
from regaug.options.parser import nearest


def value_of(args: Namespace, flag: str):
    """The value of the option spelled `flag`."""
    return getattr(args, flag.lstrip('-').replace('-', '_'))


def spell(args: Namespace, flag: str) -> str:
    """An option as it would stand on the command line, value included."""
    value = value_of(args, flag)
    if value is True or value is None or value in ([], {}):
        return flag
    if value == '':
        return f"{flag} ''"
    if isinstance(value, dict):
        value = [f'{key}={item}' for key, item in value.items()]
    return f'{flag} {" ".join(map(str, value)) if isinstance(value, list) else value}'


def require(args: Namespace, flag: str, condition: bool, why: str):
    """Makes sure of a condition on an option.

    Raises:
        OptionError: The condition does not hold; the message names the option, its value and the reason.
    """
    if not condition:
        raise OptionError(f'{spell(args, flag)}: {why}')


def refuse_with(args: Namespace, flag: str, others: Iterable[str], why: str):
    """Makes sure that none of the other options is given together with `flag`.

    An option counts as given when its value is true: set, not zero, not empty.
    """
    for other in others:
        require(args, flag, not value_of(args, other), f'does not go with {spell(args, other)} ({why})')


def require_one_of(args: Namespace, flag: str, known: Iterable[str]):
    """Makes sure that a text option has one of the known values."""
    known = list(known)
    value = value_of(args, flag)
    require(args, flag, value in known, f'unknown, the choice is {", ".join(filter(None, known))}')


def require_known(args: Namespace, flag: str, condition: bool, kind: str, name: str, known: Iterable[str]):
    """As `require`, for names from a list too long to print: the nearest ones are suggested."""
    require(args, flag, condition, '' if condition else f'unknown {kind} {name!r}{nearest(name, known)}')


def require_package(args: Namespace, flag: str, module: str, package: str | None = None):
    """Makes sure that a Python package an option needs is installed."""
    found = importlib.util.find_spec(module) is not None
    require(args, flag, found, f'needs the Python package {package or module}, which is not installed')
