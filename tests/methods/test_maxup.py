"""MaxUp: the worst of m copies of each sample, the plain augmentation for m = 1, metrics and pictures."""

import copy
import itertools

import numpy as np
import pytest
import torch
from timm import create_model
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from regaug.augment.mix import CutMix, Cutout, GaussianNoise, Mixup
from regaug.methods.maxup import MaxUp
from regaug.methods.scoring import Scorer, worst_of
from tests.helpers.maxup import AUGMENTATIONS, LABELS, candidates_of, losses_of, rows_of, selecting_task
from tests.helpers.training import (
    assert_equal,
    make_batches,
    make_droppy_model,
    make_engine,
    make_gradaug,
    make_model,
    make_task,
    selector_of,
    set_selector,
)

MODELS = {
    'residual': lambda: make_model(dtype=torch.float32),
    'dropout and drop path': make_droppy_model,
    'transformer': lambda: make_model('test_vit', dtype=torch.float32, img_size=32),
}


def criterion_for(name):
    return nn.CrossEntropyLoss() if name == 'cutout' else SoftTargetCrossEntropy()


# --- the choice ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('freeze_bn', [False, True])
@pytest.mark.parametrize('model_name', MODELS)
@pytest.mark.parametrize('name', AUGMENTATIONS)
@pytest.mark.few(6)
def test_the_choice_is_the_worst_of_copies_scored_by_a_fresh_copy_of_the_model_each(name, model_name, freeze_bn):
    model = MODELS[model_name]()
    task = selecting_task(model, AUGMENTATIONS[name](), criterion=criterion_for(name), freeze_bn=freeze_bn)
    assert all(part.training is not freeze_bn for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    [(input, target)] = make_batches(1, size=8, dtype=torch.float32)
    reference = copy.deepcopy(model)
    candidates, (chosen, labels, metrics) = candidates_of(task, input, target, (3, 0, 1))
    losses = losses_of(reference, criterion_for(name), candidates)
    worst = losses.argmax(dim=0)
    assert losses.shape == (4, 8) and len(set(worst.tolist())) > 1
    assert_equal([chosen, labels], rows_of(candidates, worst))
    assert metrics['maxup_chosen_loss'].item() == pytest.approx(losses.max(dim=0).values.mean().item(), rel=1e-4)
    assert metrics['maxup_mean_loss'].item() == pytest.approx(losses.mean().item(), rel=1e-4)
    shares = [metrics[f'maxup_share{number}'].item() for number in range(1, 5)]
    assert shares == pytest.approx([(worst == number).float().mean().item() for number in range(4)])


@pytest.mark.parametrize('freeze_bn', [False, True])
def test_an_update_is_a_plain_step_on_what_was_chosen(freeze_bn):
    model = make_droppy_model()
    task = selecting_task(model, AUGMENTATIONS['cutmix'](), freeze_bn=freeze_bn)
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
    task = selecting_task(model, AUGMENTATIONS['cutmix'](), criterion=criterion)
    [(input, target)] = make_batches(1, size=16, dtype=torch.float32)
    candidates, (chosen, labels, _) = candidates_of(task, input, target, (0, 0, 0))
    worst = losses_of(model, criterion, candidates).argmax(dim=0)
    assert_equal([chosen, labels], rows_of(candidates, worst))
    assert (losses_of(model, SoftTargetCrossEntropy(), candidates).argmax(dim=0) != worst).any()


def test_excess_is_what_the_loss_is_above_the_entropy_of_the_label():
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, AUGMENTATIONS['mixup'](), excess=True)
    [(input, target)] = make_batches(1, size=16, dtype=torch.float32)
    candidates, (chosen, labels, metrics) = candidates_of(task, input, target, (0, 0, 0))
    losses = losses_of(model, SoftTargetCrossEntropy(), candidates)
    entropies = torch.stack([-(label * label.log()).sum(dim=1) for _, label in candidates])
    worst = (losses - entropies).argmax(dim=0)
    assert (worst != losses.argmax(dim=0)).any()
    assert_equal([chosen, labels], rows_of(candidates, worst))
    assert metrics['maxup_chosen_loss'].item() == pytest.approx(losses.gather(0, worst[None]).mean().item(), rel=1e-5)


def test_one_more_copy_never_makes_the_chosen_loss_smaller():
    """For a network that stays as it is, and copies of which the first are the same."""
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, AUGMENTATIONS['cutmix'](), copies=8)
    [(input, target)] = make_batches(1, size=16, dtype=torch.float32)
    candidates, _ = candidates_of(task, input, target, (0, 0, 0))
    choices = [worst_of(candidates[:count], Scorer(task)) for count in range(1, 9)]
    for fewer, more in itertools.pairwise(choices):
        assert (more.chosen_losses >= fewer.chosen_losses).all()
        assert more.chosen_losses.mean() > fewer.chosen_losses.mean()


