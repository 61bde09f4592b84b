"""Torchvision's detectors on a backbone of timm, and their sub-networks against references."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection import MaskRCNN

from regaug.detection import model as detection_model
from regaug.detection.model import Backbone, DetectionTask, SubnetSwitch, create_body, losses_at
from regaug.errors import OptionError
from regaug.slimmable.structure import batch_norms
from regaug.training.updates import Updater
from tests.helpers.detection import MAPS, QUICK, detection_args, make_batch, make_detector
from tests.helpers.slimmable_oracle import make_generic
from tests.helpers.training import assert_equal

LOSSES = {'loss_classifier', 'loss_box_reg', 'loss_mask', 'loss_objectness', 'loss_rpn_box_reg'}


def make_task(folder, *options, dtype=torch.float64):
    """(task, detector) with GradAug as a run puts it in, rank 0 of one process."""
    _, detector, gradaug = make_detector(folder, *options, dtype=dtype)
    task = DetectionTask(detector, nn.Identity(), verbose=False)
    task.use([gradaug] if gradaug else [])
    return task.train(), detector


def seeded(function, *args):
    """Call with the random state from which anchors and proposals are sampled the same way."""
    torch.manual_seed(5)
    return function(*args)


@pytest.fixture(scope='module')
def task(coco):
    """A task with one sub-network."""
    return make_task(coco, '--gradaug', 1, '--gradaug-sizes', 64, 32)


# --- sub-networks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('backbone', ['test_resnet', pytest.param('test_convnext', marks=pytest.mark.slow)])
def test_width_one_and_native_size_give_the_losses_of_the_full_network_exactly(coco, backbone):
    task, detector = make_task(coco, '--backbone', backbone, '--gradaug', 1)
    for norm in batch_norms(detector):  # the full network's running statistics are not those of the batch
        norm.train()
    images, targets = make_batch(coco)
    subnet = task.methods[0].subnet
    subnet.set(1.0)
    full = seeded(detector, images, targets)
    assert full.keys() == LOSSES
    losses = seeded(SubnetSwitch(detector, subnet), images, targets, 64)
    assert {name: loss.item() for name, loss in losses.items()} == {name: loss.item() for name, loss in full.items()}
    assert seeded(losses_at, detector, subnet, 48, images, targets)['loss_mask'] != full['loss_mask']


def hand_sliced_losses(detector, keep, size, images, targets):
    """Losses with ResNet-18's first channels, written down layer by layer, under the detector's own pyramid's weights.

    Args:
        keep: kept channels of each of the four stages.

    Returns:
        (losses, leaves): the weights that were cut out, by name, with the indices of their place.
    """
    leaves, cuts = {}, {}

    def take(name, *ends):
        cuts[name] = tuple(slice(end) for end in ends)
        leaves[name] = dict(detector.named_parameters())[name].detach()[cuts[name]].requires_grad_()
        return leaves[name]

    def conv_norm(x, conv, norm, out, stride, padding):
        x = F.conv2d(x, take(f'{conv}.weight', out, x.shape[1]), stride=stride, padding=padding)
        return F.batch_norm(x, None, None, take(f'{norm}.weight', out), take(f'{norm}.bias', out), training=True)

    def backbone(x):
        body, maps = 'backbone.body.', []
        x = F.relu(conv_norm(x, f'{body}conv1', f'{body}bn1', keep[0], 2, 3))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage, out in enumerate(keep, start=1):
            for block in range(2):
                name, stride = f'{body}layer{stage}.{block}.', 2 if stage > 1 and block == 0 else 1
                y = F.relu(conv_norm(x, f'{name}conv1', f'{name}bn1', out, stride, 1))
                y = conv_norm(y, f'{name}conv2', f'{name}bn2', out, 1, 1)
                if stride == 2:
                    x = conv_norm(x, f'{name}downsample.0', f'{name}downsample.1', out, 2, 0)
                x = F.relu(x + y)
            maps.append(x)
        fpn, results, above = 'backbone.fpn.', {}, None
        for level in (3, 2, 1, 0):
            name = f'{fpn}inner_blocks.{level}.0'
            x = F.conv2d(maps[level], take(f'{name}.weight', MAPS, keep[level]), take(f'{name}.bias', MAPS))
            above = x if above is None else x + F.interpolate(above, size=x.shape[-2:], mode='nearest')
            name = f'{fpn}layer_blocks.{level}.0'
            results[str(level)] = F.conv2d(above, take(f'{name}.weight', MAPS), take(f'{name}.bias', MAPS), padding=1)
        results['pool'] = F.max_pool2d(results['3'], 1, 2)
        return {name: results[name] for name in ('0', '1', '2', '3', 'pool')}

    return losses_at(detector, backbone, size, images, targets), leaves, cuts


def test_gradients_of_a_subnetwork_equal_those_of_a_hand_sliced_one(coco):
    _, detector, gradaug = make_detector(coco, '--backbone', 'resnet18', '--gradaug', 1)
    make_generic(detector.backbone.body)
    gradaug.attach(DetectionTask(detector, nn.Identity(), verbose=False))
    images, targets = make_batch(coco)
    losses, leaves, cuts = seeded(hand_sliced_losses, detector, (56, 112, 232, 464), 48, images, targets)
    sum(losses.values()).backward()
    heads = {name: parameter.grad for name, parameter in detector.named_parameters() if name not in leaves}
    detector.zero_grad()
    gradaug.subnet.set(0.9)
    found = seeded(losses_at, detector, gradaug.subnet, 48, images, targets)
    sum(found.values()).backward()
    for name in LOSSES:
        torch.testing.assert_close(found[name], losses[name], rtol=1e-9, atol=0)
    assert len(leaves) == 62 + 16 - 2  # without classifier and pyramid's pool: all of the backbone
    assert all(name.startswith('backbone.') != (name in heads) for name, _ in detector.named_parameters())
    for name, parameter in detector.named_parameters():
        if name in leaves:
            expected = torch.zeros_like(parameter)
            expected[cuts[name]] = leaves[name].grad
        else:
            expected = heads[name]
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-7, atol=1e-10 * float(expected.abs().max()))


def test_terms_are_the_full_network_and_the_drawn_subnetworks_on_ground_truth(coco):
    options = ['--gradaug', 3, '--gradaug-min-width', 0.5, '--gradaug-sizes', 64, 48, 32]
    task, detector = make_task(coco, *options, '--gradaug-weight', 2.0, dtype=torch.float32)
    images, targets = make_batch(coco, dtype=torch.float32)
    seen, heights, stems = [], [], []
    detector.rpn.register_forward_pre_hook(lambda module, given: heights.append(given[0].image_sizes[0][0]))
    stem = task.methods[0].subnet.module.body.conv1
    stem[0].register_forward_hook(lambda module, given, output: stems.append(output.shape[1]))
    for num_updates in range(4):
        task.begin_update(num_updates)
        (_, full), *subnets = task.loss_terms(images, targets)
        assert [name for name, _ in subnets] == ['sub1', 'sub2', 'sub3']
        results = [term() for _, term in subnets] if num_updates < 1 else []
        seen += [(draw.width, draw.size) for draw in task.methods[0].draw(num_updates, 64)]
        for result, (width, size) in zip(results, seen):
            assert (result['width'], result['size']) == (width, size)
            assert result['loss'].isfinite() and result['loss'].requires_grad
    assert heights == [size for _, size in seen[:3]]
    full_stem = detector.backbone.body.conv1[0].out_channels
    assert stems[2] == max(8, full_stem // 2) and stems == sorted(stems, reverse=True)
    widths, sizes = zip(*seen)
    assert widths[2::3] == (0.5,) * 4 and min(widths) == 0.5 and max(widths) < 1
    assert set(sizes) == {64, 48, 32}
    result = full()
    assert result.keys() > LOSSES
    assert result['loss'].item() == pytest.approx(sum(result[name].item() for name in LOSSES))


def test_weight_scales_the_loss_of_a_subnetwork(coco, task):
    task, _ = task
    images, targets = make_batch(coco)
    losses = []
    for weight in (0.25, 1.0):
        task.methods[0].weight = weight
        task.begin_update(0)
        losses.append(dict(task.loss_terms(images, targets))['sub1']()['loss'].item())
    assert losses[0] == pytest.approx(losses[1] / 4)


def test_full_network_keeps_its_statistics_while_affine_parameters_train(coco):
    task, detector = make_task(coco, '--gradaug', 1, '--gradaug-sizes', 32, dtype=torch.float32)
    make_generic(detector.backbone.body)
    images, targets = make_batch(coco, dtype=torch.float32)
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.01)
    norms = batch_norms(detector)
    for norm in norms:  # statistics with which a full network on batch statistics would be another one
        norm.running_mean.uniform_(1, 2)
    before = [(norm.running_mean.clone(), norm.running_var.clone(), norm.weight.detach().clone()) for norm in norms]
    state = torch.get_rng_state()
    terms = dict(task.loss_terms(images, targets))
    task.methods[0].subnet.set(0.9)
    terms['sub1']()['loss'].backward()
    assert torch.equal(torch.get_rng_state(), state)  # the plain path draws what it would without sub-networks
    assert all(norm.weight.grad.abs().sum() > 0 for norm in norms)
    terms['full']()['loss'].backward()
    Updater(optimizer, task).step()
    assert len(norms) > 10
    for norm, (mean, var, weight) in zip(norms, before, strict=True):
        assert not norm.training
        assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, var)
        assert not torch.equal(norm.weight, weight)


def test_full_network_uses_running_statistics(coco, task):
    task, detector = task
    image = torch.randn(2, 3, 64, 64).double()
    task.train()
    one = detector.backbone(image)['0'][:1]
    torch.testing.assert_close(detector.backbone(image[:1])['0'], one)
    subnet = task.methods[0].subnet
    subnet.set(1.0)
    assert not torch.allclose(subnet(image[:1])['0'], subnet(image)['0'][:1])


def test_without_gradaug_there_is_the_full_network_alone(coco):
    task, _ = make_task(coco, '--detector', 'faster', dtype=torch.float32)
    images, targets = make_batch(coco, masks=False, dtype=torch.float32)
    [(_, term)] = task.loss_terms(images, targets)
    assert term().keys() - {'loss'} == LOSSES - {'loss_mask'}


def test_forward_passes_run_under_autocast(coco):
    task, detector = make_task(coco, '--gradaug', 1, '--detector', 'faster', dtype=torch.float32)
    images, targets = make_batch(coco, 2, masks=False, dtype=torch.float32)
    seen = []
    task.autocast = lambda: torch.autocast('cpu', torch.bfloat16)
    detector.rpn.register_forward_pre_hook(lambda module, given: seen.append(given[1]['0'].dtype))
    results = [term() for _, term in task.loss_terms(images, targets)]
    assert seen == [torch.bfloat16] * 2
    assert all(result['loss'].isfinite() for result in results)


# --- construction ------------------------------------------------------------------------------------------------


def test_state_dict_is_torchvisions(coco):
    args, detector, _ = make_detector(coco)
    own = MaskRCNN(Backbone(create_body(args)), 3, min_size=64, max_size=107, **QUICK)
    own.load_state_dict(detector.state_dict())
    own.double().eval()
    own.transform.image_mean = own.transform.image_std = (0.5, 0.5, 0.5)  # test_resnet's own
    images, _ = make_batch(coco, 1)
    with torch.no_grad():
        [expected], [found] = own(images), detector.eval()(images)
    assert len(found['boxes']) > 0
    assert_equal(found, expected)


def test_sizes_and_statistics_reach_the_transform(coco):
    _, detector, _ = make_detector(coco, '--size', 96, '--backbone', 'test_byobnet')
    assert (detector.transform.min_size, detector.transform.max_size) == ((96,), 160)
    assert detector.transform.image_mean == (0.485, 0.456, 0.406)
    assert detector.roi_heads.detections_per_img == 4


@pytest.mark.parametrize(
    'options, message',
    [
        (['--backbone', 'vit_tiny_patch16_224'], r'--backbone vit_tiny_patch16_224: .*feature maps of strides'),
        (['--backbone', 'test_vit'], '--backbone test_vit: '),
        (['--backbone', 'swin_tiny_patch4_window7_224'], '--size 64: the backbone cannot take'),
        (['--gradaug', 1, '--batch-size', 1, '--gradaug-sizes', 64, 20], '--gradaug-sizes 20: sub-networks cannot'),
        (['--detector-kwargs', 'box_score_thresh=x', 'rpn_anchor_generator=3'], '--detector-kwargs .*cannot be used'),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(coco, options, message):
    with pytest.raises(OptionError, match=message) as error:
        make_detector(coco, *options)
    assert '\n' not in str(error.value)


def test_smallest_size_is_taken_where_there_are_two_images_or_no_batch_statistics(coco):
    for backbone, batch_size in (('test_resnet', 2), ('test_convnext', 1)):
        backbone = Backbone(create_body(detection_args(coco, '--backbone', backbone)))
        detection_model.check_size(backbone, '--gradaug-sizes', 20, batch_size, training=True)


def test_backbone_without_anything_to_slim_is_refused(coco, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError('Backbone has no layer that can be slimmed')

    monkeypatch.setattr(detection_model, 'SlimmablePlan', fail)
    with pytest.raises(OptionError, match='--gradaug 1 with --backbone test_resnet: Backbone has no layer'):
        make_detector(coco, '--gradaug', 1)


def test_strides_decide_which_maps_are_taken(coco):
    body = create_body(detection_args(coco, '--backbone', 'test_resnet'))
    assert body.feature_info.reduction() == [4, 8, 16, 32]
    assert [block[0].in_channels for block in Backbone(body).fpn.inner_blocks] == [32, 48, 192, 96]
