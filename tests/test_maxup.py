"""MaxUp: the worst of m copies of each sample, the plain augmentation for m = 1, draws, figures and views."""

import copy
import itertools

import numpy as np
import pytest
import torch
from data_case import BYTES_CONFIG, MemoryDataset, as_bytes, make_train_data, noise_images, noise_set
from timm import create_model
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import nn
from torchvision import transforms
from training_case import (
    CLASSES,
    assert_equal,
    make_batches,
    make_droppy_model,
    make_engine,
    make_gradaug,
    make_model,
    make_task,
)

from regaug.maxup import MaxUp
from regaug.methods import create_selector
from regaug.mix import CutMix, Cutout, GaussianNoise, Mixup
from regaug.phases import phase_at
from regaug.samples import Views
from regaug.scoring import Scorer, worst_of
from regaug.task import RegAugTask, create_criterion

LABELS = dict(num_classes=CLASSES, smoothing=0.1)
STAGES = {
    'cutmix': lambda: [CutMix(alpha=1.0, prob=1.0, **LABELS)],
    'mixup': lambda: [Mixup(alpha=1.0, prob=0.8, **LABELS)],
    'cutout': lambda: [Cutout(size=12)],
    'cutmix and noise': lambda: [CutMix(alpha=1.0, prob=1.0, **LABELS), GaussianNoise(sigma=torch.full((3,), 0.2))],
}
MODELS = {
    'residual': lambda: make_model(dtype=torch.float32),
    'dropout and drop path': make_droppy_model,
    'transformer': lambda: make_model('test_vit', dtype=torch.float32, img_size=32),
}


def criterion_for(name):
    return nn.CrossEntropyLoss() if name == 'cutout' else SoftTargetCrossEntropy()


def selecting_task(model, stages, *, copies=4, criterion=None, seed=42, rank=0, freeze_bn=False, **kwargs):
    """A task whose input MaxUp chooses, as the engine has it when a phase has begun."""
    task = RegAugTask(model, criterion or SoftTargetCrossEntropy(), verbose=False, rank=rank)
    task.freeze_bn = freeze_bn
    task.selector = MaxUp(stages, num_copies=copies, scorer=Scorer(task), seed=seed, **kwargs)
    return task.train()


def candidates_of(task, input, target, key):
    """The candidates that MaxUp scores for a key, as (input, target), and what it returns."""
    seen, scorer = [], task.selector.scorer

    def watching(input, target):
        seen.append((input.clone(), target.clone()))
        return scorer(input, target)

    watching.task = task
    watched = copy.copy(task.selector)
    watched.scorer = watching
    return seen, watched(input, target, key)


def losses_of(model, criterion, candidates):
    """Losses [m, B] of candidates, each scored by a fresh copy of the model from the same random state."""
    state, losses = torch.get_rng_state(), []
    for image, label in candidates:
        torch.set_rng_state(state)
        output = copy.deepcopy(model)(image).detach()
        losses.append(torch.stack([criterion(output[[row]], label[[row]]) for row in range(len(label))]))
    torch.set_rng_state(state)
    return torch.stack(losses)


def rows_of(candidates, numbers):
    """Row b of candidate numbers[b], for images and labels."""
    return [
        torch.stack([candidates[number][part][row] for row, number in enumerate(numbers.tolist())]) for part in (0, 1)
    ]


