"""GradAug's loss terms: their gradients against networks built apart, and all that they must leave alone."""

import copy
import random
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from regaug.methods.subnetworks import transform
from regaug.slimmable import SlimmablePlan, extract
from regaug.training.phases import phase_at
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
    make_gradaug,
    make_model,
    make_task,
    sum_of,
    train_args,
)

ALL_TRANSFORMS = ('rotate', 'scale', 'flip')


def soft_targets(target):
    """Labels of a mixed batch [B, K]."""
    return 0.7 * F.one_hot(target, CLASSES).double() + 0.3 * F.one_hot(target.flip(0), CLASSES).double()


def full_gradients(model, input, target, criterion):
    """Gradients of the full network's loss, and its output, on a copy of the model."""
    model = copy.deepcopy(model)
    output = model(input)
    criterion(output, target).backward()
    return gradients(model), output.detach()


def small_network_gradients(model, plan, width, input, loss):
    """Gradients of `loss(output)` of a network built at a width, at their places in the full network's parameters."""
    small = extract(model, plan, width).train()
    loss(small(input)).backward()
    counts, placed = plan.counts(width), {}
    for name, parameter in small.named_parameters():
        full = model.get_parameter(name)
        placed[name] = torch.zeros_like(full)
        placed[name][kept_mask(plan, name, full.shape, counts)] = parameter.grad.flatten()
    return placed


def expected_gradients(model, plan, draws, names, input, target, criterion, weight=1.0, hard=False):
    """Sum of the gradients of all terms of one batch, each computed apart."""
    full, teacher_output = full_gradients(model, input, target, criterion)

    def soft_loss(output):
        if isinstance(criterion, BinaryCrossEntropy):
            return F.binary_cross_entropy_with_logits(output.float(), teacher_output.float().sigmoid())
        p, q = teacher_output.float().softmax(-1), output.float().softmax(-1)
        return (p * (p.log() - q.log())).sum(-1).mean()

    def loss(output):
        return weight * (criterion(output, target) if hard else soft_loss(output))

    subnets = [small_network_gradients(model, plan, draw.width, transform(input, draw, names), loss) for draw in draws]
    return sum_of(full, *subnets)


CRITERIA = {
    'cross-entropy': (nn.CrossEntropyLoss(), {}),
    'smoothing': (LabelSmoothingCrossEntropy(0.1), {'weight': 0.5}),
    'mixing': (SoftTargetCrossEntropy(), {}),
    'mixing, hard targets': (SoftTargetCrossEntropy(), {'targets': 'hard'}),
    'hard targets': (nn.CrossEntropyLoss(), {'targets': 'hard'}),
    'binary': (BinaryCrossEntropy(smoothing=0.1), {}),
}


@pytest.mark.parametrize(
    ('name', 'case', 'accum'),
    [
        ('test_resnet', 'cross-entropy', 1),
        ('test_efficientnet', 'cross-entropy', 1),
        ('test_resnet', 'cross-entropy', 3),
        *(('test_resnet', case, 2) for case in CRITERIA if case != 'cross-entropy'),
    ],
)
@pytest.mark.few(1)
def test_gradients_of_an_update_are_the_sum_of_terms_of_networks_built_apart(name, case, accum):
    criterion, options = CRITERIA[case]
    model, gradaug = make_model(name), make_gradaug(transforms=ALL_TRANSFORMS, **options)
    task = make_task(model, criterion, gradaug=gradaug)
    plan = SlimmablePlan(model, (3, 32, 32))
    batches = make_batches(accum)
    if 'mixing' in case:
        batches = [(input, soft_targets(target)) for input, target in batches]
    reference = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    make_engine(task, optimizer, '--grad-accum-steps', accum).train_one_epoch(2, batches)

    draws = gradaug.draw(2, 32)  # of update 2: the first of epoch 2
    assert len({round(draw.width * 8) for draw in draws}) > 1
    expected = sum_of(
        *(
            expected_gradients(
                reference,
                plan,
                draws,
                ALL_TRANSFORMS,
                *batch,
                criterion,
                weight=options.get('weight', 1.0),
                hard='targets' in options,
            )
            for batch in batches
        )
    )
    [update] = seen
    # The soft-label loss is computed in float32, which is as good as 1e-7.
    assert_close(update, {name: value / accum for name, value in expected.items()}, tolerance=2e-6)


