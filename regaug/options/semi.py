"""Options of GradAug-semi, and what unlabelled images cannot be combined with."""

from argparse import Namespace

from regaug.options.parser import Group, Option, refuse_with, require, shown
from regaug.options.timm_data_checks import STREAMS, check_folder

_DATASET = 'their kind and name, as for --dataset (default: as the labelled ones, or the folder)'
_TEACHER = 'who gives pseudo-labels: the full network, or its moving average (--model-ema)'

TRAIN = Group(
    'GradAug-semi parameters',
    Option('--unlabeled-split', str, None, 'split whose images also train, without their labels; needs --gradaug'),
    Option('--unlabeled-data-dir', str, None, 'folder of the unlabelled images (default: that of the labelled ones)'),
    Option('--unlabeled-dataset', str, None, _DATASET),
    Option('--uratio', float, 1.0, 'unlabelled images for each labelled one in a batch; 0: none', low=0),
    Option('--ulb-loss-ratio', float, 1.0, 'weight of the loss on unlabelled images', low=0),
    Option('--ulb-warmup-updates', int, 0, 'updates in which this weight rises linearly from 0', low=0),
    Option('--p-cutoff', float, 0.0, 'confidence from which on a pseudo-label counts; 0: all', low=0, below=1),
    Option('--ulb-teacher', str, 'full', _TEACHER, choices=('full', 'ema')),
    switch='--unlabeled-split',
)


def resolve(args: Namespace, chosen: dict):
    """Unlabelled images come from where the labelled ones do, unless a place of their own is given."""
    if args.unlabeled_split is None and (args.unlabeled_data_dir or args.unlabeled_dataset):
        args.unlabeled_split = args.train_split
    if args.unlabeled_split and args.unlabeled_dataset is None:
        args.unlabeled_dataset = '' if args.unlabeled_data_dir else args.dataset


def check(args: Namespace):
    """Refuse what unlabelled images cannot be combined with, and batches without any of them."""
    if not args.unlabeled_split:
        return
    require(args, '--unlabeled-split', args.gradaug, 'needs --gradaug, whose sub-networks train on unlabelled images')
    others = {
        '--kd-model-name': 'pseudo-labels come from the full network',
        '--uada': 'its operators take labelled images alone',
        '--train-img-sizes': 'labelled batches would change their size alone',
        '--use-multi-epochs-loader': 'they are drawn anew in every epoch',
        '--gradaug-average': 'terms on unlabelled images have a weight of their own',
    }
    for flag, why in others.items():
        refuse_with(args, '--unlabeled-split', [flag], why)
    views = args.maxup and 'views' in (args.maxup_aug or '').split('+')
    why = f'does not go with {shown(args, "--maxup-aug")} (unlabelled images have one version each)'
    require(args, '--unlabeled-split', not views, why)
    soft = args.gradaug_targets == 'soft'
    require(args, '--unlabeled-split', soft, f'does not go with {shown(args, "--gradaug-targets")} (there are none)')
    images = not args.uratio or round(args.uratio * args.batch_size) >= 1
    require(args, '--uratio', images, f'gives no image in a batch of {shown(args, "--batch-size")}')
    averaged = args.ulb_teacher == 'full' or (args.model_ema and not args.model_ema_force_cpu)
    require(args, '--ulb-teacher', averaged, 'needs --model-ema, on the device of the model')
    kind, slash, _ = args.unlabeled_dataset.partition('/')
    prefix = kind.lower() if slash else ''
    require(
        args,
        '--unlabeled-dataset',
        prefix not in STREAMS,
        'unlabelled images are drawn by index, which a stream has not',
    )
    if args.unlabeled_data_dir and prefix in ('', 'torch'):
        check_folder(args, '--unlabeled-data-dir', may_be_missing=False)
