"""Options of GradAug."""

from regaug.options.option import Group, Option

GRADAUG = Group(
    'GradAug parameters',
    (
        Option('--gradaug', int, 0, 'sub-networks trained beside the full network at each update; 0: off'),
        Option('--gradaug-min-width', float, 0.9, 'smallest fraction of channels a sub-network keeps, in (0, 1]'),
        Option('--gradaug-width-divisor', int, 8, 'kept channels are rounded to multiples of this'),
        Option(
            '--gradaug-transforms',
            str,
            ['scale'],
            "transforms of the input of the sub-networks, in this order; none given: their input is the full network's",
            nargs='*',
            choices=('scale', 'rotate', 'crop', 'flip'),
        ),
        Option(
            '--gradaug-sizes',
            int,
            None,
            'sides that scale and crop draw from (default: 1, 6/7, 5/7 and 4/7 of the training size, rounded)',
            nargs='+',
        ),
        Option(
            '--gradaug-targets',
            str,
            'soft',
            "what the sub-networks learn: the full network's output, or the labels",
            choices=('soft', 'hard'),
        ),
        Option(
            '--gradaug-subnet',
            str,
            'width',
            'what makes a sub-network: fewer channels, or fewer blocks (stochastic depth)',
            choices=('width', 'depth'),
        ),
        Option('--gradaug-depth-rate', float, 0.2, 'rate at which depth sub-networks drop their last block'),
        Option('--gradaug-weight', float, 1.0, "weight of each sub-network's loss"),
        Option('--gradaug-every', int, 1, 'train sub-networks at every n-th update only'),
        Option('--gradaug-start-epoch', int, 0, 'first epoch that trains sub-networks'),
        Option(
            '--gradaug-compile',
            int,
            0,
            'draw widths from this many fixed ones and compile the sub-networks for them (an approximation); 0: off',
        ),
    ),
)
