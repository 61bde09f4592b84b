"""GradAug's relatives: rules of widths, sizes as shares, shares of the batch, masked inputs, averaged terms."""

import copy
import random

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from regaug.errors import OptionError
from regaug.methods.gradaug import create
from regaug.methods.subnetworks import draw_widths, mask, rows_of, sizes_for
from tests.helpers.training import (
    CLASSES,
    assert_close,
    gradients,
    make_batches,
    make_gradaug,
    make_model,
    make_task,
    train_args,
)


def test_rules_of_widths():
    draw = lambda rule, count: draw_widths(random.Random(3), count, 0.6, rule=rule)  # noqa: E731
    assert draw('smallest', 1) == [0.6]
    assert draw('smallest', 3) == [0.6] * 3
    uniform = [width for seed in range(500) for width in draw_widths(random.Random(seed), 3, 0.6, rule='uniform')]
    assert 0.6 not in uniform
    assert 0.6 <= min(uniform) < 0.602 and 0.998 < max(uniform) <= 1
    assert draw('sandwich', 3)[-1] == 0.6


@pytest.mark.parametrize(
    ('height', 'sizes', 'expected'),
    [
        (224, [1, 0.857, 0.714, 0.571], [224, 192, 160, 128]),
        (32, [1, 0.875, 0.75], [32, 28, 24]),
        (32, [28, 24], [28, 24]),
        (64, [0.5], [32]),
        (224, [1.0, 0.99], [224]),
    ],
)
def test_sizes_are_pixels_or_shares_of_the_height(height, sizes, expected):
    assert sizes_for(height, sizes) == expected


def test_sizes_above_the_training_size_are_refused():
    args = train_args('--num-classes', CLASSES, '--gradaug', 2, '--gradaug-sizes', 28, 36)
    with pytest.raises(OptionError, match=r'^--gradaug-sizes 36: above the training size, 32'):
        create(args, make_model(dtype=torch.float32), {'input_size': (3, 32, 32)})


def test_shares_of_the_batch_are_neighbours_that_cover_it():
    assert [rows_of(index, 48, 0.3333) for index in range(4)] == [
        slice(0, 16),
        slice(16, 32),
        slice(32, 48),
        slice(0, 16),
    ]
    assert [rows_of(index, 50, 1 / 3) for index in range(3)] == [slice(0, 16), slice(16, 32), slice(32, 48)]
    assert rows_of(2, 64, 1.0) == slice(0, 64)
    assert rows_of(5, 3, 0.1) == slice(2, 3)


def subnetwork_gradients(model, batch_share, count, batch, targets):
    """Gradient of the sub-networks' terms alone, all of width 0.5."""
    common = dict(rule='smallest', transforms=(), targets=targets)
    gradaug = make_gradaug(num_subnetworks=count, batch_share=batch_share, **common)
    task = make_task(copy.deepcopy(model), gradaug=gradaug)
    (_, full), *subnets = task.loss_terms(*batch)
    full()
    for _, term in subnets:
        term()['loss'].backward()
    return gradients(task.full_network)


@pytest.mark.parametrize('targets', ['soft', 'hard'])
@pytest.mark.few(1)
def test_all_shares_of_a_batch_together_give_the_gradient_of_the_whole_batch(targets):
    model, [batch] = make_model('test_convnext'), make_batches(1, size=6)  # without batch-norm samples are apart
    whole = subnetwork_gradients(model, 1.0, 1, batch, targets)
    parts = subnetwork_gradients(model, 1 / 3, 3, batch, targets)
    assert_close({name: value / 3 for name, value in parts.items()}, whole, tolerance=1e-6)  # float32 soft labels


def test_exactly_the_drawn_patches_are_masked():
    images = torch.rand(5, 3, 20, 28) + 1
    masked = mask(images, 0.5, 8, seed=7)
    zero = (masked == 0).all(dim=1)
    assert torch.equal(masked, images * ~zero[:, None])
    for sample in zero:
        patches = [sample[top : top + 8, left : left + 8] for top in (0, 8, 16) for left in (0, 8, 16, 24)]
        assert all(patch.all() or not patch.any() for patch in patches)
        assert sum(bool(patch.all()) for patch in patches) == 6
    assert not torch.equal(zero[0], zero[1])
    assert torch.equal(mask(images, 0.5, 8, seed=7), masked)
    assert not torch.equal(mask(images, 0.5, 8, seed=8), masked)


