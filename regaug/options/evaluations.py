"""Options of the evaluations beyond accuracy, and what they ask of the others."""

import os
from argparse import Namespace
from pathlib import Path

from timm.utils import is_distributed_env

from regaug.options.parser import Group, Option, flag, refuse_with, require, require_package, value_of
from regaug.options.timm_checks import check_files

# All but the first take images, some look into the model.
_EVALUATIONS = ('--ece', '--attack', '--imagenet-c', '--certify', '--cam', '--spectrum', '--risk', '--export')
_JUDGED = ('--ece', '--attack', '--imagenet-c', '--certify')
_INSIDE = ('--cam', '--spectrum', '--export')
_EPS = 'largest changes, one row each (default: fgsm 0.05 0.1 0.15 0.2 0.25, pgd 4/255)'
_SPACE = 'where changes are measured: normalised images, or pixels in [0, 1] (default: fgsm normalized, pgd pixel)'
_RESTARTS = 'random starts of pgd; an image must withstand all of them'
_IMAGENET_C = 'folder of corrupted images: <type>/<severity>/<class>/*, or <type>.npy and labels.npy'
_RESIZE = 'resize the corrupted images to the input of the model, in place of a plain crop'
_CERTIFY = 'certify by randomised smoothing with Gaussian noise of this deviation, in [0, 1] pixels'
_RISK = 'args.yaml of a training run: loss on its training images, clean, cropped and flipped, and augmented'
_EXPORT = 'folder for each network as a program of its own (torch.export; ONNX where installed)'

VALIDATE = Group(
    'Evaluation parameters',
    flag('--ece', 'add the negative log-likelihood and the calibration error (15 bins) to each row'),
    Option('--attack', str, None, 'accuracy under an attack that sees the network', choices=('fgsm', 'pgd')),
    Option('--attack-eps', float, None, _EPS, nargs='+', above=0, needs='--attack'),
    Option('--attack-space', str, None, _SPACE, choices=('normalized', 'pixel'), needs='--attack'),
    Option('--attack-steps', int, 10, 'steps of pgd', low=1, needs='--attack'),
    Option('--attack-step-size', float, None, 'of pgd (default: a quarter of the largest)', above=0, needs='--attack'),
    Option('--attack-restarts', int, 1, _RESTARTS, low=1, needs='--attack'),
    Option('--imagenet-c', str, None, _IMAGENET_C),
    Option('--corruptions', str, None, 'types to evaluate (default: all)', nargs='+', needs='--imagenet-c'),
    Option('--severities', int, None, 'of 1 to 5 (default: all)', nargs='+', low=1, high=5, needs='--imagenet-c'),
    flag('--corruption-resize', _RESIZE, needs='--imagenet-c'),
    Option('--certify', float, None, _CERTIFY, above=0),
    Option('--certify-n', int, 100_000, 'noisy copies that estimate the probability', low=1, needs='--certify'),
    Option('--certify-n0', int, 100, 'noisy copies of an image that choose its class', low=1, needs='--certify'),
    Option('--certify-alpha', float, 0.001, 'probability of a wrong certificate', above=0, below=1, needs='--certify'),
    Option('--certify-skip', int, 20, 'certify every so many-th image', low=1, needs='--certify'),
    Option('--certify-file', str, '', 'file of one line an image, continued if it is there', needs='--certify'),
    Option('--cam', str, None, 'folder for pictures of class activation maps, one row of networks an image'),
    Option('--cam-images', int, 8, 'images to draw, taken evenly from the split', low=1, needs='--cam'),
    Option('--cam-baseline', str, '', 'checkpoint of the same model to draw beside', needs='--cam'),
    Option('--spectrum', str, None, 'folder for the singular values of the penultimate features'),
    Option('--risk', str, None, _RISK),
    Option('--export', str, None, _EXPORT),
    flag('--log-wandb', 'log the table of results to Weights & Biases'),
    Option('--wandb-project', str, None, 'project on Weights & Biases', needs='--log-wandb'),
)


def check(args: Namespace):
    """Refuse what evaluations cannot be combined with, and what they cannot read or write."""
    given = [name for name in _EVALUATIONS if value_of(args, name)]
    for name in given:
        require(
            args,
            name,
            args.task != 'multilabel',
            'does not go with --task multilabel (one class an image)',
        )
    for name in (name for name in given if name != '--ece'):
        refuse_with(args, name, ['--naflex-loader', '--tf-preprocessing'], 'it takes images from the plain loader')
    for name in (name for name in given if name in _JUDGED):
        refuse_with(args, name, ['--real-labels'], 'it judges by the labels of the data')
    for name in (name for name in given if name in _INSIDE):
        refuse_with(args, name, ['--torchscript', '--aot-autograd', '--test-pool'], 'it looks into the model')
    several = is_distributed_env() and args.num_gpu > 1
    require(args, '--num-gpu', not several, 'does not go with torchrun (one process a GPU)')
    refuse_with(args, '--risk', ['--test-pool'], 'the training images are of the size of training')
    if args.attack:
        refuse_with(args, '--attack', ['--model-dtype', '--torchscript'], 'gradients are taken in float32')
    if args.imagenet_c:
        require(args, '--imagenet-c', Path(args.imagenet_c).is_dir(), 'there is no such folder')
    if args.certify is not None:
        enough = args.certify_n >= args.certify_n0
        require(args, '--certify-n', enough, f'must be at least --certify-n0 {args.certify_n0}')
    if args.certify_file:
        path = Path(args.certify_file)
        require(args, '--certify-file', path.parent.is_dir() and not path.is_dir(), 'cannot be written')
    for name in _INSIDE:
        check_results_folder(args, name)
    check_files(args, '--cam-baseline', '--risk')
    if args.log_wandb:
        require_package(args, '--log-wandb', 'wandb')


def check_results_folder(args: Namespace, name: str):
    """Make sure that the folder an evaluation writes to is there or can be made, and can be written to."""
    value = value_of(args, name)
    if not value:
        return
    folder = Path(value)
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK)
    require(args, name, writable, f'{nearest} is no folder that can be written to')
