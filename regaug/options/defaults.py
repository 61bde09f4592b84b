"""Defaults that depend on other options; what they become stands in args.yaml."""

from argparse import Namespace


def resolve_defaults(args: Namespace):
    """Fills in the options that were left open, before they are checked."""
    if args.maxup and args.maxup_aug is None:
        mixing = args.cutmix > 0 or args.cutmix_minmax is not None
        args.maxup_aug = 'mixup' if args.mixup > 0 and not mixing else 'cutmix'
        if args.maxup_aug == 'cutmix' and not mixing:
            args.cutmix = 1.0  # as in the paper, section 4.1
    if args.maxup and args.maxup_warmup_epochs is None:
        tuned = args.pretrained or args.initial_checkpoint or args.pretrained_path
        args.maxup_warmup_epochs = 0 if tuned else 5  # section 4
