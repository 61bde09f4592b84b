"""The training loss, chosen as timm's script chooses it."""

from typing import Any

from timm.task import create_classification_loss
from torch import nn


def create_criterion(phase: Any) -> nn.Module:
    """The training loss of a `phases.Phase`.

    As in timm, `--bce-loss` in a run without smoothing and mixing is cross-entropy; it is the same in all phases.
    """
    options = phase.options
    multi_label = options.task == 'multilabel'
    binary = multi_label or (options.bce_loss and (phase.run_mixes or options.smoothing > 0))
    kwargs = {}
    if binary:
        kwargs = dict(
            bce_target_thresh=options.bce_target_thresh,
            bce_sum=options.bce_sum,
            pos_weight=options.bce_pos_weight,
        )
    return create_classification_loss(
        'jsd' if options.jsd_loss else 'bce' if binary else 'ce',
        multi_label=multi_label,
        smoothing=options.smoothing,
        soft_targets=phase.loader_smooths if multi_label else phase.soft_targets,
        jsd_splits=options.aug_splits,
        **kwargs,
    )
