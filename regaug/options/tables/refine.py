"""Options of the refinement phase."""

from regaug.options.option import Group, Option, flag

REFINE = Group(
    'Refinement parameters',
    (
        Option('--refine-epochs', int, 0, 'epochs without intensive augmentation after the schedule; 0: off'),
        Option(
            '--refine-lr',
            float,
            None,
            'learning rate of the refinement (default: the last of a step schedule, 1/1000 of the peak otherwise)',
        ),
        Option('--refine-fade', int, 0, 'epochs before the refinement over which the augmentation fades out'),
        flag('--refine-plain', 'no sub-networks (GradAug) in the refinement either'),
        Option('--manifold-mixup', float, 0.0, "alpha of Manifold Mixup's Beta distribution, 0: off"),
    ),
)
