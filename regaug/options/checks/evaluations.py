"""Options of the evaluations beyond accuracy."""

import os
from argparse import Namespace
from pathlib import Path

from timm.utils import is_distributed_env

from regaug.options.checks.model import check_file
from regaug.options.checks.ranges import numbers, require_at_least_one
from regaug.options.checks.require import refuse_with, require, require_package, value_of

# What a network must be for an evaluation: most work on images and class indices, some look into the model.
EVALUATIONS = ('--ece', '--attack', '--imagenet-c', '--certify', '--cam', '--spectrum', '--risk', '--export')
ON_IMAGES = EVALUATIONS[1:]
INSIDE = ('--cam', '--spectrum', '--export')
# Options that say how, and the evaluation that they belong to.
DETAILS = {
    '--attack': ('--attack-eps', '--attack-space', '--attack-step-size'),
    '--imagenet-c': ('--corruptions', '--severities', '--corruption-resize'),
    '--certify': ('--certify-file',),
    '--cam': ('--cam-baseline',),
    '--log-wandb': ('--wandb-project',),
}
AT_LEAST_ONE = (
    '--attack-steps',
    '--attack-restarts',
    '--severities',
    '--certify-n',
    '--certify-n0',
    '--certify-skip',
    '--cam-images',
)


def check(args: Namespace):
    """The options of evaluations, and what they ask of the others."""
    require_at_least_one(args, AT_LEAST_ONE)
    for flag, details in DETAILS.items():
        for detail in details:
            used = value_of(args, flag) or not value_of(args, detail)
            require(args, detail, used, f'works with {flag} only, which is not given')
    given = [flag for flag in EVALUATIONS if value_of(args, flag)]
    multilabel = getattr(args, 'task', None) == 'multilabel'
    for flag in given:
        require(args, flag, not multilabel, 'does not go with --task multilabel (it takes one class an image)')
    for flag in (flag for flag in given if flag in ON_IMAGES):
        refuse_with(args, flag, ['--naflex-loader', '--tf-preprocessing'], 'it takes images from the plain loader')
    for flag in (flag for flag in given if flag in INSIDE):
        refuse_with(args, flag, ['--torchscript', '--aot-autograd', '--test-pool'], 'it looks into the model')
    several = is_distributed_env() and args.num_gpu > 1
    require(args, '--num-gpu', not several, 'does not go with torchrun (one process a GPU)')
    check_attack(args)
    check_corruptions(args)
    check_smoothing(args)
    for flag in ('--cam', '--spectrum', '--export'):
        check_results_folder(args, flag)
    for flag in ('--cam-baseline', '--risk'):
        check_file(args, flag)
    if args.log_wandb:
        require_package(args, '--log-wandb', 'wandb')


def check_attack(args: Namespace):
    if not args.attack:
        return
    for flag in ('--attack-eps', '--attack-step-size'):
        require(args, flag, all(0 < value < float('inf') for value in numbers(args, flag)), 'must be positive')
    refuse_with(args, '--attack', ['--model-dtype', '--torchscript'], 'gradients are taken in float32')


def check_corruptions(args: Namespace):
    if not args.imagenet_c:
        return
    require(args, '--imagenet-c', Path(args.imagenet_c).is_dir(), 'there is no such folder')
    require(args, '--severities', all(level <= 5 for level in args.severities or ()), 'must lie between 1 and 5')


def check_smoothing(args: Namespace):
    if args.certify is None:
        return
    require(args, '--certify', 0 < args.certify < float('inf'), 'must be positive')
    require(args, '--certify-n', args.certify_n >= args.certify_n0, f'must be at least --certify-n0 {args.certify_n0}')
    require(args, '--certify-alpha', 0 < args.certify_alpha < 1, 'must lie between 0 and 1')
    if args.certify_file:
        path = Path(args.certify_file)
        require(args, '--certify-file', path.parent.is_dir() and not path.is_dir(), 'cannot be written')


def check_results_folder(args: Namespace, flag: str):
    """Makes sure that the folder an evaluation writes to is there or can be made, and can be written to."""
    value = value_of(args, flag)
    if not value:
        return
    folder = Path(value)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    require(args, flag, writable, f'{nearest} is no folder that can be written to')
