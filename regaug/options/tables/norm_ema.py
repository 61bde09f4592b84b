"""Options of batch-norm and of the moving average of the weights."""

from regaug.options.option import Group, Option, flag

BATCH_NORM = Group(
    'Batch norm parameters',
    (
        Option('--bn-momentum', float, None, "momentum of batch-norm (default: the model's own)"),
        Option('--bn-eps', float, None, "epsilon of batch-norm (default: the model's own)"),
        flag('--sync-bn', 'batch-norm over all processes'),
        Option(
            '--dist-bn',
            str,
            'reduce',
            'what happens to the running statistics of the processes after an epoch: '
            'reduce (mean), broadcast (rank 0), empty for nothing',
        ),
        flag('--split-bn', 'separate batch-norm for each view of --aug-splits'),
    ),
)

MODEL_EMA = Group(
    'Model exponential moving average parameters',
    (
        flag('--model-ema', 'keep and evaluate a moving average of the weights'),
        flag('--model-ema-force-cpu', 'keep the average on the CPU; it is then not evaluated'),
        Option('--model-ema-decay', float, 0.9998, 'decay of the average at each update'),
        flag('--model-ema-warmup', 'let the decay grow from small values at the start'),
    ),
)
