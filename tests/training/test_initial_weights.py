"""The weights that training starts from: `--initial-checkpoint`, nested and for other classes; `--pretrained-path`."""

import logging

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from regaug.errors import OptionError
from regaug.training.model import build_model
from regaug.training.weights import classifier_names
from tests.helpers.training import CLASSES, follow_log, read_checkpoint, train_args

# timm's readers leave it to the garbage collector to close files.
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')
BACKBONE = 'layer1.0.conv1.weight'


def make_weights(name='test_resnet', num_classes=CLASSES, seed=9):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=num_classes).state_dict()


def build(*options, model='test_resnet', seed=1):
    torch.manual_seed(seed)
    return build_model(train_args('--model', model, *options))


def save(content, path):
    if path.suffix == '.safetensors':
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def assert_starts_from(model, weights, *, anew=()):
    """A model has all of the weights, except for those that start as they do without a file."""
    fresh = build('--num-classes', model.num_classes, model=model.pretrained_cfg['architecture']).state_dict()
    assert set(anew) <= set(fresh)
    for name, value in model.state_dict().items():
        assert torch.equal(value, fresh[name] if name in anew else weights[name]), name


def prefixed(weights, prefix):
    return {prefix + name: value for name, value in weights.items()}


# --- --initial-checkpoint -----------------------------------------------------------------------------------------


NESTED = {
    'plain': lambda weights: weights,
    'state_dict': lambda weights: {'epoch': 3, 'state_dict': weights},
    'average': lambda weights: {'state_dict': prefixed(weights, 'x.'), 'state_dict_ema': weights},
    'twice': lambda weights: {'state_dict': {'state_dict': weights}},
    'another name': lambda weights: {'optimizer': {'state': {0: {'sum': torch.ones(3)}}}, 'net': {'weights': weights}},
    'module': lambda weights: prefixed(weights, 'module.'),
    'model': lambda weights: {'state_dict': prefixed(weights, 'model.')},
    'compiled': lambda weights: prefixed(weights, 'module._orig_mod.'),
    'lightning': lambda weights: {'state_dict': prefixed(weights, 'model.backbone.'), 'loops': {}},
    'encoder': lambda weights: {'model': prefixed(weights, 'module.encoder.')},
}


@pytest.mark.parametrize('kind', NESTED)
def test_weights_are_found_nested_and_under_prefixes(tmp_path, kind):
    weights = make_weights()
    path = save(NESTED[kind](weights), tmp_path / 'weights.pth')
    assert_starts_from(build('--num-classes', CLASSES, '--initial-checkpoint', path), weights)


@pytest.mark.parametrize('kind', NESTED)
@pytest.mark.parametrize('model', ['test_resnet', 'test_vit', 'test_convnext', 'resnet18_cifar'])
@pytest.mark.few(12)
def test_a_classifier_for_other_classes_starts_anew_and_one_line_says_so(tmp_path, caplog, kind, model):
    weights = make_weights(model, num_classes=7)
    path = save(NESTED[kind](weights), tmp_path / 'weights.pth')
    follow_log(caplog)
    built = build('--num-classes', CLASSES, '--initial-checkpoint', path, model=model)
    anew = classifier_names(built)
    assert [name.rpartition('.')[2] for name in anew] == ['weight', 'bias']
    assert anew[0].startswith(timm.get_pretrained_cfg(model).classifier)
    lines = [record.getMessage() for record in caplog.records if 'anew' in record.getMessage()]
    assert len(lines) == 1
    assert lines[0].startswith(f'--initial-checkpoint {path}: ')
    assert f'the classifier ({", ".join(anew)}) starts anew' in lines[0]
    assert_starts_from(built, weights, anew=anew)


def test_a_backbone_without_a_classifier_is_completed(tmp_path):
    backbone = {name: value for name, value in make_weights().items() if not name.startswith('fc.')}
    path = save({**prefixed(backbone, 'backbone.'), 'projector.0.weight': torch.ones(2)}, tmp_path / 'weights.pth')
    model = build('--num-classes', CLASSES, '--initial-checkpoint', path)
    assert_starts_from(model, backbone, anew=('fc.weight', 'fc.bias'))


