"""What the tests of evaluators share: images in memory, and small networks."""

import argparse

import timm
import torch
from torch import nn

from regaug.evaluators import Needs

CPU = torch.device('cpu')


class MemoryData:
    """Stands where `EvaluationData` stands: normalised images [N, C, H, W] and labels [N] in memory.

    Args:
        mean: Of the normalisation, for those who undo it.
        std: Likewise.
        metrics: Columns of the network so far.
    """

    distributed = False
    valid_labels = None
    network_name = job_name = 'network'
    width = None
    needs = Needs()
    device = CPU

    def __init__(self, images, target, *, batch_size=8, mean=(0.0,) * 3, std=(1.0,) * 3, metrics=None):
        self.dataset = self.images = images
        self.target = target
        self.batch_size = batch_size
        self.data_config = {'mean': mean, 'std': std, 'input_size': tuple(images.shape[1:])}
        self.num_classes = int(target.max()) + 1
        self.args = argparse.Namespace(rank=0, world_size=1, batch_size=batch_size)
        self.metrics = metrics or {}

    def loader(self, dataset, **kwargs):
        indices = dataset if isinstance(dataset, list) else slice(None)
        parts = (tensor[indices].split(self.batch_size) for tensor in (self.images, self.target))
        return list(zip(*parts, strict=True))

    def part(self, indices, leave_out=False):
        return indices

    def to_device(self, input):
        return input

    def batches(self, loader):
        return iter(loader)

    def placed_batches(self, loader):
        place = self.args.rank
        for input, target in loader:
            places = [place + self.args.world_size * number for number in range(len(target))]
            yield input, target, places
            place = places[-1] + self.args.world_size

    def logits(self, network, input):
        return network(input)


def small_network(seed=0, classes=4, side=8):
    """A convolutional network with batch-norm, in evaluation mode."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * (side // 2) ** 2, classes),
    )
    with torch.no_grad():
        for _ in range(20):
            network(2 * torch.rand(16, 3, side, side) - 1)
    return network.eval()


def timm_network(name='test_resnet', seed=0, classes=4, **kwargs):
    """A small model of timm's in evaluation mode."""
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, **kwargs).eval()