def test_gradients_reach_the_subnetworks_channels_and_no_others():
    model, gradaug = make_model(), make_gradaug(num_subnetworks=2)
    task = make_task(model, gradaug=gradaug)
    plan = SlimmablePlan(model, (3, 32, 32))
    (_, full), *_, (_, smallest) = task.loss_terms(*make_batches(1)[0])
    full()
    smallest()['loss'].backward()
    counts, kept_share = plan.counts(0.5), []
    for name, parameter in model.named_parameters():
        kept = kept_mask(plan, name, parameter.shape, counts)
        assert not parameter.grad[~kept].any(), name
        assert parameter.grad[kept].any(), name
        kept_share.append(float(kept.float().mean()))
    assert min(kept_share) < 0.3


def test_subnetworks_outputs_are_those_of_a_full_network_with_zeroed_channels():
    model, gradaug = make_model(), make_gradaug(transforms=('scale',))
    task = make_task(model, gradaug=gradaug)
    plan = SlimmablePlan(model, (3, 32, 32))
    reference = copy.deepcopy(model)
    input, target = make_batches(1)[0]
    (_, full), *subnets = task.loss_terms(input, target)
    full()
    for draw, (_, term) in zip(gradaug.draw(0, 32), subnets, strict=True):
        result = term()
        zeroed = zeroed_copy(reference, plan, plan.counts(draw.width), only_outputs=True)
        torch.testing.assert_close(result['output'], zeroed(transform(input, draw, ['scale'])), rtol=1e-9, atol=1e-9)
        assert (result['width'], result['size']) == (draw.width, draw.size)


def test_teacher_is_the_very_output_of_the_full_networks_term():
    """With dropout every forward pass gives another output; the soft label is that of the one that was trained."""
    model = make_model('test_efficientnet', drop_rate=0.0, dtype=torch.float32)
    model.drop_rate = 0.5
    task = make_task(model, gradaug=make_gradaug())
    input, target = make_batches(1, size=8, dtype=torch.float32)[0]
    (_, full), *subnets = task.loss_terms(input, target)
    output = full()['output']
    assert (model(input) - output).abs().max() > 1e-2
    for _, term in subnets:
        result = term()
        p, q = output.softmax(-1), result['output'].softmax(-1)
        assert result['loss'].item() == pytest.approx((p * (p.log() - q.log())).sum(-1).mean().item(), abs=1e-6)
        assert result['agreement'].item() == (output.argmax(-1) == result['output'].argmax(-1)).float().mean().item()


def test_label_of_a_subnetwork_carries_no_gradient():
    """The gradient of the soft loss at width one without transform is zero: it is at its minimum in the output."""
    model = make_model()
    task = make_task(model, gradaug=make_gradaug(num_subnetworks=1, min_width=1.0, transforms=()))
    input, target = make_batches(1)[0]
    (_, full), (_, term) = task.loss_terms(input, target)
    full()
    term()['loss'].backward()
    assert max(float(gradient.abs().max()) for gradient in gradients(model).values()) < 1e-5
    assert full()['output'].requires_grad


def random_states():
    return [torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()]


def test_subnetwork_terms_leave_buffers_mode_and_generators_alone():
    model = make_droppy_model()
    task = make_task(model, gradaug=make_gradaug())
    (_, full), *subnets = task.loss_terms(*make_batches(1, dtype=torch.float32)[0])
    start = copy.deepcopy(model.state_dict())
    full()['loss'].backward()
    after_full = copy.deepcopy(model.state_dict())
    assert after_full['bn1.num_batches_tracked'] == start['bn1.num_batches_tracked'] + 1
    before, modes = random_states(), [part.training for part in model.modules()]
    for _, term in subnets:
        term()['loss'].backward()
    assert_equal(random_states(), before)
    assert_equal(model.state_dict(), after_full)
    assert [part.training for part in model.modules()] == modes


def test_random_stream_of_the_full_network_is_the_same_with_and_without_gradaug():
    outputs = []
    for gradaug in (None, make_gradaug()):
        torch.manual_seed(11)
        task = make_task(make_droppy_model(), gradaug=gradaug)
        outputs.append([])
        for update, (input, target) in enumerate(make_batches(3, size=8, dtype=torch.float32)):
            task.begin_update(update)
            results = [term() for _, term in task.loss_terms(input, target)]
            outputs[-1].append(results[0]['output'])
            assert len(results) == (1 if gradaug is None else 4)
    assert_equal(outputs[1], outputs[0])