def test_both_classifiers_of_a_distilled_network_start_anew(tmp_path):
    name = 'deit_tiny_distilled_patch16_224'
    weights = make_weights(name, num_classes=7)
    path = save(weights, tmp_path / 'weights.safetensors')
    model = build('--num-classes', CLASSES, '--initial-checkpoint', path, '--img-size', 224, model=name)
    assert classifier_names(model) == ['head.weight', 'head.bias', 'head_dist.weight', 'head_dist.bias']
    assert_starts_from(model, weights, anew=classifier_names(model))


def test_a_classifier_that_fits_is_loaded_without_a_word_about_it(tmp_path, caplog):
    weights = make_weights()
    follow_log(caplog)
    path = save(weights, tmp_path / 'weights.pth')
    assert_starts_from(build('--num-classes', CLASSES, '--initial-checkpoint', path), weights)
    assert 'anew' not in caplog.text


MISFITS = {
    'a layer is missing': (lambda weights: weights.pop(BACKBONE), f'1 missing ({BACKBONE})'),
    'a layer is too much': (
        lambda weights: weights.update({'layer9.weight': torch.ones(1)}),
        '1 unexpected (layer9.weight)',
    ),
    'a layer has another shape': (
        lambda weights: weights.update({BACKBONE: torch.ones(1)}),
        f'1 of another shape ({BACKBONE} (1,)',
    ),
}


@pytest.mark.parametrize('misfit', MISFITS)
@pytest.mark.parametrize('prefix', ['', 'module.backbone.'])
@pytest.mark.parametrize('num_classes', [CLASSES, 7])
def test_whatever_else_does_not_fit_is_an_error_that_names_it(tmp_path, misfit, prefix, num_classes):
    weights = make_weights(num_classes=num_classes)
    change, text = MISFITS[misfit]
    change(weights)
    path = save(prefixed(weights, prefix), tmp_path / 'weights.pth')
    with pytest.raises(OptionError) as caught:
        build('--num-classes', CLASSES, '--initial-checkpoint', path)
    message = str(caught.value)
    assert message.startswith(f'--initial-checkpoint {path}: does not fit ResNet: ')
    assert text in message
    assert 'fc.' not in message
    assert '\n' not in message


@pytest.mark.parametrize('content', [{}, {'epoch': 3}, {1: torch.ones(2)}, {'state_dict': {'a': {'b': torch.ones(2)}}}])
def test_a_file_without_weights_of_the_model_is_an_error(tmp_path, content):
    path = save(content, tmp_path / 'weights.pth')
    with pytest.raises(OptionError, match=r'--initial-checkpoint .* does not fit ResNet: .* missing'):
        build('--num-classes', CLASSES, '--initial-checkpoint', path)


def test_training_starts_from_the_backbone_of_a_file_for_other_classes(train, tmp_path):
    weights = make_weights(num_classes=7)
    path = save(prefixed(weights, 'model.'), tmp_path / 'weights.pth')
    trained = read_checkpoint(train('--initial-checkpoint', path, '--epochs', 1, '--lr', 1e-9) / 'last.pth.tar')
    torch.testing.assert_close(trained['state_dict'][BACKBONE], weights[BACKBONE], atol=1e-6, rtol=0)
    assert trained['state_dict']['fc.weight'].shape[0] == CLASSES


# --- --pretrained-path --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('pretrained', [(), ('--pretrained',)])
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_pretrained_path_is_taken_with_its_classifier(tmp_path, caplog, pretrained, suffix):
    weights = make_weights()
    path = save(weights, tmp_path / f'weights{suffix}')
    follow_log(caplog)
    model = build('--pretrained-path', path, '--num-classes', CLASSES, *pretrained)
    assert_starts_from(model, weights)
    assert f'--pretrained-path {path}: the classifier of {CLASSES} classes is kept.' in caplog.messages


def test_the_number_of_classes_is_that_of_the_file_where_nobody_says(tmp_path):
    weights = make_weights(num_classes=7)
    args = train_args('--model', 'test_resnet', '--pretrained-path', save(weights, tmp_path / 'weights.pth'))
    model = build_model(args)
    assert args.num_classes == model.num_classes == 7
    assert torch.equal(model.fc.weight, weights['fc.weight'])


