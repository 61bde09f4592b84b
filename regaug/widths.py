"""Sub-networks of a model at given widths, for evaluation: their batch-norm statistics are estimated anew.

GradAug (arXiv 2006.07989) trains sub-networks that have no running statistics of their own, and those of the full
network do not fit them.
"""


def networks_at_widths(args, model, data):
    """Yields the networks to evaluate, each with the columns that its result row has on top of the usual ones.

    Without `--width` that is the model alone.
    """
    if not args.width:
        yield model, {}
