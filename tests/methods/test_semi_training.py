"""GradAug-semi in whole runs: beside timm's options, off, resumed, and on two ranks."""

import numpy as np
import pytest

from regaug.errors import OptionError
from regaug.methods.semi import GradAugSemi
from tests.helpers.training import (
    assert_same_training,
    read_summary,
)

GRADAUG = ('--gradaug', 2, '--gradaug-min-width', 0.5, '--labels-per-class', 4, '--batch-size', 8)
SEMI = (*GRADAUG, '--unlabeled-split', 'train')
CASES = {'one micro-batch': 1, 'two micro-batches': 2}


@pytest.mark.parametrize(
    'options',
    [
        (),
        ('--uratio', 1.5, '--p-cutoff', 0.3, '--ulb-warmup-updates', 3, '--ulb-loss-ratio', 0.5),
        ('--ulb-teacher', 'ema', '--model-ema', '--model-ema-decay', 0.5),
        ('--amp', '--amp-dtype', 'bfloat16', '--channels-last', '--no-prefetcher', '--workers', 1),
        ('--grad-checkpointing', '--grad-accum-steps', 2, '--clip-grad', 1.0),
        ('--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3),
        ('--cutmix', 1.0, '--bce-loss', '--aa', 'trivial', '--refine-epochs', 1),
        ('--maxup', 2, '--maxup-aug', 'cutout', '--cutout-size', 8, '--maxup-warmup-epochs', 0),
        ('--model', 'test_efficientnet', '--gradaug-subnet', 'depth', '--gradaug-batch-share', 0.5),
        ('--gradaug-transforms', 'rotate', 'mask', '--gradaug-mask-patch', 8, '--gradaug-every', 2),
    ],
)
@pytest.mark.few(2)
def test_unlabelled_images_train_together_with_other_options(options, train):
    for row in read_summary(train(*SEMI, '--epochs', 1, *options)):
        for name in ('sub2_loss', 'ulb1_loss', 'ulb2_loss', 'ulb1_confidence', 'ulb1_kept', 'ulb1_accuracy'):
            assert np.isfinite(float(row[f'train_{name}'])), name
        assert 1 / 4 <= float(row['train_ulb1_confidence']) <= 1
        assert float(row['train_ulb1_kept']) == 1 or '--p-cutoff' in options


def test_dry_run_tries_unlabelled_images(train, caplog):
    caplog.set_level('INFO')
    train(*SEMI, '--dry-run')
    assert any('64 unlabelled images, 8 beside 8 in a batch' in record.message for record in caplog.records)
    assert any('Dry run' in record.message for record in caplog.records)


def test_a_model_that_the_teachers_pass_would_change_is_refused(train):
    model = ('--model', 'test_efficientnet', '--model-kwargs', 'norm_layer=evonormb0', '--epochs', 1)
    with pytest.raises(OptionError, match=r"--ulb-teacher full: .*buffer 'bn1\.running_var'"):
        train(*SEMI, *model)
    train(*SEMI, *model, '--model-ema', '--ulb-teacher', 'ema')


@pytest.mark.parametrize('off', [('--uratio', 0), ('--ulb-loss-ratio', 0)])
@pytest.mark.slow
def test_without_weight_or_images_it_is_gradaug_bit_for_bit(train, off):
    reference = train(*GRADAUG, experiment='gradaug')
    assert_same_training(train(*SEMI, *off, experiment='off'), reference)
    row = read_summary(train(*SEMI, experiment='on'))[-1]
    assert row['train_loss'] != read_summary(reference)[-1]['train_loss']


@pytest.mark.slow  # without workers: tests/training/test_methods.py
def test_with_workers_a_resumed_run_equals_the_uninterrupted_one(train):
    options = (*SEMI, '--epochs', 2, '--refine-epochs', 1, '--aa', 'rand-m5', '--exact-resume', '--workers', 2)
    whole = train(*options, experiment='whole')
    for epoch in (0, 1):
        start = str(whole / f'checkpoint-{epoch}.pth.tar')
        resumed = train(*options, '--resume', start, experiment=f'resumed{epoch}')
        assert_same_training(resumed, whole, from_epoch=epoch + 1)


def test_sub_networks_rest_in_plain_refinement_and_unlabelled_images_with_them(train):
    table = read_summary(train(*SEMI, '--epochs', 1, '--refine-epochs', 1, '--refine-plain', '--mixup', 0.2))
    assert float(table[0]['train_ulb1_loss']) > 0
    assert table[1].get('train_ulb1_loss') in (None, '')


def test_the_stream_ends_with_the_run(train, monkeypatch):
    close, closed = GradAugSemi.close, []
    monkeypatch.setattr(GradAugSemi, 'close', lambda semi: closed.append(semi.data) or close(semi))
    train(*SEMI, '--epochs', 1)
    assert len(closed) == 1
