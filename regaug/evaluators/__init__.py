"""The second door: evaluations of a network, one file each (see `evaluator.py` for the protocol)."""

import importlib
from argparse import Namespace

from regaug.evaluators.evaluator import CONDITION, Evaluator, Needs

__all__ = ['CONDITION', 'Evaluator', 'Needs', 'create_evaluators']

# In the order of the results. Each module has `create(args)`, None where the options do not ask for it. They are
# imported when they are needed, since some are programs of their own too (`python -m`).
MODULES = ('accuracy', 'attacks', 'corruptions', 'smoothing', 'cam', 'spectrum', 'risk')


def create_evaluators(args: Namespace) -> list[Evaluator]:
    """Build the evaluators that the options of validate.py ask for; accuracy comes first, always."""
    modules = [importlib.import_module(f'{__name__}.{name}') for name in MODULES]
    return [evaluator for module in modules if (evaluator := module.create(args)) is not None]
