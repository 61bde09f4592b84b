"""Argument parsers made of the option tables."""

import argparse
import difflib
from collections.abc import Iterable

from regaug.errors import OptionError
from regaug.options.option import Group


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake as an `OptionError` and leaves exiting to the script."""

    def error(self, message):
        raise OptionError(message)

    def parse_args(self, args=None, namespace=None):
        """Parses the command line; unknown options are named together with the nearest known ones.

        Raises:
            OptionError: An unknown option, or a value that does not fit.
        """
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            raise OptionError(f'unknown argument {unknown[0]}{nearest(unknown[0].split("=")[0], known)}')
        return parsed


def build_parser(description: str, groups: Iterable[Group], parents: Iterable[argparse.ArgumentParser] = ()) -> Parser:
    """Builds a parser from groups of options.

    Args:
        description: What the program does.
        groups: The options, in the order of `--help`.
        parents: Parsers whose options come first.
    """
    parser = Parser(description=description, parents=list(parents))
    for group in groups:
        target = parser.add_argument_group(group.title) if group.title else parser
        for option in group.options:
            option.add_to(target)
    return parser


def nearest(name: str, known: Iterable[str]) -> str:
    """Says which known names are nearest to a wrong one: a piece of text to append to a message, maybe empty."""
    matches = difflib.get_close_matches(name, list(known), n=3)
    return f'; did you mean {" or ".join(matches)}?' if matches else ''
