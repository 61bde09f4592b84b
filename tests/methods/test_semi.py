"""The loss terms of GradAug-semi: what the sub-networks learn from unlabelled images, and what nothing else does."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy
from torch import nn

from regaug.methods.semi import soft_label_losses
from regaug.methods.subnetworks import soft_label_loss
from tests.helpers.semi import Stream, make_semi_task, unlabelled_terms
from tests.helpers.slimmable_oracle import kept_mask, zeroed_copy
from tests.helpers.training import (
    CLASSES,
    assert_close,
    assert_equal,
    gradients,
    gradients_at_updates,
    make_batches,
    make_droppy_model,
    make_engine,
    make_model,
    sum_of,
)


def train_mode_logits(model, images):
    """Logits by a copy of the model, with batch statistics and without gradient."""
    return copy.deepcopy(model).train()(images).detach()


def reference_loss(output, taught, kept=1.0):
    """Mean KL divergence of the rows, written out."""
    probabilities = taught.exp() / taught.exp().sum(dim=1, keepdim=True)
    logs = [(tensor - tensor.exp().sum(dim=1, keepdim=True).log()) for tensor in (taught, output)]
    return (probabilities * (logs[0] - logs[1]) * kept).sum() / len(output)


def reference_gradients(model, plan, draw, images, taught, kept=1.0):
    """Gradients of one sub-network's term, by a full-size network with its dropped channels zeroed."""
    counts = plan.counts(draw.width, 8)
    zeroed = zeroed_copy(model, plan, counts, only_outputs=True)
    loss = reference_loss(zeroed(F.interpolate(images, draw.size, mode='bilinear', align_corners=True)), taught, kept)
    loss.backward()
    table = {
        name: torch.zeros_like(parameter)
        if parameter.grad is None
        else parameter.grad * kept_mask(plan, name, parameter.shape, counts)
        for name, parameter in zeroed.named_parameters()
    }
    return loss.detach(), table


@pytest.mark.parametrize('cutoff', [0.0, 0.5])
def test_terms_and_gradients_equal_a_hand_written_reference(cutoff):
    model = make_model()
    task, semi = make_semi_task(model, cutoff=cutoff, loss_ratio=0.7)
    terms = unlabelled_terms(task, make_batches(1)[0], num_updates=5)
    images, _ = Stream().next(5)
    taught = train_mode_logits(model, images)
    kept = (taught.softmax(dim=1).amax(dim=1) >= cutoff).double()[:, None]
    assert bool(cutoff) != bool(kept.all())  # with the cut-off, some are left out and others are not
    assert kept.any()
    plan, total = semi.gradaug.subnet.plan, []
    for (name, term), draw in zip(terms.items(), semi.gradaug.draw(5, 32), strict=True):
        model.zero_grad()
        result = term()
        (result['weight'] * result['loss']).backward()
        loss, expected = reference_gradients(copy.deepcopy(model), plan, draw, images, taught, kept)
        assert result['loss'].item() == pytest.approx(loss.item(), rel=1e-9), name
        assert_close(gradients(model), {key: 0.7 * value for key, value in expected.items()}, tolerance=1e-9)
        total.append(result)
    assert [name for name in terms] == ['ulb1', 'ulb2', 'ulb3']
    assert total[0]['kept'] == pytest.approx(kept.mean().item())
    assert total[0]['confidence'].item() == pytest.approx(taught.softmax(dim=1).amax(dim=1).mean().item(), rel=1e-6)


def test_an_update_sums_labelled_and_unlabelled_terms():
    model, batches = make_model(), make_batches(1)
    task, _ = make_semi_task(copy.deepcopy(model), loss_ratio=0.5)
    optimizer = torch.optim.SGD(task.full_network.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, task.full_network)
    make_engine(task, optimizer).train_one_epoch(0, batches)
    task, _ = make_semi_task(model, loss_ratio=0.5)
    task.begin_update(0)
    parts = []
    for name, term in task.loss_terms(*batches[0]):
        model.zero_grad()
        result = term()
        (result['loss'] * (0.5 if name.startswith('ulb') else 1.0)).backward()
        parts.append(gradients(model))
    assert len(parts) == 7
    assert_close(seen[0], sum_of(*parts))


