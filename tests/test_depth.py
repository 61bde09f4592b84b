"""GradAug's variant with sub-networks by stochastic depth."""

import copy

import pytest
import torch
from training_case import CLASSES, created_gradaug, make_batches, make_model, make_task, train_args

from regaug.errors import OptionError
from regaug.model import build_model


@pytest.mark.parametrize('name', ['vgg11', 'resnet10t'])
def test_depth_subnetworks_of_a_model_without_drop_path_are_refused(name):
    rate = ['--gradaug-depth-rate', 0] if name == 'resnet10t' else []
    with pytest.raises(OptionError, match='--gradaug-subnet depth'):
        created_gradaug('--model', name, '--gradaug-subnet', 'depth', *rate)


def depth_task(criterion=None):
    model, gradaug = created_gradaug('--model', 'resnet10t', '--gradaug-subnet', 'depth', '--gradaug-depth-rate', 0.5)
    gradaug.subnet = gradaug.make_subnet(model)
    task = make_task(model, criterion, gradaug=None)
    task.gradaug, task.gradaug_on = gradaug, True
    return task.train()


def test_full_network_of_the_depth_variant_has_no_drop_path():
    task = depth_task()
    args = train_args('--num-classes', CLASSES, '--model', 'resnet10t')
    torch.manual_seed(4)
    plain = build_model(args).train()
    [(input, target)] = make_batches(1, size=8, dtype=torch.float32)
    (_, full), *_ = task.loss_terms(input, target)
    output = full()['output']
    assert torch.equal(output, plain(input))
    assert torch.equal(output, full()['output'])


def test_depth_subnetworks_drop_branches_at_a_linear_rate_and_reach_every_parameter():
    task = depth_task()
    model, subnet = task.trainable_module, task.gradaug.subnet
    [(input, target)] = make_batches(1, size=8, dtype=torch.float32)
    rates = [part.drop_prob for part in subnet.module.modules() if type(part).__name__ == 'DropPath']
    assert rates == pytest.approx([0.5 / 3, 1.0 / 3, 0.5])
    (_, full), *subnets = task.loss_terms(input, target)
    output = full()['output']
    for _, term in subnets:
        model.zero_grad()
        result = term()
        assert (result['output'] - output).abs().max() > 1e-3
        result['loss'].backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
    assert (result['output'] - subnets[0][1]()['output']).abs().max() > 1e-3  # each drops others


def test_depth_subnetworks_keep_no_batch_statistics():
    task = depth_task()
    [(input, target)] = make_batches(1, size=8, dtype=torch.float32)
    (_, full), *subnets = task.loss_terms(input, target)
    full()
    before = copy.deepcopy(task.trainable_module.state_dict())
    for _, term in subnets:
        term()
    after = task.trainable_module.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert make_model('resnet10t').state_dict().keys() == after.keys()
