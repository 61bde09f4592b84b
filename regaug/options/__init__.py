"""The options of train.py and validate.py: tables, parsing, and the checks made before anything is built."""

import argparse
from collections.abc import Sequence

import yaml

from regaug.options.checks import check_train, check_validate
from regaug.options.config import config_parser, read_config
from regaug.options.defaults import resolve_defaults
from regaug.options.parser import Parser, build_parser
from regaug.options.tables import TRAIN, VALIDATE


def train_parser() -> Parser:
    """The parser of train.py."""
    return build_parser('Train an image classifier.', TRAIN, parents=[config_parser()])


def validate_parser() -> Parser:
    """The parser of validate.py."""
    return build_parser('Evaluate an image classifier.', VALIDATE)


def parse_train(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the options of train.py.

    A YAML file given by `-c` takes the place of the defaults; the command line wins over it.

    Args:
        argv: The arguments (default: the command line).

    Raises:
        OptionError: An option, a key of the file or a combination that cannot be used.
    """
    config, rest = config_parser().parse_known_args(argv)
    parser = train_parser()
    if 'config' in config:
        parser.set_defaults(**read_config(config.config, TRAIN))
    args = parser.parse_args(rest)
    resolve_defaults(args)
    check_train(args)
    return args


def parse_validate(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the options of validate.py.

    Args:
        argv: The arguments (default: the command line).

    Raises:
        OptionError: An option or a combination that cannot be used.
    """
    args = validate_parser().parse_args(argv)
    check_validate(args)
    return args


def args_as_yaml(args: argparse.Namespace) -> str:
    """The resolved options as sorted YAML; `-c` reads it back."""
    return yaml.safe_dump(vars(args), default_flow_style=False)
