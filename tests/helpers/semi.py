"""What the tests of GradAug-semi share: unlabelled batches without a loader, and a task that trains on them."""

import torch

from regaug.methods.semi import GradAugSemi
from tests.helpers.training import CLASSES, make_gradaug, make_task


class Stream:
    """Stands where `data.unlabelled.UnlabelledData` stands: a batch that depends on its number and the rank alone.

    Args:
        relabel: function from the labels to those that are delivered.
    """

    def __init__(self, size=6, side=32, dtype=torch.float64, rank=0, relabel=None):
        self.size, self.side, self.dtype, self.rank = size, side, dtype, rank
        self.relabel = relabel or (lambda labels: labels)
        self.asked = []

    def next(self, number):
        self.asked.append(number)
        generator = torch.Generator().manual_seed(1000 * number + self.rank)
        images = torch.randn(self.size, 3, self.side, self.side, generator=generator, dtype=self.dtype)
        return images, self.relabel(torch.randint(CLASSES, (self.size,), generator=generator))

    def use(self, phase):
        pass

    def restart(self):
        pass

    def close(self):
        pass


def make_semi_task(model, criterion=None, *, stream=None, gradaug=None, rank=0, **kwargs):
    """A task with GradAug on labelled and on unlabelled images, and its method for the latter."""
    semi = GradAugSemi(stream or Stream(rank=rank), input_size=(3, 32, 32), **kwargs)
    gradaug = make_gradaug(**{'sizes': (32, 24), **(gradaug or {})})
    return make_task(model, criterion, gradaug=gradaug, methods=[semi], rank=rank), semi


def unlabelled_terms(task, batch, num_updates=0):
    """The terms on unlabelled images of an update, by name, ready to run."""
    task.begin_update(num_updates)
    return {name: term for name, term in task.loss_terms(*batch) if name.startswith('ulb')}