# --- the choice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('freeze_bn', [False, True])
@pytest.mark.parametrize('model_name', MODELS)
@pytest.mark.parametrize('name', STAGES)
def test_the_choice_is_the_worst_of_copies_scored_by_a_fresh_copy_of_the_model_each(name, model_name, freeze_bn):
    model = MODELS[model_name]()
    task = selecting_task(model, STAGES[name](), criterion=criterion_for(name), freeze_bn=freeze_bn)
    assert all(part.training is not freeze_bn for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    [(input, target)] = make_batches(1, size=8, dtype=torch.float32)
    reference = copy.deepcopy(model)
    candidates, (chosen, labels, figures) = candidates_of(task, input, target, (3, 0, 1))
    losses = losses_of(reference, criterion_for(name), candidates)
    worst = losses.argmax(dim=0)
    assert losses.shape == (4, 8) and len(set(worst.tolist())) > 1
    assert_equal([chosen, labels], rows_of(candidates, worst))
    assert figures['maxup_chosen_loss'].item() == pytest.approx(losses.max(dim=0).values.mean().item(), rel=1e-4)
    assert figures['maxup_mean_loss'].item() == pytest.approx(losses.mean().item(), rel=1e-4)
    shares = [figures[f'maxup_share{number}'].item() for number in range(1, 5)]
    assert shares == pytest.approx([(worst == number).float().mean().item() for number in range(4)])


@pytest.mark.parametrize('freeze_bn', [False, True])
def test_an_update_is_a_plain_step_on_what_was_chosen(freeze_bn):
    model = make_droppy_model()
    task = selecting_task(model, STAGES['cutmix'](), freeze_bn=freeze_bn)
    reference = copy.deepcopy(model)
    [(input, target)] = make_batches(1, size=8, dtype=torch.float32)
    state = torch.get_rng_state()
    _, (chosen, labels, _) = candidates_of(task, input, target, (0, 0, 0))
    metrics = make_engine(task, torch.optim.SGD(model.parameters(), lr=0.1)).train_one_epoch(0, [(input, target)])
    after = torch.get_rng_state()

    torch.set_rng_state(state)
    loss = SoftTargetCrossEntropy()(reference(chosen), labels)
    loss.backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    assert_equal(torch.get_rng_state(), after)
    assert_equal(dict(model.state_dict()), dict(reference.state_dict()))
    assert metrics['loss'] == pytest.approx(loss.item())
    assert metrics['maxup_passes'] == 4
    if freeze_bn:  # without batch statistics a sample's loss is the same in any company
        assert metrics['maxup_chosen_loss'] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize('criterion', [BinaryCrossEntropy(sum_classes=True), BinaryCrossEntropy(target_threshold=0.3)])
def test_the_criterion_of_training_decides(criterion):
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, STAGES['cutmix'](), criterion=criterion)
    [(input, target)] = make_batches(1, size=16, dtype=torch.float32)
    candidates, (chosen, labels, _) = candidates_of(task, input, target, (0, 0, 0))
    worst = losses_of(model, criterion, candidates).argmax(dim=0)
    assert_equal([chosen, labels], rows_of(candidates, worst))
    assert (losses_of(model, SoftTargetCrossEntropy(), candidates).argmax(dim=0) != worst).any()


def test_excess_is_what_the_loss_is_above_the_entropy_of_the_label():
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, STAGES['mixup'](), excess=True)
    [(input, target)] = make_batches(1, size=16, dtype=torch.float32)
    candidates, (chosen, labels, figures) = candidates_of(task, input, target, (0, 0, 0))
    losses = losses_of(model, SoftTargetCrossEntropy(), candidates)
    entropies = torch.stack([-(label * label.log()).sum(dim=1) for _, label in candidates])
    worst = (losses - entropies).argmax(dim=0)
    assert (worst != losses.argmax(dim=0)).any()
    assert_equal([chosen, labels], rows_of(candidates, worst))
    assert figures['maxup_chosen_loss'].item() == pytest.approx(losses.gather(0, worst[None]).mean().item(), rel=1e-5)


def test_one_more_copy_never_makes_the_chosen_loss_smaller():
    """For a network that stays as it is, and copies of which the first are the same."""
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, STAGES['cutmix'](), copies=8)
    [(input, target)] = make_batches(1, size=16, dtype=torch.float32)
    candidates, _ = candidates_of(task, input, target, (0, 0, 0))
    choices = [worst_of(candidates[:count], Scorer(task)) for count in range(1, 9)]
    for fewer, more in itertools.pairwise(choices):
        assert (more.chosen_losses >= fewer.chosen_losses).all()
        assert more.chosen_losses.mean() > fewer.chosen_losses.mean()


