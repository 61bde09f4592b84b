"""Two processes that train a detector together: their gradients are the mean of what one process finds on each part."""

import pytest
import torch
from torch import nn

from regaug.detection import model as detection_model
from regaug.detection.model import DetectionTask
from regaug.training.engine import Engine
from regaug.training.interrupt import StopRequest
from regaug.training.updates import Updater
from tests.helpers.detection import MAPS, detection_argv, make_batch, make_detector
from tests.helpers.ranks import RANKS, run_on_ranks
from tests.helpers.training import (
    CPU,
    PlainPrecision,
    SilentReport,
    assert_close,
    assert_equal,
    gradients_at_updates,
    read_summary,
    sum_of,
)

OPTIONS = ['--gradaug', 2, '--gradaug-min-width', 0.5, '--gradaug-sizes', 64, 32, '--batch-size', 2]


def train_case(folder, rank, world_size, part):
    """Train for one update on some of the images.

    Returns:
        Gradients of the update by parameter name, and the widths that were drawn.
    """
    args, detector, gradaug = make_detector(folder, *OPTIONS)
    args.rank, args.world_size, args.distributed = rank, world_size, world_size > 1
    for index, parameter in enumerate(detector.parameters()):
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(index))
    task = DetectionTask(detector, nn.Identity(), verbose=False)
    task.rank = rank
    task.use([gradaug])
    if world_size > 1:
        task.prepare_distributed(device_ids=None)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, detector)
    stop, common = StopRequest(device=CPU, distributed=world_size > 1), dict(precision=PlainPrecision())
    engine = Engine(task, Updater(optimizer, task), args, device=CPU, stop=stop, report=SilentReport(), **common)
    images, targets = make_batch(folder, 4)
    torch.manual_seed(100 + rank)
    metrics = engine.train_one_epoch(0, [(images[part], targets[part])])
    return seen[0], [metrics['sub1_width'], metrics['sub1_size'], metrics['sub2_size']]


def train_rank(folder, rank, world_size):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detection_model, 'MAPS', MAPS)
        return train_case(folder, rank, world_size, slice(2 * rank, 2 * rank + 2))


@pytest.mark.slow
def test_gradients_of_two_ranks_are_the_mean_of_those_of_one_process(coco, tmp_path):
    results = [found[str(coco)] for found in run_on_ranks(tmp_path, train_rank, [str(coco)])]
    alone = [train_case(str(coco), rank, 1, slice(2 * rank, 2 * rank + 2)) for rank in range(RANKS)]
    mean = {name: value / RANKS for name, value in sum_of(*(gradients for gradients, _ in alone)).items()}
    for gradients, drawn in results:
        assert_close(gradients, mean)
        assert drawn == pytest.approx(alone[0][1])
    assert_equal(results[0][0], results[1][0])
    assert alone[0][1] == alone[1][1]
    assert all(value.abs().max() > 0 for value in mean.values())


@pytest.mark.slow
def test_torchrun_trains_and_measures_as_one_process_does(start, coco, tmp_path):
    pytest.importorskip('pycocotools')
    options = ['--detector', 'faster', '--epochs', 12, '--clip-grad', 1.0, '--lr', 0.005]
    options += ['--gradaug', 1, '--size', 128, '--gradaug-sizes', 128, 96]
    places = ['--output', tmp_path, '--experiment', 'run', '--val-interval', 12]
    argv = detection_argv(coco, *options, *places)
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', RANKS]
    status, output = start(*launcher, '-m', 'regaug.detection', *argv, '--batch-size', 1).finish()
    assert status == 0, output
    [row] = read_summary(tmp_path / 'run')
    measured = float(row['eval_box_ap50'])
    assert measured > 1  # something is found
    status, output = start('-m', 'regaug.detection', *argv, '--resume', 'auto').finish()
    assert status == 0, output
    assert 'Nothing is left to train: 12 of 12 epochs are done.' in output
    assert f'Box ap50: {measured:.2f}' in output
