"""The second door: evaluations of a network, one file each (see `evaluator.py` for the protocol)."""

from argparse import Namespace

from regaug.evaluators import accuracy, attacks
from regaug.evaluators.evaluator import CONDITION, Evaluator, Needs

__all__ = ['CONDITION', 'Evaluator', 'Needs', 'create_evaluators']

# In the order of the results. Each module has `create(args)`, None where the options do not ask for it.
MODULES = (accuracy, attacks)


def create_evaluators(args: Namespace) -> list[Evaluator]:
    """Build the evaluators that the options of validate.py ask for; accuracy comes first, always."""
    return [evaluator for module in MODULES if (evaluator := module.create(args)) is not None]
