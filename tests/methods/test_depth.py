"""GradAug's variant with sub-networks by stochastic depth."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regaug.errors import OptionError
from regaug.methods.depth import BatchDropPath, DepthTwin
from regaug.training.model import build_model
from tests.helpers.training import (
    CLASSES,
    assert_close,
    assert_equal,
    created_gradaug,
    gradients,
    make_batches,
    make_task,
    train_args,
)


@pytest.mark.parametrize('name', ['vgg11', 'resnet10t'])
def test_depth_subnetworks_of_a_model_without_drop_path_are_refused(name):
    rate = ['--gradaug-depth-rate', 0] if name == 'resnet10t' else []
    with pytest.raises(OptionError, match='--gradaug-subnet depth'):
        created_gradaug('--model', name, '--gradaug-subnet', 'depth', *rate)


def fill_zero_gains(model):
    """Branches that start with a gain of zero would hide whether they are dropped."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1 and not parameter.any():
                parameter.fill_(0.3)
    return model


def plain_model(*options):
    """The model as train.py builds it without GradAug, in train mode, with the weights of `depth_task`."""
    torch.manual_seed(4)
    return fill_zero_gains(build_model(train_args('--num-classes', CLASSES, '--model', 'resnet10t', *options))).train()


def depth_task(*options):
    """A task whose three blocks after the first are dropped with probability 1/6, 1/3 and 1/2."""
    depth = ['--gradaug-subnet', 'depth', '--gradaug-depth-rate', 0.5, *options, '--gradaug-transforms']
    model, gradaug = created_gradaug('--model', 'resnet10t', *depth)
    return make_task(fill_zero_gains(model), gradaug=gradaug)


def make_batch():
    return make_batches(1, size=8, dtype=torch.float32)[0]


def test_full_network_of_the_depth_variant_has_no_drop_path():
    task = depth_task()
    input, target = make_batch()
    (_, full), *_ = task.loss_terms(input, target)
    output = full()['output']
    assert torch.equal(output, plain_model()(input))
    assert torch.equal(output, full()['output'])
    assert not torch.equal(output, plain_model('--drop-path', 0.5)(input))


def test_depth_subnetwork_is_timms_model_with_drop_path_on_the_same_parameters():
    task, timms = depth_task(), plain_model('--drop-path', 0.5)
    input, target = make_batch()
    outputs = []
    for model in (task.methods[0].subnet, timms):
        torch.manual_seed(8)
        outputs.append(model(input))
        F.cross_entropy(outputs[-1], target).backward()
    assert torch.equal(*outputs)
    assert_equal(gradients(task.trainable_module), gradients(timms))


def test_depth_subnetworks_differ_and_reach_every_parameter():
    task = depth_task()
    (_, full), *subnets = task.loss_terms(*make_batch())
    outputs = [full()['output']]
    for _, term in subnets:
        task.trainable_module.zero_grad()
        result = term()
        result['loss'].backward()
        assert all(parameter.grad is not None for parameter in task.trainable_module.parameters())
        assert all((result['output'] - output).abs().max() > 1e-3 for output in outputs)
        outputs.append(result['output'])


def test_depth_subnetworks_keep_no_batch_statistics():
    task = depth_task()
    (_, full), *subnets = task.loss_terms(*make_batch())
    full()
    before = copy.deepcopy(task.trainable_module.state_dict())
    for _, term in subnets:
        term()
    assert_equal(task.trainable_module.state_dict(), before)
    assert list(before) == list(plain_model().state_dict())


# --- decided for the batch, as in the released code ----------------------------------------------------------------


def by_hand(model, input, kept):
    """The network with a branch of each block multiplied by 1 or 0, block by block."""
    features = model.maxpool(model.act1(model.bn1(model.conv1(input))))
    blocks = [block for layer in (model.layer1, model.layer2, model.layer3, model.layer4) for block in layer]
    for block, factor in zip(blocks, kept, strict=True):
        branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(features)))))
        shortcut = features if block.downsample is None else block.downsample(features)
        features = block.act2(factor * branch + shortcut)
    return model.forward_head(features)


@pytest.mark.slow
def test_a_depth_subnetwork_by_batch_drops_whole_branches_and_rescales_none():
    """Outputs and gradients are those of the blocks run by hand; every combination comes up."""
    task = depth_task('--gradaug-depth-mode', 'batch')
    subnet, model = task.methods[0].subnet, task.trainable_module
    input, target = make_batch()
    expected = {}
    for kept in itertools.product([1], [0, 1], [0, 1], [0, 1]):
        reference = copy.deepcopy(model)
        output = by_hand(reference, input, kept)
        F.cross_entropy(output, target).backward()
        expected[kept] = output, gradients(reference)
    found = set()
    for seed in range(160):  # all dropped: 1 in 36
        if found == set(expected):
            break
        torch.manual_seed(seed)
        model.zero_grad()
        output = subnet(input)
        F.cross_entropy(output, target).backward()
        [kept] = [kept for kept, (other, _) in expected.items() if torch.allclose(output, other, atol=1e-5)]
        assert_close(gradients(model), expected[kept][1], tolerance=1e-5)
        assert all(parameter.grad is not None for parameter in model.parameters())
        found.add(kept)
    assert found == set(expected)


def test_branches_are_dropped_with_their_probability_for_all_samples_alike_and_in_training_alone():
    drop, ones = BatchDropPath(0.3), torch.ones(5, 3)
    factors = torch.stack([drop(ones) for _ in range(2000)]).flatten(1)
    assert set(factors.unique().tolist()) == {0.0, 1.0}
    assert (factors == factors[:, :1]).all()
    assert factors[:, 0].mean().item() == pytest.approx(0.7, abs=0.04)
    assert torch.equal(drop.eval()(ones), ones)


def test_the_rates_of_the_batch_mode_are_those_of_the_sample_mode():
    rates = []
    for mode in ('sample', 'batch'):
        module = depth_task('--gradaug-depth-mode', mode).methods[0].subnet.module
        parts = {name: getattr(part, 'drop_prob', 0) for name, part in module.named_modules()}
        rates.append({name: rate for name, rate in parts.items() if rate})
    assert rates[0] == rates[1]
    assert list(rates[0].values()) == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_buffers_that_a_module_updates_by_itself_are_private_to_the_depth_twin():
    class Counter(nn.Module):
        """Counts its calls in a buffer."""

        def __init__(self):
            super().__init__()
            self.register_buffer('calls', torch.zeros(()))

        def forward(self, input):
            self.calls += 1
            return input

    model = nn.Sequential(Counter(), nn.Linear(3, 2)).train()
    twin = DepthTwin(model, {})
    twin(torch.randn(4, 3))
    assert model[0].calls == 0
    assert twin.module[1].weight is model[1].weight
