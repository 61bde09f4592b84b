"""Risk on training images, clean and augmented, as in the refinement paper's table 2 (He et al., arXiv 1909.09148).

The gap between the two is what refinement is meant to close. As there, the mean cross-entropy is given in units of
10^-3: on the training split under the evaluation transform, under crop and flip alone (what refinement trains on), and
under the augmentation of the run, mixing included.
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from regaug.evaluators.evaluator import Needs
from regaug.evaluators.progress import Progress
from regaug.evaluators.ranks import sum_over_ranks


class Risk:
    """Mean cross-entropy on the training images of a run.

    Args:
        args_yaml: `args.yaml` of the run.
        log_freq: Batches from one log line to the next.
    """

    needs = Needs()

    def __init__(self, args_yaml: str, log_freq: int = 10):
        self.args_yaml = args_yaml
        self.log_freq = log_freq
        self.images = None

    def check(self, model: nn.Module, data: Any):
        """Refuse a run on other data, and one whose augmentation depends on the network."""
        self.images = data.training_images(self.args_yaml, model)

    def run(self, network: nn.Module, data: Any) -> Iterator[tuple[str, Any]]:
        """Yield the three risks in units of 10^-3."""
        dtype = torch.float32 if data.device.type == 'mps' else torch.float64
        for kind in ('clean', 'crop_flip', 'augmented'):
            batches, num_batches = self.images.batches(kind, data)
            progress = Progress(f'Risk ({kind})', num_batches, self.log_freq)
            sums = torch.zeros(2, dtype=dtype, device=data.device)
            for input, target in batches:
                output = data.logits(network, input).float()
                # One image after the other in float64: sums that do not depend on who is in a batch with whom.
                sums[0] += functional.cross_entropy(output, target, reduction='none').sum(dtype=dtype)
                sums[1] += len(output)
                progress.step(len(output))
            loss, count = sum_over_ranks(sums, data.distributed).tolist()
            yield f'risk_{kind}', 1000 * loss / count


def create(args: Namespace) -> Risk | None:
    """Build the evaluator from the options of validate.py."""
    return Risk(args.risk, args.log_freq) if args.risk else None
