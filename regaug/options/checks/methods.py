"""What none of the methods that regaug adds can work with."""

from argparse import Namespace

from regaug.options.checks.require import refuse_with, value_of

METHODS = ('--gradaug', '--maxup', '--refine-epochs', '--manifold-mixup', '--uada')
REFUSED = {
    '--jsd-loss': 'it compares views that a method would change',
    '--aug-splits': 'a batch then holds several views of each image',
    '--naflex-loader': 'a batch then holds patch sequences instead of images',
    '--torchscript': 'a scripted model takes no hooks and no other widths',
}


REFUSED_WITH_MANIFOLD_MIXUP = {
    '--gradaug': 'sub-networks cannot follow a mixture of hidden features',
    '--kd-model-name': 'the teacher cannot follow a mixture of hidden features',
    '--grad-checkpointing': 'it runs the stages as parts, so that nothing can be mixed after them',
    '--torchcompile': 'the place of the mixture changes from batch to batch',
}


def check_methods(args: Namespace):
    for method in METHODS:
        if value_of(args, method):
            for flag, why in REFUSED.items():
                refuse_with(args, method, [flag], why)
    if args.manifold_mixup:
        for flag, why in REFUSED_WITH_MANIFOLD_MIXUP.items():
            refuse_with(args, '--manifold-mixup', [flag], why)
