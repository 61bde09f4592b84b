"""Options of the learning rate and of the length of the training."""

from regaug.options.option import Group, Option, flag

SCHEDULE = Group(
    'Learning rate schedule parameters',
    (
        Option(
            '--sched',
            str,
            'cosine',
            'schedule: cosine, tanh, poly, step, multistep, plateau, wsd, rsqrt, constant, none',
        ),
        flag('--sched-on-updates', 'move the schedule at every update, not at every epoch'),
        Option('--lr', float, None, 'peak learning rate; given, it is used as it is'),
        Option('--lr-base', float, 0.1, 'without --lr: learning rate for a batch of --lr-base-size images'),
        Option('--lr-base-size', int, 256, 'batch size that --lr-base is meant for'),
        Option(
            '--lr-base-scale',
            str,
            '',
            'how --lr-base grows with the global batch: linear or sqrt (default: sqrt '
            'for optimisers named ada or lamb, linear for the others)',
        ),
        Option(
            '--lr-noise',
            float,
            None,
            'span of the training with noisy learning rate, as fractions of the epochs',
            nargs='+',
        ),
        Option('--lr-noise-pct', float, 0.67, 'largest relative noise on the learning rate'),
        Option('--lr-noise-std', float, 1.0, 'standard deviation of the noise'),
        Option('--lr-cycle-mul', float, 1.0, 'factor on the length of each further cycle'),
        Option('--lr-cycle-decay', float, 0.5, 'factor on the learning rate of each further cycle'),
        Option('--lr-cycle-limit', int, 1, 'number of cycles'),
        Option('--lr-k-decay', float, 1.0, 'exponent on the time in cosine and poly schedules'),
        Option('--warmup-lr', float, 1e-5, 'learning rate at the start of the warm-up'),
        Option('--min-lr', float, 0, 'learning rate at the end of cyclic schedules'),
        Option('--epochs', int, 300, 'epochs of the schedule'),
        Option('--epoch-repeats', float, 0.0, 'passes over the data set in one epoch, 0 meaning one'),
        Option('--start-epoch', int, None, 'epoch to start at, whatever a checkpoint says'),
        Option('--decay-milestones', int, [90, 180, 270], 'epochs at which a multistep schedule decays', nargs='+'),
        Option('--decay-epochs', float, 90, 'epochs between two decays of a step schedule'),
        Option('--warmup-epochs', int, 5, 'epochs of warm-up'),
        flag('--warmup-prefix', 'put the warm-up before the schedule, not in place of its start'),
        Option('--cooldown-epochs', int, 0, 'epochs at the lowest learning rate after the schedule'),
        Option('--patience-epochs', int, 10, 'epochs without progress before a plateau schedule decays'),
        Option('--decay-rate --dr', float, 0.1, 'factor of each decay'),
    ),
)
