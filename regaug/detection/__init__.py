"""The options of `python -m regaug.detection`, which trains torchvision's detectors on a backbone of timm.

Rows that mean the same as in train.py are those of train.py; what has no row here keeps the default of train.py's.
"""

import copy
import inspect
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace

from torchvision.models.detection import FasterRCNN, MaskRCNN

from regaug import options
from regaug.options.config import CONFIG, as_yaml, command_line_wins, read_config
from regaug.options.parser import (
    Group,
    Option,
    Parser,
    check_values,
    require,
    require_known,
    require_package,
    warn_without_effect,
)
from regaug.options.timm_checks import check_device, check_files, check_model_name, check_published_weights

DETECTORS = {'faster': FasterRCNN, 'mask': MaskRCNN}
LONG_EDGE = 5 / 3  # of the short one at most: 1000 by 600 in GradAug's section 4.4
SIZE_SHARES = (1, 5 / 6, 4 / 6, 3 / 6)  # 600, 500, 400 and 300 there
DECAYS = (8 / 12, 11 / 12)  # of the epochs, after which the rate falls: the 1x schedule
_ROWS = {option.label: option for group in options.TRAIN for option in group.options}
_SIZES = 'short edges of the sub-networks, in pixels (default: 1, 5/6, 2/3 and 1/2 of --size)'


def _rows(*labels: str, **defaults) -> list[Option]:
    """Rows of train.py by their long spellings, some with another default."""
    return [replace(_ROWS[label], default=defaults.get(_ROWS[label].dest, _ROWS[label].default)) for label in labels]


GROUPS = (
    Group(
        'Data',
        Option('--data-dir', str, None, 'folder with a folder of images and a json (COCO format) for each split'),
        Option('--train-split', str, 'train2017', 'folder of images, described by instances_<split>.json'),
        Option('--val-split', str, 'val2017', 'split to evaluate on, the same way; empty: no evaluation'),
        *_rows('--workers'),
    ),
    Group(
        'Detector',
        Option('--backbone', str, 'resnet50', 'any model of timm with feature maps of strides 4, 8, 16 and 32'),
        Option('--checkpoint', str, '', 'weights of the backbone: a classifier trained by train.py or by timm'),
        *_rows('--pretrained', '--model-kwargs'),
        Option('--detector', str, 'mask', 'Faster R-CNN or Mask R-CNN', choices=tuple(DETECTORS)),
        Option('--detector-kwargs', dict, {}, "further arguments of torchvision's detector, as key=value", nargs='*'),
        Option('--size', int, 600, 'short edge of the images, in pixels', low=1),
        Option('--max-size', int, None, 'limit of the long edge (default: 5/3 of --size)', low=1),
    ),
    Group(
        'Training',
        *_rows('--batch-size', '--validation-batch-size', '--grad-accum-steps', '--epochs', batch_size=2, epochs=12),
        *_rows('--lr', '--lr-base', '--lr-base-size', lr_base=0.02, lr_base_size=16),
        Option(
            '--decay-milestones', float, None, 'epochs after which the rate falls (default: 8/12, 11/12)', '+', above=0
        ),
        Option('--warmup-updates', int, 500, 'updates in which the rate rises', low=0),
        *_rows('--momentum', '--weight-decay', '--clip-grad', '--clip-mode', weight_decay=1e-4),
        *_rows('--device', '--amp', '--amp-dtype', '--seed', '--local_rank', '--max-bad-updates', '--dry-run'),
    ),
    Group(
        'GradAug',
        *_rows('--gradaug', '--gradaug-min-width', '--gradaug-width-divisor', '--gradaug-widths'),
        Option('--gradaug-sizes', int, None, _SIZES, nargs='+', low=1),
        *_rows('--gradaug-weight', '--gradaug-every', '--gradaug-start-epoch'),
        switch='--gradaug',
    ),
    Group(
        'Files and log',
        *_rows('--output', '--experiment', '--resume', '--overwrite', '--exact-resume', '--no-resume-opt'),
        *_rows('--checkpoint-hist', '--recovery-interval', '--log-interval', '--val-interval'),
        Option('--save-images', bool, False, 'keep pictures of ground truth and predictions at each evaluation'),
        *_rows('--log-wandb', '--wandb-project', '--wandb-tags', '--wandb-resume-id'),
    ),
)


def detection_parser(*, defaults: bool = True) -> Parser:
    """Return the parser of the command line; without defaults it tells what is given."""
    about = 'Train a detector of torchvision on a backbone of timm.'
    return Parser((CONFIG, *GROUPS), defaults=defaults, prog='python -m regaug.detection', description=about)


def parse(argv: Sequence[str] | None = None) -> Namespace:
    """Parse and check the options: those of the command line, else of the file of `-c`, else the defaults.

    Raises:
        OptionError: An option, a key of the file or a combination that cannot be used.
    """
    parser = detection_parser(defaults=False)
    given = vars(parser.parse_args(argv))
    config = given.pop('config', None)
    file = {} if config is None else read_config(config, parser, GROUPS)
    command_line_wins(given, file)
    rows = [option for group in (*options.TRAIN, *GROUPS) for option in group.options]
    args = Namespace(**{**{option.dest: copy.deepcopy(option.default) for option in rows}, **file, **given})
    check_values(args, GROUPS)
    args.max_size = args.max_size or round(LONG_EDGE * args.size)
    args.gradaug_sizes = args.gradaug_sizes or [round(share * args.size) for share in SIZE_SHARES]
    args.decay_milestones = args.decay_milestones or [share * args.epochs for share in DECAYS]
    _check(args)
    warn_without_effect(args, GROUPS, given)
    # What train.py's parts look for: the name of experiments and checkpoints, and of the schedule.
    args.model, args.sched, args.warmup_epochs = args.backbone, 'multistep', 0
    args.dist_bn = ''  # the statistics are frozen
    return args


def _check(args: Namespace):
    require(args, '--data-dir', args.data_dir, 'is needed')
    check_device(args)
    check_model_name(args, '--backbone')
    check_published_weights(args, '--backbone', args.pretrained, 'leave --pretrained out')
    check_files(args, '--checkpoint', *(['--resume'] if args.resume != 'auto' else []))
    require(args, '--checkpoint', not (args.checkpoint and args.pretrained), 'does not go with --pretrained')
    require(args, '--max-size', args.max_size >= args.size, f'is less than --size {args.size}')
    in_order = args.decay_milestones == sorted(args.decay_milestones)
    require(args, '--decay-milestones', in_order, 'must be in ascending order')
    for size in args.gradaug_sizes:
        require(args, '--gradaug-sizes', size <= args.size, f'must not be above --size {args.size}')
    names = {name for kind in DETECTORS.values() for name in inspect.signature(kind).parameters}
    for name in args.detector_kwargs:
        require_known(args, '--detector-kwargs', name, names - {'backbone', 'num_classes', 'kwargs'}, 'argument')
    afresh = not args.overwrite or args.resume != 'auto'
    require(args, '--overwrite', afresh, 'does not go with --resume auto (it removes what that goes on from)')
    require_package(args, '--log-wandb', 'wandb')


def as_config(args: Namespace) -> str:
    """Write the resolved options as YAML; `-c` reads it back, without resuming and the like."""
    rows = [option for group in GROUPS for option in group.options]
    return as_yaml({option.dest: option.default if option.once else getattr(args, option.dest) for option in rows})