# --- one copy -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', AUGMENTATIONS)
def test_one_copy_is_the_plain_augmentation_bit_for_bit(name):
    """Trained by hand on batches augmented by hand: weights, statistics, optimiser and random stream are the same."""
    model = make_droppy_model()
    reference, batches = copy.deepcopy(model), make_batches(3, size=6, dtype=torch.float32)
    task = selecting_task(model, AUGMENTATIONS[name](), copies=1, criterion=criterion_for(name))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    state = torch.get_rng_state()
    metrics = make_engine(task, optimizer).train_one_epoch(0, batches)
    after = torch.get_rng_state()

    torch.set_rng_state(state)
    plain = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for update, (input, target) in enumerate(batches):
        maxup = MaxUp(AUGMENTATIONS[name](), num_copies=1, scorer=None, seed=42)
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
    maxup = MaxUp(AUGMENTATIONS['cutmix'](), num_copies=1, scorer=None, seed=42)
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


# --- metrics ------------------------------------------------------------------------------------------------------


def test_shares_of_the_copies_sum_to_one_and_are_even_for_a_network_with_random_weights():
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, AUGMENTATIONS['mixup']())
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
        _, labels, metrics = selector_of(task)(input, torch.arange(16), (key, 0, 0))
        own = labels.diagonal()
        if (own < 1).all():
            break
    assert own.max() < 1
    assert metrics['maxup_lambda'].item() == pytest.approx(own.mean().item())


@pytest.mark.parametrize('name', ['cutout', 'noise'])
def test_lambda_is_one_where_nothing_is_mixed(name):
    augmentations = [Cutout(size=8)] if name == 'cutout' else [GaussianNoise(sigma=torch.ones(3))]
    task = selecting_task(make_model(dtype=torch.float32), augmentations, criterion=nn.CrossEntropyLoss())
    [(input, target)] = make_batches(1, dtype=torch.float32)
    _, labels, metrics = task.choose_input(input, target)
    assert metrics['maxup_lambda'] == 1
    assert_equal(labels, target)


# --- pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('copies', [2, 5, 20])
def test_pictures_show_all_copies_of_the_first_samples_with_their_losses(copies):
    model = make_model(dtype=torch.float32)
    task = selecting_task(model, AUGMENTATIONS['cutmix'](), copies=copies)
    [(input, target)] = make_batches(1, size=12, dtype=torch.float32)
    task.choose_input(input, target)
    assert task.pictures() == []
    candidates, (chosen, _, _) = candidates_of(task, input, target, (0, 0, 0))
    task.keep_pictures = True
    again, _, _ = task.choose_input(input, target)
    assert_equal(again, chosen)
    [(name, images, captions)] = task.pictures()
    samples = max(1, 16 // copies)
    assert name == 'maxup' and len(images) == len(captions) == samples * copies
    losses = losses_of(model, task.criterion, candidates)
    for place, (image, caption) in enumerate(zip(images, captions)):
        sample, copy = divmod(place, copies)
        assert_equal(image, candidates[copy][0][sample])
        worst = copy == losses[:, sample].argmax()
        assert caption == f'loss {losses[copy, sample]:.2f}' + (', chosen' if worst else '')
    task.keep_pictures = False
    assert task.pictures() == []


# --- sub-networks -------------------------------------------------------------------------------------------------


def test_subnetworks_train_on_the_chosen_copies():
    """Scored by the full network alone, which then trains on them as well."""
    model = make_model(dtype=torch.float32)
    gradaug = make_gradaug(transforms=())
    task = make_task(model, SoftTargetCrossEntropy(), gradaug=gradaug)
    set_selector(task, MaxUp(AUGMENTATIONS['cutmix'](), num_copies=4, scorer=Scorer(task), seed=42))
    full, sub = [], []
    model.register_forward_pre_hook(lambda module, args: full.append(args[0].clone()))
    subnet = gradaug.subnet.module
    subnet.register_forward_pre_hook(lambda module, args: sub.append(args[0].clone()))
    chosen, labels, _ = task.choose_input(*make_batches(1, dtype=torch.float32)[0])
    assert (len(full), len(sub)) == (4, 0)
    full.clear()
    for _, term in task.loss_terms(chosen, labels):
        term()['loss'].backward()
    assert len(sub) == 3
    assert_equal([full[0], *sub], [chosen] * 4)
