"""Explain how a network of timm is slimmed.

python -m regaug.slimmable resnet50 --width 0.9
"""

import argparse
import ast
import sys

import timm
import torch

from regaug.cli import run
from regaug.errors import OptionError
from regaug.slimmable.explain import explain
from regaug.slimmable.plan import SlimmablePlan


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake as an `OptionError`."""

    def error(self, message: str):
        raise OptionError(message)


def key_value(text: str) -> tuple[str, object]:
    """Read `key=value`, the value as Python's if it is one."""
    key, equals, value = text.partition('=')
    if not equals:
        raise argparse.ArgumentTypeError(f'{text} is not KEY=VALUE')
    try:
        return key, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return key, value


def positive(text: str) -> int:
    """Read an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is less than 1')
    return value


def parse_args() -> argparse.Namespace:
    parser = Parser(prog=sys.argv[0], description='Explain how a network of timm is slimmed, layer by layer.')
    parser.add_argument('model', metavar='MODEL', help='a name that timm knows')
    parser.add_argument('--width', type=float, default=0.9, help='kept fraction of the channels (default: 0.9)')
    parser.add_argument(
        '--width-divisor', type=positive, default=8, help='kept channels are multiples of it (default: 8)'
    )
    parser.add_argument('--size', type=positive, help="pixels of the square input (default: the network's own)")
    parser.add_argument('--in-chans', type=positive, default=3, help='channels of the input (default: 3)')
    parser.add_argument('--num-classes', type=positive, help="outputs of the classifier (default: the network's own)")
    parser.add_argument('--model-kwargs', type=key_value, nargs='*', default=[], metavar='KEY=VALUE')
    return parser.parse_args()


def main():
    """Plan the network without weights and print the explanation.

    Raises:
        OptionError: timm does not build the network, or it cannot be slimmed so.
    """
    args = parse_args()
    options = {'in_chans': args.in_chans, 'num_classes': args.num_classes, **dict(args.model_kwargs)}
    try:
        with torch.device('meta'):
            model = timm.create_model(args.model, **options)
    except Exception as error:  # whatever timm and the network's constructor raise
        given = ' '.join(f'{key}={value}' for key, value in options.items() if value is not None)
        raise OptionError(f'MODEL {args.model} with {given}: {type(error).__name__}: {error}') from error
    height, width = (args.size, args.size) if args.size else model.pretrained_cfg['input_size'][1:]
    try:
        plan = SlimmablePlan(model, (args.in_chans, height, width))
        text = explain(model, plan, args.width, args.width_divisor)
    except ValueError as error:
        raise OptionError(f'MODEL {args.model} --width {args.width:g} --size {height}: {error}') from error
    print(f'{args.model} at {height}x{width} pixels\n\n{text}')


if __name__ == '__main__':
    sys.argv[0] = 'python -m regaug.slimmable'
    run(main)
