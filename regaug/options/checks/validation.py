"""Options of validate.py."""

from argparse import Namespace
from pathlib import Path

from timm.models import list_models

from regaug.options.checks.model import check_file, check_model_name, check_published_weights
from regaug.options.checks.require import refuse_with, require, require_one_of, require_package


def check_evaluated_model(args: Namespace):
    """`--model` is one model, `all`, a wildcard or a file of names; `--checkpoint` a file or a folder."""
    require(
        args, '--checkpoint', not args.checkpoint or Path(args.checkpoint).exists(), 'there is no such file or folder'
    )
    if args.model == 'all' or Path(args.model).is_file():
        return
    if set('*?[') & set(args.model):
        require(args, '--model', list_models(args.model, pretrained=True), 'no pretrained model has such a name')
        return
    check_model_name(args, '--model')
    if not args.checkpoint:
        check_published_weights(args, '--model', 'give a --checkpoint')


def check_evaluation(args: Namespace):
    require_one_of(args, '--crop-mode', (None, '', 'squash', 'border', 'center'))
    require_one_of(args, '--results-format', ('csv', 'json'))
    for flag in ('--real-labels', '--valid-labels'):
        check_file(args, flag)
    if args.metrics_avg:
        require_package(args, '--metrics-avg', 'sklearn', 'scikit-learn')
    if args.tf_preprocessing:
        require_package(args, '--tf-preprocessing', 'tensorflow')


def check_widths(args: Namespace):
    if args.width:
        require(args, '--width', all(0 < width <= 1 for width in args.width), 'must be above 0 and at most 1')
        refuse_with(args, '--width', ['--torchscript'], 'a scripted model cannot run at another width')
        refuse_with(args, '--width', ['--naflex-loader'], 'sub-networks take images, not patch sequences')
