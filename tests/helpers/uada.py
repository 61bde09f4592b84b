"""What the tests of UADA share: a UADA that notes what it does, batches, small models."""

from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import nn

from regaug.augment.parameters import BASE, GROUPS, Augmentation, Parameters
from regaug.methods.scoring import Scorer
from regaug.methods.uada import UADA
from tests.helpers.slimmable_oracle import make_generic
from tests.helpers.training import CLASSES, make_task

HEIGHT, WIDTH, PADDING = 16, 24, 2
FIELD = {'crop': 'offsets', 'flip': 'flips', 'policy': 'levels', 'cutout': 'boxes'}
HIGH = {'flip': 1, 'crop': 2 * PADDING, 'policy': 9}  # a Cutout has no bounds


class Listening(Augmentation):
    """An augmentation that keeps what was drawn and what was applied; `given` parameters replace what is drawn."""

    given = None

    def draw(self, rng, input):
        drawn = super().draw(rng, input)
        self.base = drawn if self.given is None else self.given(drawn)
        self.applied = []
        return self.base

    def draw_steps(self, *args, **kwargs):
        self.steps = super().draw_steps(*args, **kwargs)
        return self.steps

    def apply(self, input, candidates, *args):
        self.applied += candidates.values()
        return super().apply(input, candidates, *args)


class Noting(Scorer):
    """A scorer that keeps (images, losses) of each pass."""

    def __init__(self, task):
        super().__init__(task)
        self.passes = []

    def __call__(self, input, target):
        losses = super().__call__(input, target)
        self.passes.append((input.clone(), losses))
        return losses


def make_uada(model, groups=GROUPS, *, frozen=False, seed=7, dtype=torch.float64, augmentation=(), **kwargs):
    """UADA of a model; `frozen`: batch-norm keeps its statistics, so that samples do not depend on each other."""
    task = make_task(model)
    task.freeze_bn = frozen
    task.train()
    common = dict(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), dtype=dtype, padding=PADDING, cutout_size=8)
    return UADA(Listening(groups, **{**common, **dict(augmentation)}), scorer=Noting(task), seed=seed, **kwargs)


def make_batch(size=16, seed=0, classes=CLASSES):
    """8-bit images [size, 3, 16, 24] as floats, labels [size]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(size, 3, 4, 6, generator=generator)
    fine = F.interpolate(coarse, (HEIGHT, WIDTH), mode='bilinear') + 0.05 * torch.rand(
        size, 3, HEIGHT, WIDTH, generator=generator
    )
    labels = torch.randint(classes, (size,), generator=generator)
    return fine.clamp(0, 1).mul(255).round().div(255), labels


def row_of(params, index):
    return Parameters(**{field.name: getattr(params, field.name)[index : index + 1] for field in fields(params)})


def augment(uada, input, params):
    images, _ = Augmentation.apply(uada.augmentation, input, {BASE: params})
    return images[BASE]


def small_model():
    """A network with batch-norm whose statistics and weights all matter, in float64."""
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2)]
    layers += [nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES)]
    return make_generic(nn.Sequential(*layers)).double()


def sign_of(number):
    return int(number > 0) - int(number < 0)


def moved_by_hand(base, group, step, sign, size=1):
    """One sample's parameters with a group moved by `size` times `sign` along its step; a flip by sign 1."""
    values = getattr(base, FIELD[group])
    if group == 'flip':
        new = [int(bool(values[0]) != (sign > 0))]
    else:
        pairs = zip(values[0].tolist(), step[0].tolist(), strict=True)
        new = [[value + size * sign * sign_of(part) for value, part in pairs]]
        if group in HIGH:
            new = [[min(max(value, 0), HIGH[group]) for value in new[0]]]
    return replace(base, **{FIELD[group]: torch.tensor(new)})


def one_sample(uada, model, input, target, index):
    """The algorithm for one sample alone, in words of its own: images, losses of all passes, candidates, choice."""
    image, label = input[index : index + 1], target[index : index + 1]
    base = row_of(uada.augmentation.base, index)
    groups = list(uada.augmentation.steps)
    steps = {group: uada.augmentation.steps[group][index : index + 1] for group in groups}

    def score(params):
        with torch.no_grad():
            view = augment(uada, image, params)
            return view, F.cross_entropy(model(view), label).item(), params

    scored = [score(base)]
    candidates = [scored[0]]
    if uada.step == 'random':
        for group in groups:
            toss = int(steps[group] != 0) if group == 'flip' else 1
            candidates.append(score(moved_by_hand(base, group, steps[group], toss, uada.epsilon)))
        scored = candidates
    else:
        probes = [score(moved_by_hand(base, group, steps[group], 1, uada.delta)) for group in groups]
        up = -1 if uada.step == 'descend' else 1
        for group, (_, loss, _) in zip(groups, probes, strict=True):
            direction = up * sign_of(loss - scored[0][1])
            candidates.append(score(moved_by_hand(base, group, steps[group], direction, uada.epsilon)))
        scored = [*scored, *probes, *(part for group, part in zip(groups, candidates[1:]) if group != 'flip')]
    losses = [loss for _, loss, _ in candidates]
    best = min if uada.step == 'descend' else max
    return scored, candidates, losses.index(best(losses))


CASES = {
    'all': {},
    'descend': {'step': 'descend'},
    'random': {'step': 'random'},
    'delta 2': {'delta': 2},
    'epsilon 3': {'epsilon': 3},
    'delta 3, epsilon 2, descend': {'delta': 3, 'epsilon': 2, 'step': 'descend'},
    'epsilon 4, random': {'epsilon': 4, 'step': 'random'},
    'policy': {'groups': ['policy']},
    'flip': {'groups': ['flip']},
    'flip, descend': {'groups': ['flip'], 'step': 'descend'},
    'crop and cutout': {'groups': ['crop', 'cutout']},
}


class Meter(nn.Module):
    """Two classes; the logit of class 0 is a number measured in the image, with which the loss of class 1 rises."""

    def __init__(self, measure):
        super().__init__()
        self.measure = measure

    def forward(self, input):
        value = self.measure(input)
        return torch.stack([value, torch.zeros_like(value)], dim=1)