# --- one copy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', STAGES)
def test_one_copy_is_the_plain_augmentation_bit_for_bit(name):
    """Trained by hand on batches augmented by hand: weights, statistics, optimiser and random stream are the same."""
    model = make_droppy_model()
    reference, batches = copy.deepcopy(model), make_batches(3, size=6, dtype=torch.float32)
    task = selecting_task(model, STAGES[name](), copies=1, criterion=criterion_for(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = torch.get_rng_state()
    metrics = make_engine(task, optimizer).train_one_epoch(0, batches)
    after = torch.get_rng_state()

    torch.set_rng_state(state)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for update, (input, target) in enumerate(batches):
        maxup = MaxUp(STAGES[name](), num_copies=1, scorer=None, seed=42)
        input, target, _ = maxup(input, target, (update, 0, 0))
        loss = criterion_for(name)(reference(input), target)
        loss.backward()
        plain.step()
        plain.zero_grad()
        losses.append(loss.item())
    assert_equal(dict(model.state_dict()), dict(reference.state_dict()))
    assert_equal(optimizer.state_dict(), plain.state_dict())
    assert_equal(torch.get_rng_state(), after)
    assert metrics['loss'] == pytest.approx(np.mean(losses))
    assert metrics['maxup_passes'] == 0


def test_one_copy_trains_on_an_average_of_the_augmentation():
    """Nothing is chosen: over many updates the share is that of plain CutMix, 1 - (1/2 - 1/5 + 1/48)."""
    maxup = MaxUp(STAGES['cutmix'](), num_copies=1, scorer=None, seed=42)
    input, target = torch.zeros(1000, 1, 64, 64), torch.zeros(1000, dtype=torch.long)
    shares = [maxup(input, target, (update, 0, 0))[2]['maxup_lambda'].item() for update in range(10)]
    assert np.mean(shares) == pytest.approx(0.679, abs=0.01)


@pytest.mark.parametrize('model_name', MODELS)
def test_scoring_equal_copies_changes_nothing(model_name):
    """With a probability of 0 all copies are the images themselves: weights, statistics and random stream are plain."""
    runs = []
    for copies in (1, 4):
        torch.manual_seed(3)
        model = MODELS[model_name]()
        task = selecting_task(model, [CutMix(alpha=1.0, prob=0.0, **LABELS)], copies=copies)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        metrics = make_engine(task, optimizer).train_one_epoch(0, make_batches(3, dtype=torch.float32))
        runs.append((dict(model.state_dict()), optimizer.state_dict(), torch.get_rng_state(), metrics['loss']))
    assert_equal(runs[1], runs[0])
    assert metrics['maxup_share1'] == 1 and metrics['maxup_share4'] == 0  # of equal ones the first
    assert metrics['maxup_lambda'] == 1


# --- draws --------------------------------------------------------------------------------------------------------


def drawn(*, seed=42, key=(0, 0, 0), copies=3, name='cutmix and noise'):
    """The candidates for a seed and a key."""
    task = selecting_task(make_model(dtype=torch.float32), STAGES[name](), copies=copies, seed=seed)
    return candidates_of(task, *make_batches(1, size=6, dtype=torch.float32)[0], key)[0]


def test_draws_depend_on_seed_update_rank_and_micro_batch():
    first = drawn()
    for other in (
        drawn(seed=43),
        drawn(key=(1, 0, 0)),
        drawn(key=(0, 1, 0)),
        drawn(key=(0, 0, 1)),
        drawn(key=(0, 1, 1)),
        drawn(key=(1, 0, 1)),
    ):
        assert not any(torch.equal(one[1], two[1]) for one, two in itertools.product(first, other))


def test_draws_depend_on_nothing_else():
    first = drawn(key=(5, 1, 2))
    torch.manual_seed(99)
    np.random.seed(99)
    drawn(key=(4, 1, 2))
    assert_equal(drawn(key=(5, 1, 2)), first)


def test_draws_are_these_numbers_on_every_machine():
    stage = CutMix(alpha=1.0, prob=1.0, num_classes=4, smoothing=0.0)
    maxup = MaxUp([stage], num_copies=1, scorer=None, seed=42)
    _, labels, _ = maxup(torch.zeros(4, 3, 32, 32), torch.arange(4), (7, 0, 0))
    assert labels.tolist() == [
        [0.828125, 0.0, 0.0, 0.171875],
        [0.0, 1.0, 0.0, 0.0],
        [0.6064453125, 0.0, 0.3935546875, 0.0],
        [0.0, 0.0, 0.00390625, 0.99609375],
    ]


def test_updates_and_micro_batches_have_draws_of_their_own():
    """The engine numbers updates over the whole run and micro-batches within an update."""
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, STAGES['cutmix'](), copies=1)
    keys, selector = [], task.selector

    def noting(input, target, key):
        keys.append(key)
        return selector(input, target, key)

    task.selector = noting
    engine = make_engine(task, torch.optim.SGD(model.parameters(), lr=0.1), '--grad-accum-steps', 2)
    for epoch in (0, 1):
        engine.train_one_epoch(epoch, make_batches(5, dtype=torch.float32))
    assert keys == [(3 * epoch + batch // 2, 0, batch % 2) for epoch in (0, 1) for batch in range(5)]


def test_every_copy_pairs_the_samples_anew():
    candidates = drawn(name='cutmix', copies=6)
    assert all(not torch.equal(one[0], two[0]) for one, two in itertools.combinations(candidates, 2))
    assert all(not torch.equal(one[1], two[1]) for one, two in itertools.combinations(candidates, 2))


# --- figures ------------------------------------------------------------------------------------------------------


def test_shares_of_the_copies_sum_to_one_and_are_even_for_a_network_with_random_weights():
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, STAGES['mixup']())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    metrics = make_engine(task, optimizer).train_one_epoch(0, make_batches(20, size=32, side=16, dtype=torch.float32))
    shares = [metrics[f'maxup_share{number}'] for number in range(1, 5)]
    assert sum(shares) == pytest.approx(1)
    assert shares == pytest.approx([0.25] * 4, abs=5 * (0.25 * 0.75 / 640) ** 0.5)
    assert metrics['maxup_chosen_loss'] > metrics['maxup_mean_loss'] + 0.01
    assert list(metrics) == [
        'loss',
        *('maxup_passes', 'maxup_chosen_loss', 'maxup_mean_loss'),
        *(f'maxup_share{number}' for number in range(1, 5)),
        'maxup_lambda',
    ]


def test_lambda_is_the_share_of_the_own_label_in_what_was_chosen():
    """It can be read from the soft targets of samples that all have a label of their own."""
    model = create_model('test_resnet', num_classes=16)
    task = selecting_task(model, [Mixup(alpha=1.0, prob=1.0, num_classes=16, smoothing=0.0)])
    [(input, _)] = make_batches(1, size=16, dtype=torch.float32)
    for key in range(10):  # until no chosen sample is its own partner
        _, labels, figures = task.selector(input, torch.arange(16), (key, 0, 0))
        own = labels.diagonal()
        if (own < 1).all():
            break
    assert own.max() < 1
    assert figures['maxup_lambda'].item() == pytest.approx(own.mean().item())


@pytest.mark.parametrize('name', ['cutout', 'noise'])
def test_lambda_is_one_where_nothing_is_mixed(name):
    stages = [Cutout(size=8)] if name == 'cutout' else [GaussianNoise(sigma=torch.ones(3))]
    task = selecting_task(make_model(dtype=torch.float32), stages, criterion=nn.CrossEntropyLoss())
    [(input, target)] = make_batches(1, dtype=torch.float32)
    _, labels, figures = task.choose_input(input, target)
    assert figures['maxup_lambda'] == 1
    assert_equal(labels, target)


# --- sub-networks -------------------------------------------------------------------------------------------------


def test_subnetworks_train_on_the_chosen_copies():
    """Scored by the full network alone, which then trains on them as well."""
    model = make_model(dtype=torch.float32)
    task = make_task(model, SoftTargetCrossEntropy(), gradaug=make_gradaug(transforms=()))
    task.selector = MaxUp(STAGES['cutmix'](), num_copies=4, scorer=Scorer(task), seed=42)
    full, sub = [], []
    model.register_forward_pre_hook(lambda module, args: full.append(args[0].clone()))
    forward = task._forward_subnet
    task._forward_subnet = lambda image: sub.append(image.clone()) or forward(image)
    chosen, labels, _ = task.choose_input(*make_batches(1, dtype=torch.float32)[0])
    assert (len(full), len(sub)) == (4, 0)
    full.clear()
    for _, term in task.loss_terms(chosen, labels):
        term()['loss'].backward()
    assert len(sub) == 3
    assert_equal([full[0], *sub], [chosen] * 4)


# --- views --------------------------------------------------------------------------------------------------------

AS_THEY_ARE = ('--hflip', 0, '--color-jitter', 0, '--scale', 1, 1, '--ratio', 1, 1)
VIEWS = ('--maxup', 3, '--maxup-aug', 'views', '--maxup-warmup-epochs', 0, '--epochs', 4, '--warmup-epochs', 0)


class CountingDataset(MemoryDataset):
    """Counts how often an image is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


def test_an_image_is_read_once_and_each_view_is_made_of_the_image_itself():
    dataset = CountingDataset(noise_images(4), [3, 2, 1, 0])
    dataset.transform = transforms.ToTensor()
    views = Views(dataset, 5)
    seen = []
    views.transform = lambda image: seen.append(np.asarray(image)) or len(seen)
    versions, target = views[2]
    assert (versions, target, dataset.reads, len(views)) == ((1, 2, 3, 4, 5), 1, 1, 4)
    for image in seen:
        assert np.array_equal(image, noise_images(4)[2])


@pytest.mark.parametrize('workers', [0, 2])
def test_a_batch_has_the_views_of_its_images_version_by_version(workers):
    images = noise_set(12, classes=12)
    train_data, _ = make_train_data(
        images, *VIEWS, *AS_THEY_ARE, '--batch-size', 4, '--workers', workers, '--smoothing', 0, classes=12
    )
    labels = []
    for input, target in train_data.loader:
        assert input.shape == (12, 3, 32, 32)
        assert target.tolist() == target[:4].tolist() * 3
        assert np.array_equal(as_bytes(input), images.images[target.numpy()])
        labels += target[:4].tolist()
    assert sorted(labels) == list(range(12))


def test_views_of_an_image_are_augmented_independently():
    options = ('--hflip', 0.5, '--color-jitter', 0, '--pad-crop', 4, '--batch-size', 8, '--workers', 0)
    train_data, _ = make_train_data(noise_set(64), *VIEWS, *options, '--reprob', 0.5)
    equal = []
    for input, _ in train_data.loader:
        versions = input.tensor_split(3)
        equal += [
            torch.equal(one, two)
            for pair in itertools.combinations(versions, 2)
            for one, two in zip(*pair, strict=True)
        ]
    assert len(equal) == 64 * 3
    assert sum(equal) < 5


def numbered_images(count, side=40):
    """Images of one colour each, by which a sample is known whatever crop is taken: red is 4 * number + 3."""
    images = np.random.default_rng(1).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    images[..., 0] = (np.arange(count) * 4 + 3)[:, None, None]
    return images


@pytest.mark.parametrize('augmentation', ['views', 'views+cutout'])
def test_of_the_views_of_a_sample_its_own_worst_one_is_chosen(augmentation):
    dataset = MemoryDataset(numbered_images(16), np.arange(16))
    options = (*VIEWS, '--maxup-aug', augmentation, '--batch-size', 8, '--workers', 0, '--color-jitter', 0)
    train_data, args = make_train_data(dataset, *options, '--pad-crop', 4, classes=16)
    model = make_model(dtype=torch.float32)
    model.reset_classifier(16)
    phase = phase_at(0, args)
    task = make_task(model, create_criterion(phase.options))
    task.start_phase(phase, task.criterion, create_selector(phase.options, task, BYTES_CONFIG))
    picked = []
    for input, target in train_data.loader:
        candidates, (chosen, labels, figures) = candidates_of(task, input, target, (0, 0, 0))
        assert len(candidates) == 3
        assert_equal(labels, target[:8])
        assert ((chosen[:, 0].amax(dim=(1, 2)) - 3) / 4).round().long().tolist() == labels.tolist()
        if augmentation == 'views':
            assert_equal([image for image, _ in candidates], list(input.tensor_split(3)))
        worst = losses_of(model, task.criterion, candidates).argmax(dim=0)
        assert_equal(chosen, rows_of(candidates, worst)[0])
        assert figures['maxup_lambda'] == 1
        picked += worst.tolist()
    assert len(picked) == 16 and len(set(picked)) == 3


def test_views_may_be_mixed_each_with_views_of_its_version():
    input = torch.arange(12.0).view(12, 1, 1, 1).expand(12, 3, 16, 16)  # 3 versions of 4 samples
    target = torch.arange(4).repeat(3)
    maxup = MaxUp([CutMix(alpha=1.0, prob=1.0, **LABELS)], num_copies=3, scorer=None, seed=1, views=True)
    for number, (mixed, soft, shares) in enumerate(maxup.candidates(input, target, np.random.default_rng(2))):
        assert mixed.shape == (4, 3, 16, 16) and soft.shape == (4, CLASSES) and shares.shape == (4,)
        assert set((mixed // 4).flatten().tolist()) == {number}
        own = (mixed[:, 0] == input[4 * number : 4 * number + 4, 0]).float().mean(dim=(1, 2))
        assert (own >= shares - 1e-6).all()
        assert own.min() < 1


def test_each_phase_delivers_as_many_views_as_it_needs():
    options = ('--maxup', 3, '--maxup-aug', 'views', '--maxup-warmup-epochs', 1, '--epochs', 3, '--warmup-epochs', 0)
    further = ('--refine-epochs', 1, '--batch-size', 4, '--workers', 0, '--pad-crop', 2)
    images = noise_set(8)
    train_data, args = make_train_data(images, *options, *further)
    sizes = []
    for epoch in range(4):
        train_data.use(phase_at(epoch, args))
        sizes.append([len(input) for input, _ in train_data.loader])
    assert sizes == [[4, 4], [12, 12], [12, 12], [4, 4]]


def test_policies_fade_in_every_view():
    """Over the last three of four epochs fewer and fewer views are changed by the policy."""
    options = (*VIEWS, *AS_THEY_ARE, '--aa', 'rand-m9-n4', '--refine-epochs', 1, '--refine-fade', 3)
    images = noise_set(60)
    originals = {image.tobytes() for image in images.images}
    train_data, args = make_train_data(images, *options, '--batch-size', 60, '--workers', 0)
    changed = []
    for epoch in range(4):
        train_data.use(phase_at(epoch, args))
        [(input, _)] = train_data.loader
        versions = as_bytes(input).reshape(3, 60, 32, 32, 3)
        changed.append([np.mean([image.tobytes() not in originals for image in images]) for images in versions])
    for version in range(3):
        shares = [epoch[version] for epoch in changed]
        expected = [shares[0] * intensity for intensity in (1, 0.75, 0.5, 0.25)]
        assert shares[0] > 0.5
        assert shares == pytest.approx(expected, abs=0.2)
    assert np.mean(changed, axis=1).tolist() == sorted(np.mean(changed, axis=1), reverse=True)
