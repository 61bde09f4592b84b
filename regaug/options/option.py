"""The rows that the option tables are made of."""

import copy
from dataclasses import dataclass
from typing import Any

from regaug.options.key_values import KeyValues


@dataclass(frozen=True)
class Option:
    """One command-line option.

    Attributes:
        flags: Its spellings, separated by blanks; a spelling without dashes is a positional argument.
        type: `str`, `int` or `float`; `None` for text that argparse leaves alone; `bool` for a flag that is off
            unless given; `dict` for `key=value` pairs.
        default: Value without the option.
        help: One line; the default is added where there is one worth telling.
        nargs: As in argparse.
        choices: The values allowed, if they are few and fixed.
        const: Value of an option given without a value (`nargs='?'`).
        nullable: Whether a configuration file may say null although the default is something else.
    """

    flags: str
    type: type | None
    default: Any
    help: str
    nargs: str | int | None = None
    choices: tuple | None = None
    const: Any = None
    nullable: bool = False

    @property
    def names(self) -> list[str]:
        """The spellings, dashes included."""
        return self.flags.split()

    @property
    def label(self) -> str:
        """The spelling to use in messages: the first long one."""
        return next((name for name in self.names if name.startswith('--')), self.names[0])

    @property
    def dest(self) -> str:
        """Attribute of the parsed namespace, as argparse derives it."""
        return self.label.lstrip('-').replace('-', '_')

    def add_to(self, parser):
        """Declares the option on an argparse parser or group."""
        keywords = {'help': self._help_with_default(), 'default': copy.deepcopy(self.default)}
        if self.type is bool:
            keywords['action'] = 'store_true'
        elif self.type is dict:
            keywords.update(action=KeyValues, nargs=self.nargs)
        else:
            keywords.update(type=self.type, nargs=self.nargs, choices=self.choices, const=self.const)
        parser.add_argument(*self.names, **keywords)

    def _help_with_default(self) -> str:
        text = self.help.replace('%', '%%')
        worth_telling = self.default is not None and self.default is not False and self.default not in ('', {}, [])
        return text + ' (default: %(default)s)' if worth_telling else text


def flag(flags: str, help: str) -> Option:
    """A switch that is off unless given."""
    return Option(flags, bool, False, help)


@dataclass(frozen=True)
class Group:
    """The options that stand under one heading; without a title they stand among argparse's own."""

    title: str | None
    options: tuple[Option, ...]
