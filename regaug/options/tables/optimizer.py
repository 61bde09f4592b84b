"""Options of the optimiser."""

from regaug.options.option import Group, Option

OPTIMIZER = Group(
    'Optimizer parameters',
    (
        Option('--opt', str, 'sgd', 'name of the optimiser, any of timm.optim.list_optimizers()'),
        Option('--opt-eps', float, None, "epsilon of the optimiser (default: the optimiser's own)"),
        Option('--opt-betas', float, None, "betas of the optimiser (default: the optimiser's own)", nargs='+'),
        Option('--momentum', float, 0.9, 'momentum, where the optimiser has one'),
        Option('--weight-decay', float, 2e-5, 'weight decay'),
        Option('--clip-grad', float, None, 'limit for gradients (default: none)'),
        Option(
            '--clip-mode',
            str,
            'norm',
            'what --clip-grad limits: the norm of all gradients, each value, or each '
            "unit's gradient relative to its weight (norm, value, agc)",
        ),
        Option('--layer-decay', float, None, 'learning rate factor from each layer to the one before it'),
        Option('--layer-decay-min-scale', float, 0, "lower bound of the layers' factors"),
        Option('--layer-decay-no-opt-scale', float, None, 'layers with a smaller factor are not trained at all'),
        Option('--opt-kwargs', dict, {}, 'further arguments of the optimiser, as key=value', nargs='*'),
    ),
)