def test_subnetworks_of_ranks_and_micro_batches_share_widths_but_no_dropout():
    model = make_droppy_model()
    tasks = [make_task(model, gradaug=make_gradaug(transforms=()), rank=rank) for rank in (0, 0, 1)]
    tasks[1].loss_terms(*make_batches(1, dtype=torch.float32)[0])  # so that the next is its second micro-batch
    results = []
    for task in tasks:
        input, target = make_batches(1, size=8, dtype=torch.float32)[0]
        results.append([term() for _, term in task.loss_terms(input, target)][1:])
    widths = [[(result['width'], result['size']) for result in subnets] for subnets in results]
    assert widths[0] == widths[1] == widths[2]
    outputs = [subnets[-1]['output'] for subnets in results]
    assert (outputs[0] - outputs[1]).abs().max() > 1e-4
    assert (outputs[0] - outputs[2]).abs().max() > 1e-4


def test_micro_batches_of_an_update_share_their_draws_and_updates_do_not():
    model, seen = make_model(dtype=torch.float32), []
    gradaug = make_gradaug()
    task = make_task(model, gradaug=gradaug)
    draw = gradaug.draw
    gradaug.draw = lambda *args: seen.append(draw(*args)) or seen[-1]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    engine = make_engine(task, optimizer, '--grad-accum-steps', 2)
    engine.train_one_epoch(0, make_batches(5, dtype=torch.float32))
    engine.train_one_epoch(1, make_batches(2, dtype=torch.float32))
    assert seen == [draw(update, 32) for update in (0, 0, 1, 1, 2, 1, 1)]


def test_subnetworks_run_every_so_many_updates_and_from_an_epoch_on():
    task = make_task(make_model(dtype=torch.float32), gradaug=make_gradaug(every=3))
    args = train_args('--gradaug', 3, '--gradaug-start-epoch', 2, '--epochs', 4, '--warmup-epochs', 0)
    batch, lengths = make_batches(1, dtype=torch.float32)[0], []
    for update in range(10):  # three an epoch
        task.start_phase(phase_at(update // 3, args), task.criterion)
        task.begin_update(update)
        lengths.append(len(task.loss_terms(*batch)))
    assert lengths == [1, 1, 1, 1, 1, 1, 4, 1, 1, 4]


@pytest.mark.parametrize('criterion', [nn.CrossEntropyLoss(), BinaryCrossEntropy()])
def test_hard_targets_are_compared_under_autocast_as_the_full_networks_are(criterion):
    """Autocast computes these losses of bfloat16 logits in float32."""
    autocast = partial(torch.autocast, 'cpu', torch.bfloat16)
    gradaug = make_gradaug(targets='hard', transforms=(), weight=0.5)
    task = make_task(make_model(dtype=torch.float32), criterion, gradaug=gradaug, autocast=autocast)
    input, target = make_batches(1, size=8, dtype=torch.float32)[0]
    (_, full), *subnets = task.loss_terms(input, target)
    for weight, term in ((1.0, full), *((0.5, term) for _, term in subnets)):
        result = term()
        assert result['output'].dtype == torch.bfloat16
        assert result['loss'].dtype == torch.float32
        with autocast():
            assert torch.equal(result['loss'], weight * criterion(result['output'], target))


def test_forward_returns_timms_dict_and_the_same_gradients():
    model, gradaug = make_model(), make_gradaug()
    task = make_task(model, gradaug=gradaug)
    input, target = make_batches(1)[0]
    result = task(input, target)
    assert list(result) == ['loss', 'output', 'sub1', 'sub2', 'sub3']
    result['loss'].backward()
    together = gradients(model)
    separate = []
    for _, term in make_task(model, gradaug=make_gradaug()).loss_terms(input, target):
        model.zero_grad()
        part = term()
        part['loss'].backward()
        separate.append((part, gradients(model)))
    parts = [part['loss'].item() for part, _ in separate]
    assert result['loss'].item() == pytest.approx(sum(parts))
    assert [result[f'sub{index}'].item() for index in (1, 2, 3)] == pytest.approx(parts[1:])
    assert torch.equal(result['output'], separate[0][0]['output'])
    assert_close(together, sum_of(*(gradient for _, gradient in separate)), tolerance=1e-6)


def test_subnetworks_of_ranks_and_micro_batches_mask_different_patches():
    zeros, batch = [], make_batches(1)[0]
    for rank, earlier in ((0, 0), (0, 1), (1, 0)):
        task = make_task(make_model(), gradaug=make_gradaug(transforms=('mask',), mask_patch=8), rank=rank)
        for _ in range(earlier):
            task.loss_terms(*batch)  # so that the next is its second micro-batch
        seen = []
        task.active[0].subnet.module.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        for _, term in task.loss_terms(*batch):
            term()
        zeros.append(torch.stack(seen) == 0)
    assert not torch.equal(zeros[0], zeros[1])
    assert not torch.equal(zeros[0], zeros[2])
