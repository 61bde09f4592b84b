"""Small networks, each with one structure that the planner has to see through, and the arithmetic of labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from regaug.slimmable import SlimmablePlan, Twin
from regaug.slimmable.labels import Channels, Counts, cut, new_axis, resolve, unify
from tests.helpers.slimmable_oracle import assert_equals_zeroed_network, make_generic


class Net(nn.Module):
    """Convolution to 16 channels, `body`, global pooling, classifier."""

    def __init__(self, features):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.head = nn.Linear(features, 5)

    def forward(self, x):
        return self.head(self.body(self.stem(x).relu()).mean((2, 3)))


class Concatenation(Net):
    def __init__(self):
        super().__init__(16 + 24)
        self.branch = nn.Conv2d(16, 24, 1)

    def body(self, x):
        return torch.cat([x, self.branch(x)], 1)


class Shuffle(Net):
    def __init__(self):
        super().__init__(16)
        self.conv = nn.Conv2d(16, 16, 1)

    def body(self, x):
        batch, _, height, width = x.shape
        return self.conv(x.reshape(batch, 2, -1, height, width).transpose(1, 2).flatten(1, 2))


class SplitBySizesOfAModule(Net):
    def __init__(self):
        super().__init__(16)
        self.sizes = (4, 12)
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(12, 12, 1)

    def body(self, x):
        first, second = x.split(self.sizes, 1)
        return torch.cat([self.first(first), self.second(second)], 1)


class GroupedConvolutions(Net):
    def __init__(self):
        super().__init__(32)
        self.few, self.many = nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 32, 3, groups=8)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)

    def body(self, x):
        return self.depthwise(self.many(self.few(x).relu()).relu())


class GatedByChannelConvolution(Net):
    def __init__(self):
        super().__init__(16)
        self.gate = nn.Conv1d(1, 1, 3, padding=1)

    def body(self, x):
        return x * self.gate(x.mean((2, 3)).unsqueeze(1)).sigmoid().squeeze(1)[:, :, None, None]


class PooledInChannelsLast(Net):
    def __init__(self):
        super().__init__(16)
        self.mlp = nn.Linear(16, 16)

    def body(self, x):
        return F.adaptive_avg_pool2d(self.mlp(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1)


class InterpolatedPositions(Net):
    def __init__(self):
        super().__init__(16)
        self.positions = nn.Parameter(torch.randn(1, 16, 3, 3))

    def body(self, x):
        return x + F.interpolate(self.positions, x.shape[2:], mode='bicubic')


class SharedWeight(Net):
    def __init__(self):
        super().__init__(16)
        self.first, self.second = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.second.weight = self.first.weight

    def body(self, x):
        return x + self.second(self.first(x).relu())


class Attention(Net):
    def __init__(self, heads):
        super().__init__(16)
        self.heads, self.head_size = heads, 32 // heads
        self.qkv, self.out = nn.Linear(16, 3 * 32), nn.Linear(32, 16)

    def body(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, self.head_size)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return (tokens + self.out(out)).transpose(1, 2).unflatten(2, x.shape[2:])


class LearntQueries(Net):
    def __init__(self):
        super().__init__(16)
        self.queries, self.project = nn.Parameter(torch.randn(7, 16)), nn.Linear(16, 16)

    def body(self, x):
        weights = torch.softmax(self.project(self.queries).expand(len(x), -1, -1) @ x.flatten(2), -1)
        return (weights @ x.flatten(2).transpose(1, 2)).transpose(1, 2).unsqueeze(-1)


class HardCodedSize(Net):
    def __init__(self):
        super().__init__(16)
        self.conv = nn.Conv2d(16, 8, 1)

    def body(self, x):
        return self.conv(x).reshape(-1, 8, x.shape[2] * x.shape[3], 1).repeat(1, 2, 1, 1)


class UnknownOperator(Net):
    def __init__(self):
        super().__init__(16)
        self.conv = nn.Conv2d(16, 16, 1)

    def body(self, x):
        return self.conv(torch.sort(x, 1).values)


def planned(net):
    model = make_generic(net.double())
    return model, Twin(model, SlimmablePlan(model, (3, 8, 8)), width_divisor=1)


@pytest.mark.parametrize('width', [0.75, 0.5])
@pytest.mark.parametrize(
    'net',
    [
        Concatenation,
        Shuffle,
        SplitBySizesOfAModule,
        GroupedConvolutions,
        GatedByChannelConvolution,
        PooledInChannelsLast,
        InterpolatedPositions,
        SharedWeight,
    ],
)
def test_subnetwork_equals_full_size_network_with_dropped_channels_zeroed(net, width):
    model, twin = planned(net())
    assert not twin.plan.full
    assert_equals_zeroed_network(twin, model, torch.randn(4, 3, 8, 8).double(), width)


@pytest.mark.parametrize('heads, kept_heads', [(8, 4), (4, 4), (2, 2)])
def test_attention_drops_whole_heads_and_never_parts_of_one(heads, kept_heads):
    model, twin = planned(Attention(heads))
    assert_equals_zeroed_network(twin, model, torch.randn(4, 3, 8, 8).double(), 0.5)
    twin.set(0.5)
    assert twin.module.qkv.weight.shape == (3 * kept_heads * 32 // heads, 8)


def test_learnt_queries_are_not_slimmed():
    model, twin = planned(LearntQueries())
    assert_equals_zeroed_network(twin, model, torch.randn(4, 3, 8, 8).double(), 0.5)
    twin.set(0.5)
    assert twin.module.queries.shape == (7, 16)


@pytest.mark.parametrize('net, reason', [(HardCodedSize, 'hard-coded'), (UnknownOperator, 'sort')])
def test_what_is_not_understood_stays_at_full_width_and_says_why(net, reason):
    model, twin = planned(net())
    assert_equals_zeroed_network(twin, model, torch.randn(4, 3, 8, 8).double(), 0.5)
    assert any(reason in why for why in twin.plan.full.values())
    assert reason in twin.plan.report(0.5, 1)


@pytest.mark.parametrize('activation', [nn.ReLU6, nn.Mish, nn.Hardswish, nn.LeakyReLU, nn.ELU])
def test_activations_in_place_are_slimmed(activation):
    net = nn.Sequential(nn.Conv2d(3, 8, 3), activation(inplace=True), nn.Flatten(), nn.Linear(8 * 36, 2))
    assert not SlimmablePlan(net, (3, 8, 8)).full


def test_concatenated_channels_keep_the_first_of_every_piece():
    _, twin = planned(Concatenation())
    assert twin.plan.layout.ranges('head.weight', twin.plan.counts(0.5, 1)) == {1: [(0, 8), (16, 12)]}


def test_unified_axes_keep_the_same_indices_whatever_their_pieces():
    left, right, whole = new_axis(6), new_axis(10), new_axis(16)
    unify(whole, left + right, 'test')
    counts = Counts(lambda channels: channels.units // 2)
    for channels, _ in resolve(whole):
        channels.anchored = True
    assert counts.ranges(whole, 16) == counts.ranges(left + right, 16) == [(0, 3), (6, 5)]


def test_cutting_one_member_cuts_all_members_alike():
    axis, twice = new_axis(8), None
    twice = [(axis[0][0], 16)]  # the same class with units of two channels
    left, right = cut(axis, 3)
    assert [size for _, size in left] == [3] and [size for _, size in right] == [5]
    assert [size for _, size in resolve(twice)] == [6, 10]
    assert [channels for channels, _ in resolve(twice)] == [left[0][0], right[0][0]]


def test_a_cut_inside_a_group_of_channels_freezes_it():
    groups = [(Channels(4), 16)]
    cut(groups, 6)
    assert resolve(groups) == [(None, 16)]
    assert 'inside a group' in groups[0][0].reason
