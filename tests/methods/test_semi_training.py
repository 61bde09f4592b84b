"""GradAug-semi in whole runs: beside timm's options, off, resumed, and on two ranks."""

import numpy as np
import pytest
import torch

from tests.helpers.ranks import RANKS, run_on_ranks
from tests.helpers.semi import Stream, make_semi_task
from tests.helpers.training import (
    assert_close,
    assert_same_training,
    gradients_at_updates,
    make_batches,
    make_engine,
    make_model,
    read_summary,
    sum_of,
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


@pytest.mark.parametrize('off', [('--uratio', 0), ('--ulb-loss-ratio', 0)])
def test_without_weight_or_images_it_is_gradaug_bit_for_bit(train, off):
    reference = train(*GRADAUG, experiment='gradaug')
    assert_same_training(train(*SEMI, *off, experiment='off'), reference)
    row = read_summary(train(*SEMI, experiment='on'))[-1]
    assert row['train_loss'] != read_summary(reference)[-1]['train_loss']


@pytest.mark.parametrize('workers', [0, 2])
def test_resumed_run_equals_the_uninterrupted_one(train, workers):
    options = (*SEMI, '--epochs', 2, '--refine-epochs', 1, '--aa', 'rand-m5', '--exact-resume', '--workers', workers)
    whole = train(*options, experiment='whole')
    for epoch in (0, 1):
        start = str(whole / f'checkpoint-{epoch}.pth.tar')
        resumed = train(*options, '--resume', start, experiment=f'resumed{epoch}')
        assert_same_training(resumed, whole, from_epoch=epoch + 1)


def test_sub_networks_rest_in_plain_refinement_and_unlabelled_images_with_them(train):
    table = read_summary(train(*SEMI, '--epochs', 1, '--refine-epochs', 1, '--refine-plain', '--mixup', 0.2))
    assert float(table[0]['train_ulb1_loss']) > 0
    assert table[1].get('train_ulb1_loss') in (None, '')


def train_rank(case, rank, world_size=1):
    """An epoch of 4 batches, another one on each rank; the gradients of each update."""
    torch.manual_seed(1)
    model = make_model()
    task, _ = make_semi_task(model, stream=Stream(rank=rank), rank=rank, grad_accum_steps=CASES[case])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    engine = make_engine(task, optimizer, '--grad-accum-steps', CASES[case], rank=rank, world_size=world_size)
    if world_size > 1:
        task.prepare_distributed(device_ids=None)
    figures = engine.train_one_epoch(0, make_batches(4, seed=100 + rank))
    return {'gradients': seen, 'figures': dict(figures)}


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What both ranks saw, by rank."""
    return run_on_ranks(tmp_path_factory.mktemp('ranks'), train_rank, CASES)


@pytest.mark.parametrize('case', CASES)
def test_gradients_of_two_ranks_are_the_mean_of_single_processes(case, ranks):
    alone = [train_rank(case, rank) for rank in range(RANKS)]
    for update, single in enumerate(zip(*(run['gradients'] for run in alone), strict=True)):
        mean = {name: value / RANKS for name, value in sum_of(*single).items()}
        for rank in range(RANKS):
            assert_close(ranks[rank][case]['gradients'][update], mean, tolerance=1e-6)
        with pytest.raises(AssertionError):
            assert_close(single[0], mean, tolerance=1e-2)
    for name in ('ulb1_loss', 'ulb3_loss', 'ulb1_confidence'):
        mean = sum(run['figures'][name] for run in alone) / RANKS
        assert all(ranks[rank][case]['figures'][name] == pytest.approx(mean, rel=1e-4) for rank in range(RANKS))
