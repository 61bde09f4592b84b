"""What none of the methods that regaug adds can work with."""

from argparse import Namespace

from regaug.options.checks.require import refuse_with, value_of

METHODS = ('--gradaug', '--refine-epochs', '--manifold-mixup')
REFUSED = {
    '--jsd-loss': 'it compares views that a method would change',
    '--aug-splits': 'a batch then holds several views of each image',
    '--naflex-loader': 'a batch then holds patch sequences instead of images',
    '--torchscript': 'a scripted model takes no hooks and no other widths',
}


def check_methods(args: Namespace):
    for method in METHODS:
        if value_of(args, method):
            for flag, why in REFUSED.items():
                refuse_with(args, method, [flag], why)
