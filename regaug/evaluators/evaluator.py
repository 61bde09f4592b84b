"""What an evaluation is: the protocol of the files in this folder, after big_vision's evaluators.

An evaluator is built once for a model and run on each of its networks (one for each `--width`). It never learns how
data are loaded or results are written: it asks `data` for batches, and yields (column, value) pairs. Files beside the
table (pictures, arrays) go to the folder that its option names.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn

# The column that opens a row of its own: all pairs that follow it belong to that row.
CONDITION = 'condition'


@dataclass(frozen=True)
class Needs:
    """What an evaluator asks for.

    Attributes:
        pixels: Images as floats in [0, 1] in place of normalised ones.
        gradients: Gradients with respect to the input: nothing of the model may then run under
            `torch.inference_mode`, which no `enable_grad` can leave.
        float32: Weights and inputs in float32 and no autocast, whatever the options say.
    """

    pixels: bool = False
    gradients: bool = False
    float32: bool = False


class Evaluator(Protocol):
    """One evaluation.

    Attributes:
        needs: What it asks for.
    """

    needs: Needs

    def check(self, model: nn.Module, data: Any):
        """Refuse what cannot be evaluated, before any evaluation starts.

        Args:
            model: The full network, on the CPU.
            data: `regaug.validation.data.EvaluationData`.

        Raises:
            OptionError: Naming option and value.
        """

    def run(self, network: nn.Module, data: Any) -> Iterable[tuple[str, Any]]:
        """Evaluate one network.

        Args:
            network: On its device and in evaluation mode.
            data: `EvaluationData`, with the images as `needs` asks for.

        Yields:
            (column, value). Values are numbers, in per cent where they are shares, or text. Pairs belong to the row
            of the network itself, until the column `condition` opens a further row for the condition it names.
        """
