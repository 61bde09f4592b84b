"""Options of UADA."""

from regaug.options.option import Group, Option, flag

UADA = Group(
    'UADA parameters',
    (
        flag('--uada', 'adapt the augmentation of each sample to the loss, by the sign of its finite differences'),
        Option(
            '--uada-groups',
            str,
            ['policy'],
            'what adapts: crop (needs --pad-crop) and flip in place of the loader, policy (two operators), cutout',
            nargs='+',
        ),
        Option(
            '--uada-ranges',
            str,
            'paper',
            "ranges of the operators: the paper's, or those of timm's increasing RandAugment",
            choices=('paper', 'timm'),
        ),
        Option('--uada-delta', int, 1, 'size of the probes, in levels and pixels'),
        Option('--uada-epsilon', int, 1, 'size of the step, in levels and pixels; 0: the operators without adaptation'),
        Option(
            '--uada-step',
            str,
            'ascend',
            'where parameters move: up the loss, at random, or down the loss (then towards the smallest)',
            choices=('ascend', 'random', 'descend'),
        ),
        flag('--uada-reuse', 'score nothing twice; batch-norm then sees candidates of several kinds in one batch'),
    ),
)
