"""The option of Manifold Mixup, and what cannot follow a mixture of hidden features."""

from argparse import Namespace

from regaug.options.parser import Group, Option, refuse_with

TRAIN = Group(
    'Manifold Mixup parameters',
    Option('--manifold-mixup', float, 0.0, "alpha of Manifold Mixup's Beta distribution, 0: off", low=0),
    switch='--manifold-mixup',
)


def check(args: Namespace):
    """Refuse what cannot follow a mixture of hidden features."""
    for flag, why in {
        '--gradaug': 'sub-networks cannot follow a mixture of hidden features',
        '--kd-model-name': 'the teacher cannot follow a mixture of hidden features',
        '--grad-checkpointing': 'it runs the stages as parts, so that nothing can be mixed after them',
        '--torchcompile': 'the place of the mixture changes from batch to batch',
    }.items():
        refuse_with(args, '--manifold-mixup', [flag], why)
