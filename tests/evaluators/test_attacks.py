"""FGSM and PGD against implementations of their own, and against foolbox."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from regaug.evaluators.attacks import Attack
from regaug.validation.data import EvaluationData
from tests.helpers.evaluators import MemoryData, small_network

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope='module')
def network():
    """A network whose predictions are not far from flipping."""
    return small_network(seed=3)


@pytest.fixture
def pixels():
    return torch.rand(24, 3, 8, 8)


def normalise(pixels):
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return (pixels - mean) / std


def accuracies(attack, network, pixels, target, batch_size=5):
    """top-1 by condition, as the evaluator yields it."""
    data = MemoryData(normalise(pixels), target, batch_size=batch_size, mean=MEAN, std=STD)
    pairs = list(attack.run(network, data))
    conditions = [value for name, value in pairs if name == 'condition']
    return dict(zip(conditions, [value for name, value in pairs if name == 'top1'], strict=True))


def attack_by_hand(network, pixels, target, eps, space, steps=1, step_size=None):
    """One image after the other, by backward(); without a random start."""
    hits = 0
    std = torch.tensor(STD).view(3, 1, 1)
    scale = std if space == 'normalized' else torch.ones(3, 1, 1)  # of a change of pixels
    for image, label in zip(pixels, target, strict=True):
        attacked = image.clone()
        for _ in range(steps):
            attacked = attacked.detach().requires_grad_()
            loss = functional.cross_entropy(network(normalise(attacked[None])), label[None])
            loss.backward()
            change = (attacked + (step_size or eps) * scale * attacked.grad.sign() - image).clamp(
                -eps * scale, eps * scale
            )
            attacked = (image + change).clamp(0, 1)
        hits += int(network(normalise(attacked[None])).argmax() == label)
    return 100 * hits / len(target)


@pytest.mark.parametrize('space', ['normalized', 'pixel'])
def test_fgsm_equals_an_implementation_by_hand(network, pixels, space):
    target = network(normalise(pixels)).argmax(1)
    eps = [0.002, 0.01, 0.05, 0.3]
    found = accuracies(Attack('fgsm', eps=eps, space=space), network, pixels, target)
    expected = {f'fgsm {space} {each:g}': attack_by_hand(network, pixels, target, each, space) for each in eps}
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(found.values())) > 2, 'a network that never errs would test nothing'


@pytest.mark.parametrize('space', ['normalized', 'pixel'])
def test_pgd_equals_an_implementation_by_hand(network, pixels, space, monkeypatch):
    monkeypatch.setattr('regaug.evaluators.attacks.random_start', lambda eps, shape, seeds, device: 0 * eps)
    target = network(normalise(pixels)).argmax(1)
    for eps, step_size in ((0.01, 0.004), (0.03, None)):
        attack = Attack('pgd', eps=[eps], space=space, steps=4, step_size=step_size)
        expected = attack_by_hand(network, pixels, target, eps, space, 4, step_size or eps / 4)
        assert accuracies(attack, network, pixels, target) == {
            f'pgd {space} {eps:g}': pytest.approx(expected, abs=1e-6)
        }


def test_attacks_on_a_linear_network_have_a_closed_form(pixels):
    """Two classes: the margin w x + b shrinks by eps |w|_1 exactly, as long as no value leaves its range."""
    torch.manual_seed(5)
    linear = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    pixels = 0.25 + pixels / 2
    weight = (linear[1].weight[1] - linear[1].weight[0]).detach()
    output = linear(normalise(pixels)).detach()
    margin = (output[:, 1] - output[:, 0]).abs()
    target = output.argmax(1)
    for quantile in (0.25, 0.6):
        eps = float(margin.quantile(quantile) / weight.abs().sum())
        assert eps * max(STD) < 0.25
        expected = 100 * float((margin > eps * weight.abs().sum()).float().mean())
        for attack in (
            Attack('fgsm', eps=[eps], space='normalized'),
            Attack('pgd', eps=[eps], space='normalized', steps=8, restarts=2),
        ):
            (found,) = accuracies(attack, linear, pixels, target).values()
            assert found == pytest.approx(expected, abs=1e-6)


def test_attacked_images_stay_images_and_near_the_original(network, pixels):
    seen = []

    class Recorder(nn.Module):
        def forward(self, input):
            seen.append(input.detach().clone())
            return network(input)

    target = network(normalise(pixels)).argmax(1)
    attack = Attack('pgd', eps=[0.1], space='pixel', steps=5, restarts=2)
    accuracies(attack, Recorder(), pixels, target, batch_size=24)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    for input in seen:
        attacked = input * std + mean
        assert attacked.min() >= -1e-6
        assert attacked.max() <= 1 + 1e-6
        assert (attacked - pixels).abs().max() <= 0.1 + 1e-6
    assert not torch.equal(seen[0], seen[6]), 'each restart starts anew'
    assert (seen[0] * std + mean - pixels).abs().mean() > 0.03, 'the start is random'


def test_more_restarts_never_raise_the_accuracy_and_batches_do_not_matter(network, pixels):
    target = network(normalise(pixels)).argmax(1)
    found = [
        accuracies(
            Attack('pgd', eps=[0.05], space='pixel', steps=1, step_size=1e-5, restarts=restarts),
            network,
            pixels,
            target,
            size,
        )
        for restarts, size in ((1, 5), (1, 24), (8, 7))
    ]
    assert found[0] == found[1]
    assert found[2]['pgd pixel 0.05'] < found[0]['pgd pixel 0.05']


def test_rows_and_defaults_of_validate(run, checkpoint):
    plain = run('--checkpoint', checkpoint)
    rows = run('--checkpoint', checkpoint, '--attack', 'fgsm', '--width', 1.0, 0.5)
    conditions = ['clean', *(f'fgsm normalized {eps:g}' for eps in (0.05, 0.1, 0.15, 0.2, 0.25))]
    assert [(row['width'], row['condition']) for row in rows] == [(w, c) for w in (1.0, 0.5) for c in conditions]
    assert {name: rows[0][name] for name in plain} == plain
    assert [row['top1'] + row['top1_err'] for row in rows] == [100] * 12
    amp = run('--checkpoint', checkpoint, '--attack', 'fgsm', '--amp', '--amp-dtype', 'bfloat16', '--width', 1.0)
    assert [row['top1'] for row in amp[1:]] == [row['top1'] for row in rows[1:6]], 'autocast is off'


def test_bad_attacks_are_refused(refusal, checkpoint, folder):
    fgsm = ['--checkpoint', checkpoint, '--attack', 'fgsm']
    for needle, options in {
        '--attack-eps 0.1 -0.1': [*fgsm, '--attack-eps', 0.1, -0.1],
        '--attack-eps 0.0': [*fgsm, '--attack-eps', 0],
        '--attack-step-size 0.0': [*fgsm, '--attack-step-size', 0],
        '--attack-steps 0': [*fgsm, '--attack-steps', 0],
        '--model-dtype bfloat16': [*fgsm, '--model-dtype', 'bfloat16'],
    }.items():
        assert needle in refusal(*options), needle


@pytest.mark.slow
@pytest.mark.parametrize('eps', [0.01, 0.05])
def test_fgsm_and_pgd_equal_foolbox(network, pixels, eps, monkeypatch):
    foolbox = pytest.importorskip('foolbox')
    target = network(normalise(pixels)).argmax(1)
    preprocessing = {'mean': MEAN, 'std': STD, 'axis': -3}
    model = foolbox.PyTorchModel(network, bounds=(0, 1), preprocessing=preprocessing, device='cpu')
    monkeypatch.setattr('regaug.evaluators.attacks.random_start', lambda eps, shape, seeds, device: 0 * eps)
    for ours, theirs in (
        (Attack('fgsm', eps=[eps], space='pixel'), foolbox.attacks.FGSM(random_start=False)),
        (
            Attack('pgd', eps=[eps], space='pixel', steps=7, step_size=eps / 3),
            foolbox.attacks.LinfPGD(abs_stepsize=eps / 3, steps=7, random_start=False),
        ),
    ):
        _, attacked, _ = theirs(model, pixels, target, epsilons=[eps])
        expected = 100 * float((network(normalise(attacked[0])).argmax(1) == target).float().mean())
        (found,) = accuracies(ours, network, pixels, target).values()
        assert found == pytest.approx(expected, abs=1e-6)


def test_random_starts_belong_to_the_images_whichever_process_has_them(network, pixels):
    def starts(rank, world_size):
        images, seen = normalise(pixels)[rank::world_size], []
        data = MemoryData(images, torch.zeros(len(images), dtype=torch.long), mean=MEAN, std=STD, batch_size=5)
        data.args.rank, data.args.world_size = rank, world_size
        data.logits = lambda network, input: seen.append(input.clone()) or network(input)
        list(Attack('pgd', eps=[0.05], space='pixel', steps=0).run(network, data))
        return torch.cat(seen)

    whole = starts(0, 1)
    assert not torch.equal(whole, normalise(pixels))
    for rank in range(2):
        assert torch.equal(starts(rank, 2), whole[rank::2])


def test_places_are_those_of_the_images_where_some_cannot_be_read():
    class Loader:
        dataset = SimpleNamespace(num_unreadable=2)

        def __iter__(self):
            for target in (torch.tensor([1, -100, 2]), torch.tensor([-100, 3])):
                yield target.float(), target

    args = SimpleNamespace(rank=1, world_size=2)
    data = SimpleNamespace(passes=[], args=args, device=torch.device('cpu'), to_device=lambda input: input)
    batches = list(EvaluationData.placed_batches(data, Loader()))
    assert [target.tolist() for _, target, _ in batches] == [[1, 2], [3]]
    assert [places for _, _, places in batches] == [[1, 5], [9]]