@pytest.mark.parametrize(
    ('name', 'drops'), [('test_vit', True), ('eva02_tiny_patch14_224', False), ('samvit_base_patch16_224', False)]
)
def test_only_transformers_that_know_how_drop_tokens_the_others_see_masked_images(name, drops):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=CLASSES)
    assert hasattr(model, 'patch_drop')
    assert make_gradaug(transforms=('mask',)).drops_tokens(model) is drops
    assert not make_gradaug(transforms=('flip',)).drops_tokens(model)


def test_an_eva_transformer_trains_on_masked_images():
    kwargs = dict(img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2)
    model = timm.create_model('eva02_tiny_patch14_224', num_classes=CLASSES, **kwargs).double()
    options = dict(num_subnetworks=1, min_width=1.0, transforms=('mask',), mask_patch=8)
    task = make_task(model, gradaug=make_gradaug(**options), side=32)
    [(input, target)] = make_batches(1)
    _, (_, sub) = task.loss_terms(input, target)
    assert sub is not None and all(term()['loss'].isfinite() for _, term in task.loss_terms(input, target))


def test_masksub_is_the_mean_of_two_losses_the_second_on_a_masked_image_towards_the_full_output():
    model = make_model()
    reference = copy.deepcopy(model).train()
    options = dict(num_subnetworks=1, min_width=1.0, transforms=('mask',), mask_patch=8, average=True)
    task = make_task(model, gradaug=make_gradaug(**options), side=32)
    [(input, target)] = make_batches(1)
    seen = []
    task.active[0].subnet.module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    result = task(input, target)
    [masked] = seen
    zero = (masked == 0).all(dim=1)
    assert zero.flatten(1).sum(dim=1).tolist() == [512] * len(input)
    assert torch.equal(masked, input * ~zero[:, None])
    output = reference(input)
    taught = output.detach().softmax(dim=-1)
    sub = nn.functional.kl_div(reference(masked).log_softmax(dim=-1), taught, reduction='batchmean')
    loss = (nn.functional.cross_entropy(output, target) + sub) / 2
    assert result['loss'].item() == pytest.approx(loss.item(), rel=1e-5)


def test_the_train_loss_is_the_full_networks_criterion_though_terms_are_averaged():
    task = make_task(make_model(), gradaug=make_gradaug(average=True))
    [(input, target)] = make_batches(1)
    (_, full), *_ = task.loss_terms(input, target)
    result = full()
    assert result['weight'] == 1 / 4
    assert result['loss'].item() == nn.functional.cross_entropy(result['output'], target).item()


def test_transformers_drop_tokens_in_place_of_patches():
    args = train_args(
        *('--model', 'vit_tiny_patch16_224', '--num-classes', CLASSES, '--gradaug', 1, '--gradaug-min-width', 1),
        *('--gradaug-transforms', 'mask', '--gradaug-mask-ratio', 0.75),
    )
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES)
    gradaug = create(args, model, {'input_size': (3, 32, 32)})
    task = make_task(model)
    task.use([gradaug])
    tokens = []
    for network in (model, gradaug.subnet.module):
        network.blocks[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    task.train()(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert tokens == [17, 5]  # the class token and 16 patches; a quarter of them
    assert type(model.patch_drop) is nn.Identity


def test_where_tokens_are_dropped_images_are_whole_and_all_prefix_tokens_stay():
    args = train_args(
        *('--model', 'vit_tiny_patch16_224', '--num-classes', CLASSES, '--gradaug', 1, '--gradaug-min-width', 1),
        *('--gradaug-transforms', 'mask', '--gradaug-mask-ratio', 0.75, '--gradaug-mask-patch', 8),
    )
    kwargs = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=CLASSES, reg_tokens=4)
    model = VisionTransformer(**kwargs)
    gradaug = create(args, model, {'input_size': (3, 32, 32)})
    task, images, tokens = make_task(model), [], []
    task.use([gradaug])
    subnet = gradaug.subnet.module
    subnet.register_forward_pre_hook(lambda module, args: images.append(args[0]))
    subnet.blocks[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    input = torch.randn(2, 3, 32, 32)
    task.train()(input, torch.tensor([0, 1]))
    assert torch.equal(images[0], input)
    assert tokens == [1 + 4 + 4]  # class token, registers and a quarter of 16 patches
