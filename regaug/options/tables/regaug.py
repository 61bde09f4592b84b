"""Options of regaug that belong to no single method."""

from regaug.options.option import Group, Option, flag

REGAUG = Group(
    'regaug parameters',
    (
        Option(
            '--pad-crop',
            int,
            0,
            'pad the images by this many pixels, then crop the training size at random, in '
            'place of the random resized crop; 0: off',
        ),
        Option('--pad-mode', str, 'reflect', 'filling of the padding of --pad-crop', choices=('reflect', 'constant')),
        Option('--labels-per-class', int, None, 'train on this many images of each class (default: on all)'),
        Option('--label-split', int, 0, 'which of the reproducible subsets --labels-per-class takes'),
        Option(
            '--updates-per-epoch',
            int,
            None,
            'updates in an epoch, whatever the size of the data: the images are repeated in new orders (default: one '
            'pass over the data)',
        ),
        flag(
            '--exact-resume',
            'a stopped and resumed run gives the numbers of an uninterrupted one, bit for bit on a CPU',
        ),
        flag(
            '--dry-run',
            'build everything, run two updates and one evaluation batch, say what a run would take, write nothing',
        ),
        Option(
            '--max-bad-updates', int, 10, 'stop after this many updates in a row whose loss is not finite; 0: never'
        ),
    ),
)