def test_unlabelled_images_leave_running_statistics_and_random_state_alone():
    model = make_droppy_model().double()
    task, _ = make_semi_task(model, gradaug={'min_width': 0.8})
    terms = unlabelled_terms(task, make_batches(1)[0])
    before = copy.deepcopy(dict(model.named_buffers()))
    state = torch.get_rng_state()
    for term in terms.values():
        term()['loss'].backward()
    assert_equal(dict(model.named_buffers()), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_full_network_gets_no_gradient_from_unlabelled_images():
    model = make_model()
    task, semi = make_semi_task(model, gradaug={'num_subnetworks': 1, 'rule': 'smallest'})
    [term] = unlabelled_terms(task, make_batches(1)[0]).values()
    term()['loss'].backward()
    plan, counts = semi.gradaug.subnet.plan, semi.gradaug.subnet.plan.counts(0.5, 8)
    for name, gradient in gradients(model).items():
        assert not gradient[~kept_mask(plan, name, gradient.shape, counts)].any()
    assert any(gradient.any() for gradient in gradients(model).values())


@pytest.mark.parametrize('labels_known', [True, False])
@pytest.mark.few(1)
def test_labels_of_unlabelled_images_change_the_log_and_nothing_else(labels_known):
    found = []
    for relabel in (None, lambda labels: torch.full_like(labels, 10**6)):
        torch.manual_seed(2)
        model = make_model()
        task, _ = make_semi_task(model, stream=Stream(relabel=relabel), labels_known=labels_known)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        figures = make_engine(task, optimizer).train_one_epoch(0, make_batches(3))
        found.append((dict(figures), copy.deepcopy(model.state_dict())))
    accuracies = [figures.pop('ulb1_accuracy', None) for figures, _ in found]
    assert (accuracies[0] is not None) == labels_known
    assert accuracies[1] == (0.0 if labels_known else None)
    assert_equal(found[1], found[0])


def test_logged_accuracy_is_that_of_the_pseudo_labels():
    model = make_model()
    images, labels = Stream(size=32).next(0)
    expected = (train_mode_logits(model, images).argmax(dim=1) == labels).double().mean().item()
    task, _ = make_semi_task(model, stream=Stream(size=32), labels_known=True)
    results = [term() for term in unlabelled_terms(task, make_batches(1)[0]).values()]
    assert results[0]['accuracy'].item() == pytest.approx(expected)
    assert 'accuracy' not in results[1]


def test_weight_rises_linearly_to_the_ratio():
    _, semi = make_semi_task(make_model(), loss_ratio=2.0, warmup_updates=4)
    assert [semi.weight(number) for number in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    _, semi = make_semi_task(make_model(), loss_ratio=2.0)
    assert semi.weight(0) == 2.0


def test_the_weight_of_sub_networks_holds_for_unlabelled_images_too():
    model, losses = make_model(), []
    for weight in (1.0, 0.3):
        task, _ = make_semi_task(model, gradaug={'weight': weight})
        losses.append([term()['loss'].item() for term in unlabelled_terms(task, make_batches(1)[0]).values()])
    assert losses[1] == pytest.approx([0.3 * loss for loss in losses[0]])


def test_a_confidence_of_just_the_cutoff_counts():
    model = make_model()
    nn.init.zeros_(model.fc.weight)
    nn.init.zeros_(model.fc.bias)
    for cutoff, kept in ((1 / CLASSES, 1.0), (1 / CLASSES + 1e-6, 0.0)):
        task, _ = make_semi_task(model, cutoff=cutoff)
        result = unlabelled_terms(task, make_batches(1)[0])['ulb1']()
        assert result['confidence'] == 1 / CLASSES
        assert result['kept'] == kept


def test_sub_networks_of_an_update_are_the_same_for_both_kinds_of_images():
    task, _ = make_semi_task(make_model(), stream=Stream(size=4))
    task.begin_update(3)
    seen = []
    subnet = task.methods[0].subnet
    original = subnet.set
    subnet.set = lambda width: (seen.append(width), original(width))
    for _, term in task.loss_terms(*make_batches(1)[0]):
        term()
    assert seen[0] == 1.0  # the full network's term
    assert seen[1:4] == seen[4:]


def test_unlabelled_images_come_where_sub_networks_run():
    task, semi = make_semi_task(make_model(), gradaug={'every': 2}, grad_accum_steps=2)
    task.begin_update(1)
    assert [name for name, _ in task.loss_terms(*make_batches(1)[0])] == ['full']
    task.begin_update(2)
    for _ in range(2):
        assert len(task.loss_terms(*make_batches(1)[0])) == 7
    assert semi.data.asked == [4, 5]


def test_moving_average_gives_pseudo_labels_in_evaluation_mode():
    model = make_model()
    task, semi = make_semi_task(model, teacher='ema')
    task.setup_ema(decay=0.5)
    task.train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images, _ = Stream().next(0)
    average = copy.deepcopy(task.get_eval_model(ema=True)).eval()
    taught = average(images).detach()
    term = unlabelled_terms(task, make_batches(1)[0])['ulb2']
    draw = semi.gradaug.draw(0, 32)[1]
    loss, _ = reference_gradients(copy.deepcopy(model), semi.gradaug.subnet.plan, draw, images, taught)
    assert term()['loss'].item() == pytest.approx(loss.item(), rel=1e-9)
    assert not torch.allclose(taught, train_mode_logits(model, images))


@pytest.mark.parametrize(
    'criterion',
    [nn.CrossEntropyLoss(), BinaryCrossEntropy(), BinaryCrossEntropy(target_threshold=0.2, sum_classes=True)],
)
def test_mean_of_the_losses_is_the_loss_on_labelled_images(criterion):
    output, taught = torch.randn(2, 9, CLASSES)
    expected = soft_label_loss(output, taught, criterion)
    torch.testing.assert_close(soft_label_losses(output, taught, criterion).mean(), expected)


def test_losses_are_float32_under_autocast():
    output, taught = torch.randn(2, 5, CLASSES).bfloat16()
    assert soft_label_losses(output, taught, nn.CrossEntropyLoss()).dtype == torch.float32


@pytest.mark.parametrize('teacher', ['full', 'ema'])
def test_pseudo_labels_are_computed_under_the_autocast_of_training(teacher):
    model = make_model(dtype=torch.float32)
    task, _ = make_semi_task(model, teacher=teacher, stream=Stream(dtype=torch.float32))
    task.setup_ema(decay=0.5)
    task.autocast = partial(torch.autocast, 'cpu', dtype=torch.bfloat16)
    given = []
    network = task.get_eval_model(ema=True) if teacher == 'ema' else model
    network.register_forward_hook(lambda module, args, output: given.append(output.dtype))
    unlabelled_terms(task, make_batches(1, dtype=torch.float32)[0])['ulb1']()
    assert given == [torch.bfloat16]


@pytest.mark.parametrize(('make', 'transforms'), [(make_droppy_model, ()), (make_model, ('mask',))])
def test_both_kinds_of_images_have_dropout_and_masks_of_their_own(make, transforms):
    model = make().float()
    task, semi = make_semi_task(model, gradaug={'transforms': transforms, 'mask_patch': 8})
    input, _ = make_batches(1, size=8, dtype=torch.float32)[0]
    draw = semi.gradaug.draw(0, 32)[0]

    def logits(*kind):
        return semi.gradaug.run_subnet(draw, 1, input, task.context, *kind)[0]

    assert torch.equal(logits(), logits())
    assert (logits() - logits('unlabelled')).abs().max() > 1e-4


@pytest.mark.parametrize('channels_last', [True, False])
def test_unlabelled_images_have_the_memory_format_of_the_labelled_ones(channels_last):
    task, semi = make_semi_task(make_model(), channels_last=channels_last)
    formats = []
    semi.gradaug.subnet.module.register_forward_pre_hook(
        lambda module, args: formats.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    for term in unlabelled_terms(task, make_batches(1)[0]).values():
        term()
    assert formats == [channels_last] * 3


def test_a_share_of_the_unlabelled_images_has_its_own_pseudo_labels_and_cutoff():
    model = make_model()
    task, semi = make_semi_task(model, cutoff=0.5, gradaug={'batch_share': 1 / 3})
    terms = unlabelled_terms(task, make_batches(1)[0], num_updates=5)
    images, _ = Stream().next(5)
    taught = train_mode_logits(model, images)
    kept = (taught.softmax(dim=1).amax(dim=1) >= 0.5).double()[:, None]
    shares, plan = (slice(0, 2), slice(2, 4), slice(4, 6)), semi.gradaug.subnet.plan
    assert len({tuple(kept[rows].flatten().tolist()) for rows in shares}) > 1
    for term, draw, rows in zip(terms.values(), semi.gradaug.draw(5, 32), shares, strict=True):
        reference = copy.deepcopy(model)
        loss, _ = reference_gradients(reference, plan, draw, images[rows], taught[rows], kept[rows])
        assert term()['loss'].item() == pytest.approx(loss.item(), rel=1e-6)
