"""`--task multilabel`: the losses of network, sub-networks and candidates, and labels that are smoothed once."""

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy

from regaug.device import Precision
from regaug.methods.scoring import lowest_losses, sample_losses
from regaug.methods.semi import soft_label_losses
from regaug.methods.subnetworks import soft_label_loss
from regaug.training.criterion import create_criterion
from regaug.training.phases import phase_at
from regaug.training.task import MultiLabelTask, create_task
from tests.helpers.multilabel import label_args
from tests.helpers.training import (
    CLASSES,
    CPU,
    make_batches,
    make_gradaug,
    make_model,
    make_task,
)

pytest_plugins = ['tests.helpers.multilabel_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files


def dense_target(count=6):
    return (torch.rand(count, CLASSES) < 0.4).double()


def test_the_task_trains_on_binary_cross_entropy():
    model, target = make_model(), dense_target(4)
    (input, _), *_ = make_batches(1)
    task = make_task(model, BinaryCrossEntropy(smoothing=0.0, smooth_dense=True), task_class=MultiLabelTask)
    result = task(input, target)
    torch.testing.assert_close(result['loss'], F.binary_cross_entropy_with_logits(result['output'], target))
    with pytest.raises(ValueError, match='dense floating-point'):
        task(input, torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize('smoothing', [0.0, 0.2])
@pytest.mark.parametrize('criterion_kwargs', [{}, {'sum_classes': True}, {'pos_weight': 2.0}])
def test_sub_networks_learn_the_full_networks_sigmoid_as_it_is(smoothing, criterion_kwargs):
    criterion = BinaryCrossEntropy(smoothing=smoothing, smooth_dense=True, **criterion_kwargs).double()
    output, teacher = 2 * torch.randn(2, 6, CLASSES, dtype=torch.float64).float()
    expected = F.binary_cross_entropy_with_logits(output, teacher.sigmoid(), reduction='none')
    expected = expected.sum(dim=1).mean() if criterion_kwargs.get('sum_classes') else expected.mean()
    torch.testing.assert_close(soft_label_loss(output, teacher, criterion.float()), expected)
    torch.testing.assert_close(soft_label_losses(output, teacher, criterion.float()).mean(), expected)
    assert criterion.smoothing == smoothing


@pytest.mark.parametrize('pos_weight', [None, 3.0])
def test_a_sub_network_that_agrees_with_the_full_one_has_nothing_left_to_learn(pos_weight):
    teacher = torch.randn(6, CLASSES).requires_grad_()
    output = teacher.detach().clone().requires_grad_()
    criterion = BinaryCrossEntropy(smoothing=0.2, smooth_dense=True, pos_weight=pos_weight)
    soft_label_loss(output, teacher.detach(), criterion).backward()
    assert output.grad.abs().max() < 1e-7


def test_the_terms_of_gradaug_are_those_of_dense_targets():
    model, target = make_model(), dense_target(4)
    (input, _), *_ = make_batches(1)
    criterion = BinaryCrossEntropy(smoothing=0.2, smooth_dense=True)
    gradaug = make_gradaug(num_subnetworks=1, min_width=1.0)
    task = make_task(model, criterion, task_class=MultiLabelTask, gradaug=gradaug)
    (_, full), (_, sub) = task.loss_terms(input, target)
    full, sub = full(), sub()
    torch.testing.assert_close(
        full['loss'], F.binary_cross_entropy_with_logits(full['output'], target * 0.8 + 0.1).to(full['loss'].dtype)
    )
    expected = F.binary_cross_entropy_with_logits(sub['output'].float(), full['output'].float().sigmoid())
    torch.testing.assert_close(sub['loss'].float(), expected)


@pytest.mark.parametrize(
    'kwargs', [{}, {'sum_classes': True}, {'pos_weight': 3.0}, {'target_threshold': 0.3, 'pos_weight': 0.5}]
)
@pytest.mark.parametrize('smoothing', [0.0, 0.2])
def test_the_lowest_loss_of_smoothed_labels_is_reached_and_never_undercut(kwargs, smoothing):
    criterion = BinaryCrossEntropy(smoothing=smoothing, smooth_dense=True, **kwargs)
    target = torch.rand(5, CLASSES) if 'target_threshold' not in kwargs else dense_target(5).float()
    grid = torch.linspace(-14, 14, 2801)
    losses = []  # of each label by itself: the best logit of one has nothing to do with another's
    for column in target.T:
        output = grid.repeat_interleave(len(column))[:, None]
        losses.append(
            sample_losses(criterion, output, column.repeat(len(grid))[:, None]).view(len(grid), -1).amin(dim=0)
        )
    losses = torch.stack(losses, dim=1)
    expected = losses.sum(dim=1) if kwargs.get('sum_classes') else losses.mean(dim=1)
    torch.testing.assert_close(lowest_losses(criterion, target), expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ('options', 'smoothing'),
    [
        ((), 0.2),
        (('--maxup', 2, '--cutmix', 1.0), 0.2),  # its mixtures come unsmoothed
        (('--manifold-mixup', 1.0), 0.2),
        (('--cutmix', 1.0), 0.0),  # timm's mixing smooths
        (('--cutmix', 1.0, '--manifold-mixup', 1.0), 0.0),
    ],
)
def test_labels_are_smoothed_once(no_package, options, smoothing):
    args = label_args('--smoothing', 0.2, *options)
    criterion = create_criterion(phase_at(args.epochs - 1, args))
    output, target = torch.randn(6, CLASSES), dense_target().float()
    smoothed = target * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(criterion(output, target), F.binary_cross_entropy_with_logits(output, smoothed))


def test_the_threshold_of_the_command_line_judges_the_evaluation(no_package):
    args = label_args('--multilabel-threshold', 0.3)
    args.rank = 0
    criterion = create_criterion(phase_at(0, args))
    task = create_task(args, make_model(), criterion, device=CPU, precision=Precision(args, CPU))
    evaluator = task.create_evaluator()
    output = torch.logit(torch.tensor([[0.35, 0.1, 0.1, 0.1], [0.25, 0.9, 0.1, 0.1]]))
    evaluator.update(output, torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]]))
    assert evaluator.compute()['micro_f1'] == 100
