"""Refusals that depend on the machine: devices, packages that are not installed, processes, streams."""

import logging
import sys

import pytest
import torch

from regaug.errors import OptionError
from regaug.options import parse_train, parse_validate, timm_data_checks
from tests.helpers.options import BASE


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
@pytest.mark.parametrize('parse', [parse_train, parse_validate])
def test_cuda_where_there_is_none_is_refused_and_cpu_is_suggested(parse):
    with pytest.raises(OptionError, match=r'--device cuda: CUDA is not available.*--device cpu'):
        parse(['--dataset', 'regaug/digits', '--model', 'resnet10t'])


@pytest.mark.parametrize('prefix', ['hfids', 'tfds', 'WDS'])
@pytest.mark.parametrize(
    ('line', 'flag'),
    [
        ('--labels-per-class 4', '--labels-per-class 4'),
        ('--exact-resume', '--exact-resume'),
        ('--train-img-sizes 8 16', '--train-img-sizes 8 16'),
        ('--aug-splits 2', '--aug-splits 2'),
        ('--naflex-loader', '--naflex-loader'),
    ],
)
def test_streams_are_refused_where_an_index_is_needed(monkeypatch, prefix, line, flag):
    monkeypatch.setattr(timm_data_checks, 'require_package', lambda *args: None)
    argv = [*BASE, '--dataset', f'{prefix}/x', '--data-dir', 's3://bucket/x', *line.split()]
    with pytest.raises(OptionError) as caught:
        parse_train(argv)
    assert flag in str(caught.value)
    assert f'--dataset {prefix}/x' in str(caught.value)


def test_a_data_set_whose_package_is_missing_is_refused(monkeypatch):
    monkeypatch.setitem(timm_data_checks.PACKAGES, 'wds', 'no_such_package')
    with pytest.raises(OptionError, match='--dataset wds/x: needs the Python package no_such_package'):
        parse_train([*BASE, '--dataset', 'wds/x', '--data-dir', 'x'])


def test_a_stream_of_shards_needs_to_be_told_where_they_are(monkeypatch):
    monkeypatch.setattr(timm_data_checks, 'require_package', lambda *args: None)
    with pytest.raises(OptionError, match='--data-dir: --dataset wds/x needs a folder'):
        parse_train([*BASE, '--dataset', 'wds/x'])


def test_wandb_that_is_not_installed_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(OptionError, match='--log-wandb: needs the Python package wandb'):
        parse_train([*BASE, '--log-wandb'])


@pytest.mark.parametrize(
    ('line', 'package'), [('--metrics-avg macro', 'scikit-learn'), ('--tf-preprocessing', 'tensorflow')]
)
def test_evaluation_that_needs_a_missing_package_is_refused(monkeypatch, line, package):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(OptionError, match=f'{line}: needs the Python package {package}'):
        parse_validate([*BASE, *line.split()])


def test_a_cuda_device_beyond_the_last_one_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert parse_train([*BASE, '--device', 'cuda:1']).device == 'cuda:1'
    with pytest.raises(OptionError, match='--device cuda:2: the last of the 2 devices is cuda:1'):
        parse_train([*BASE, '--device', 'cuda:2'])


def test_a_model_that_timm_has_dropped_is_refused(monkeypatch):
    monkeypatch.setattr('timm.models.get_deprecated_models', lambda: {'resnet10t': None})
    with pytest.raises(OptionError, match='--model resnet10t: timm no longer has this model'):
        parse_train(BASE)


def test_repeated_augmentation_of_a_stream_is_refused(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setattr(timm_data_checks, 'require_package', lambda *args: None)
    with pytest.raises(OptionError, match=r'--aug-repeats 3\.0: .*--dataset tfds/x'):
        parse_train([*BASE, '--dataset', 'tfds/x', '--aug-repeats', '3'])


def test_repeated_augmentation_is_accepted_under_torchrun(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert parse_train([*BASE, '--aug-repeats', '3']).aug_repeats == 3


def test_synchronised_batch_norm_of_cpu_processes_is_refused(monkeypatch):
    assert parse_train([*BASE, '--sync-bn']).sync_bn
    monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(OptionError, match='--sync-bn: does not work with --device cpu'):
        parse_train([*BASE, '--sync-bn'])


@pytest.mark.parametrize(('lr', 'warned'), [('0.01', True), ('0.2', False)])
def test_a_refinement_learning_rate_above_the_peak_is_warned_about(caplog, lr, warned):
    with caplog.at_level(logging.WARNING):
        parse_train([*BASE, '--refine-epochs', '2', '--refine-lr', '0.1', '--lr', lr])
    messages = [record.getMessage() for record in caplog.records if '--refine-lr 0.1' in record.getMessage()]
    assert [f'--lr {lr}' in message for message in messages] == ([True] if warned else [])