def test_a_classifier_for_other_classes_is_replaced(tmp_path, caplog):
    weights = make_weights(num_classes=7)
    path = save(weights, tmp_path / 'weights.pth')
    follow_log(caplog)
    model = build('--pretrained-path', path, '--num-classes', CLASSES)
    assert_starts_from(model, weights, anew=('fc.weight', 'fc.bias'))
    assert f'--pretrained-path {path}: the classifier of {CLASSES} classes starts anew.' in caplog.messages


def test_a_file_without_a_classifier_gives_the_backbone(tmp_path):
    weights = {name: value for name, value in make_weights().items() if not name.startswith('fc.')}
    model = build('--pretrained-path', save(weights, tmp_path / 'weights.pth'), '--num-classes', CLASSES)
    assert_starts_from(model, weights, anew=('fc.weight', 'fc.bias'))


def test_weights_of_another_number_of_channels_are_adapted_as_published_ones_are(tmp_path):
    weights = make_weights()
    path = save(weights, tmp_path / 'weights.pth')
    model = build('--pretrained-path', path, '--num-classes', CLASSES, '--in-chans', 1)
    first = next(name for name in weights if name.endswith('conv1.0.weight') or name == 'conv1.weight')
    torch.testing.assert_close(model.state_dict()[first], weights[first].sum(dim=1, keepdim=True))
    assert torch.equal(model.fc.weight, weights['fc.weight'])


def test_the_first_class_is_no_background_in_a_file_of_ones_own(tmp_path, monkeypatch):
    cfg = timm.get_pretrained_cfg('test_resnet')
    monkeypatch.setattr(cfg, 'label_offset', 1)
    weights = make_weights()
    monkeypatch.setattr('timm.models._builder.get_pretrained_cfg', lambda name: cfg)
    model = build('--pretrained-path', save(weights, tmp_path / 'weights.pth'), '--num-classes', CLASSES)
    assert_starts_from(model, weights)


def test_weights_of_numpy_are_read_by_the_model_itself(tmp_path, monkeypatch):
    seen = []
    path = tmp_path / 'weights.npz'
    np.savez(path, a=np.ones(3))
    model_class = type(timm.create_model('test_vit'))
    monkeypatch.setattr(model_class, 'load_pretrained', lambda model, path: seen.append(path))
    build('--pretrained-path', path, '--num-classes', CLASSES, model='test_vit')
    assert seen == [str(path)]
    with pytest.raises(OptionError, match=rf'--pretrained-path {path}: .*load_pretrained'):
        build('--pretrained-path', path, '--num-classes', CLASSES)


def test_the_model_does_not_carry_the_weights_along_a_second_time(tmp_path):
    path = save(make_weights(), tmp_path / 'weights.pth')
    model = build('--pretrained-path', path, '--num-classes', CLASSES)
    assert 'state_dict' not in model.pretrained_cfg
    assert model.pretrained_cfg['file'] == str(path)


def test_a_pretrained_path_that_fits_in_nothing_else_is_an_error(tmp_path):
    weights = make_weights()
    weights[BACKBONE] = torch.ones(1)
    path = save(weights, tmp_path / 'weights.pth')
    with pytest.raises(OptionError, match=rf'--pretrained-path {path}: .*{BACKBONE}') as caught:
        build('--pretrained-path', path, '--num-classes', CLASSES)
    assert '\n' not in str(caught.value)


# --- the log ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('option', ['--initial-checkpoint', '--pretrained-path'])
@pytest.mark.parametrize('nested', [False, True])
def test_the_log_names_the_file_once_and_never_something_without_a_name(tmp_path, caplog, option, nested):
    weights = make_weights()
    path = save({'state_dict': weights} if nested else weights, tmp_path / 'weights.pth')
    caplog.set_level(logging.INFO)
    build(option, path, '--num-classes', CLASSES)
    assert sum(str(path) in message for message in caplog.messages) == 1
    assert not any('Loaded' in message for message in caplog.messages)
