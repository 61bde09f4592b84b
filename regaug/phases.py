"""Which epoch is in which phase, and what augmentation and learning rate each phase has.

Source of the refinement phase: He et al., "Data Augmentation Revisited" (arXiv 1909.09148).
"""

import copy
from argparse import Namespace
from dataclasses import dataclass


@dataclass(frozen=True)
class Phase:
    """What holds in an epoch.

    Attributes:
        name: `main`, or `unmixed` after `--mixup-off-epoch`.
        options: the training options as they hold now; the train loader is rebuilt when they change.
        gradaug: GradAug's sub-networks run.
        switched_off: names of the options that are off now although the user set them.
    """

    name: str
    options: Namespace
    gradaug: bool = True
    switched_off: tuple[str, ...] = ()


def phase_at(epoch, args):
    """The phase of an epoch (counted from 0), from the options alone."""
    options = copy.copy(args)
    options.mixup_enabled = True
    gradaug = epoch >= args.gradaug_start_epoch
    if args.mixup_off_epoch and epoch >= args.mixup_off_epoch:
        options.mixup_enabled = False
        return Phase('unmixed', options, gradaug=gradaug, switched_off=('--mixup', '--cutmix'))
    return Phase('main', options, gradaug=gradaug)
