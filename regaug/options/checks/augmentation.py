"""Augmentation, mixing and losses: what timm asserts on, or breaks on later."""

from argparse import Namespace

from timm.data import create_transform

from regaug.data.transforms import TORCHVISION_POLICIES
from regaug.errors import OptionError
from regaug.options.checks.data import refuse_iterable
from regaug.options.checks.model import check_interpolation
from regaug.options.checks.require import refuse_with, require, require_one_of, spell, value_of

CROP_MODES = (None, '', 'rrc', 'rkrc', 'rkrr')
ERASE_MODES = ('const', 'rand', 'pixel', '')
MIXUP_MODES = ('batch', 'pair', 'elem')


def check_transforms(args: Namespace):
    require_one_of(args, '--train-crop-mode', CROP_MODES)
    require_one_of(args, '--remode', ERASE_MODES)
    check_interpolation(args, '--train-interpolation', also=('', 'random'))
    for flag in ('--scale', '--ratio', '--cutmix-minmax'):
        value = value_of(args, flag)
        ordered = value is None or (len(value) == 2 and 0 <= value[0] <= value[1])
        require(args, flag, ordered, 'needs two values, the smaller one first')
    if args.aa:
        check_policy(args)


def check_policy(args: Namespace):
    """Lets timm build the augmentation policy and reports what it says, unless it is one of torchvision's."""
    if args.aa in TORCHVISION_POLICIES:
        refuse_with(args, '--aa', ['--naflex-loader'], "that loader has timm's policies only")
        return
    try:
        create_transform(224, is_training=True, auto_augment=args.aa)
    except (AssertionError, ValueError, KeyError) as error:
        raise OptionError(f'{spell(args, "--aa")}: timm cannot read this policy ({error})') from None


def mixing_flags(args: Namespace) -> list[str]:
    """The options that switch mixing on."""
    flags = [flag for flag in ('--mixup', '--cutmix') if value_of(args, flag) > 0]
    return flags + (['--cutmix-minmax'] if args.cutmix_minmax is not None else [])


def check_mixing(args: Namespace):
    # 'half' exists in timm's collate function only.
    modes = MIXUP_MODES if args.no_prefetcher else (*MIXUP_MODES, 'half')
    require_one_of(args, '--mixup-mode', modes)
    mixing = mixing_flags(args)
    # The NaFlex loader and MaxUp pair the images of a batch in their own ways, whatever their number.
    if not mixing or args.naflex_loader or args.maxup:
        return
    why = f'must be even, since {spell(args, mixing[0])} mixes images in pairs'
    flag = '--train-batch-sizes' if args.train_batch_sizes else '--batch-size'
    sizes = args.train_batch_sizes or [args.batch_size]
    require(args, flag, all(size % 2 == 0 for size in sizes), why)


def check_splits(args: Namespace):
    """Augmentation splits, the loss and the batch-norm that go with them."""
    if not args.aug_splits:
        require(args, '--jsd-loss', not args.jsd_loss, f'needs --aug-splits of 2 or more, not {args.aug_splits}')
        allowed = args.resplit or not args.split_bn
        require(args, '--split-bn', allowed, f'needs --aug-splits of 2 or more, not {args.aug_splits}, or --resplit')
        even = not args.split_bn or args.batch_size % 2 == 0
        require(args, '--batch-size', even, 'must be even, since --split-bn with --resplit halves the batch')
        return
    require(args, '--aug-splits', args.aug_splits > 1, 'must be 0 (off), or 2 and more')
    refuse_with(args, '--aug-splits', mixing_flags(args), 'views of one image are not mixed')
    refuse_with(args, '--aug-splits', ['--no-aug'], 'there is nothing to split')
    refuse_with(args, '--aug-splits', ['--no-prefetcher'], 'only the collate function of the prefetcher joins views')
    refuse_iterable(args, '--aug-splits', 'views are made by index, which a stream has not')


def check_pad_crop(args: Namespace):
    if args.pad_crop:
        others = ['--no-aug', '--train-crop-mode', '--train-img-sizes', '--naflex-loader']
        refuse_with(args, '--pad-crop', others, 'it decides the crop itself, at one training size')
