"""Checkpoints of classifiers, ours and timm's, in feature extractors, detectors and segmentation models."""

import re
from argparse import Namespace

import pytest
import timm
import torch

from regaug.detection.model import create_body
from regaug.errors import OptionError
from tests.helpers.commands import ROOT
from tests.helpers.detection import detection_args
from tests.helpers.training import assert_equal

NETWORKS = ['test_resnet', 'test_efficientnet', 'test_convnext', 'test_vit']


@pytest.fixture(params=['ours', "timm's"])
def save(request, tmp_path):
    """Write a network's weights as training of either writes them; returns the file."""

    def save(model):
        path = tmp_path / 'model_best.pth.tar'
        wrapped = {
            'epoch': 1,
            'arch': 'x',
            'state_dict': model.state_dict(),
            'args': Namespace(model='x'),
            'version': 2,
        }
        torch.save(wrapped if request.param == 'ours' else model.state_dict(), path)
        return path

    return save


def features_of(name, path, **kwargs):
    """README's call."""
    overlay = dict(file=str(path))
    return timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def weights_in(body, model):
    """How many tensors of a body are the model's, by name; bodies write some dots as underscores."""
    expected = {name.replace('.', '_'): value for name, value in model.state_dict().items()}
    found = {name.removeprefix('model.').replace('.', '_'): value for name, value in body.state_dict().items()}
    assert_equal(found, {name: expected[name] for name in found})
    return len(found)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_classifiers_checkpoint_fits_features_only(name, save):
    model = timm.create_model(name, num_classes=7)
    body = features_of(name, save(model))
    assert weights_in(body, model) > 0.8 * len(model.state_dict()) - 6


@pytest.mark.parametrize('name', NETWORKS)
def test_the_obvious_call_fails(name, tmp_path):
    path = tmp_path / 'model.pth'
    torch.save(timm.create_model(name, num_classes=7).state_dict(), path)
    with pytest.raises(RuntimeError, match=r'Unexpected key|Missing key'):
        timm.create_model(name, features_only=True, checkpoint_path=str(path))


def run_block(word, file):
    """Names that README's block of Python with a word in it defines, for a smaller network and this file."""
    [block] = [
        code for code in re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.S) if word in code
    ]
    assert 'resnet50' in block and 'output/train/gradaug/model_best.pth.tar' in block
    names = {}
    exec(block.replace('resnet50', 'resnet18').replace('output/train/gradaug/model_best.pth.tar', str(file)), names)
    return names


def test_readmes_lines_put_a_classifiers_checkpoint_into_torchvisions_detectors(save):
    model = timm.create_model('resnet18', num_classes=7)
    names = run_block('MaskRCNN', save(model))
    detector = names['detector'].eval()
    assert weights_in(detector.backbone.body, model) == len(model.state_dict()) - 2
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(detector.backbone.body(image).values(), names['body'](image), strict=True):
            assert torch.equal(found, expected)
        assert torch.equal(names['body'](image)[-1], model.eval().forward_features(image))
    assert detector.backbone.fpn.inner_blocks[3][0].in_channels == 512


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_readmes_lines_put_a_classifiers_checkpoint_into_segmentation_models_pytorch(save):
    pytest.importorskip('segmentation_models_pytorch')
    model = timm.create_model('resnet18', num_classes=7)
    network = run_block('segmentation_models_pytorch', save(model))['network']
    assert weights_in(network.encoder.model, model) == len(model.state_dict()) - 2
    assert network.eval()(torch.rand(1, 3, 64, 64)).shape == (1, 1, 64, 64)


@pytest.mark.parametrize('name', NETWORKS[:3])
def test_checkpoint_option_gives_the_detector_the_classifiers_weights(name, save, coco):
    model = timm.create_model(name, num_classes=7)
    body = create_body(detection_args(coco, '--backbone', name, '--checkpoint', save(model)))
    assert weights_in(body, model) > 20
    assert 'state_dict' not in body.pretrained_cfg


def test_moving_average_is_taken_where_there_is_one(coco, tmp_path):
    model, average = timm.create_model('test_resnet'), timm.create_model('test_resnet')
    torch.save({'state_dict': model.state_dict(), 'state_dict_ema': average.state_dict()}, tmp_path / 'last.pth.tar')
    weights_in(create_body(detection_args(coco, '--checkpoint', tmp_path / 'last.pth.tar')), average)


def test_checkpoint_of_another_network_or_none_is_refused(coco, tmp_path):
    path = tmp_path / 'model.pth'
    torch.save(timm.create_model('test_byobnet').state_dict(), path)
    with pytest.raises(OptionError, match=r'^--checkpoint .*model\.pth: does not fit'):
        create_body(detection_args(coco, '--checkpoint', path))
    path.write_bytes(b'PK')
    with pytest.raises(OptionError, match=r'^--checkpoint .*model\.pth: truncated'):
        create_body(detection_args(coco, '--checkpoint', path))
