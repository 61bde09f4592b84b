"""UADA through train.py: what the loader delivers, with what timm offers, through phases and resuming, on two ranks."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
from timm import create_model

from regaug.augment.operators import OPERATORS
from regaug.methods.uada import create_uada
from regaug.training.phases import phase_at
from regaug.training.report import label
from regaug.training.task import RegAugTask
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    assert_same_training,
    follow_log,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
    train_args,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = ('--uada-groups', 'crop', 'flip', 'policy', 'cutout', '--pad-crop', 4)
PLAIN = ('--color-jitter', 0, '--hflip', 0)
UADA_ALL = ('--uada', *ALL, '--epochs', 1)
HISTOGRAMS = {f'uada_operator/{name}' for name in OPERATORS} | {f'uada_level/{level}' for level in range(10)}
METRICS = {'uada_passes', 'uada_gain', 'uada_moved', 'uada_moved_policy'}
OTHER_GROUPS = {'uada_moved_crop', 'uada_moved_flip', 'uada_moved_cutout'}


def assert_metrics_make_sense(row, passes=8):
    """An epoch's metrics: passes, a gain, shares that add up."""
    values = {name.removeprefix('train_'): float(value) for name, value in row.items() if name.startswith('train_uada')}
    assert set(values) == METRICS | OTHER_GROUPS  # histograms go to W&B alone
    assert values['uada_passes'] == passes
    assert values['uada_gain'] > 0
    assert 0 < values['uada_moved'] <= 1 + 1e-6
    assert sum(values[name] for name in ('uada_moved_policy', *OTHER_GROUPS)) == pytest.approx(values['uada_moved'])


# --- together with --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'passes'),
    [
        (['--grad-accum-steps', 3, '--batch-size', 8, '--clip-grad', 1.0], 8),
        (['--bce-loss', '--model-ema', '--model-ema-decay', 0.9], 8),
        (['--amp', '--amp-dtype', 'bfloat16', '--channels-last'], 8),
        pytest.param(['--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3], 8, marks=pytest.mark.slow),
        pytest.param(['--amp', '--amp-dtype', 'bfloat16', '--workers', 2], 8, marks=pytest.mark.slow),
        (['--no-prefetcher', '--grad-checkpointing', '--channels-last'], 8),
        (['--gradaug', 2, '--gradaug-transforms', 'rotate', 'scale', '--grad-accum-steps', 2], 8),
        (['--uada-step', 'random', '--uada-ranges', 'timm', '--workers', 1, '--no-prefetcher'], 5),
        (['--uada-delta', 3, '--uada-epsilon', 2, '--drop', 0.2, '--model', 'test_efficientnet'], 8),
        (['--pad-mode', 'reflect', '--hflip', 0.2, '--vflip', 0.5, '--smoothing', 0], 8),
    ],
    ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else '',
)
@pytest.mark.few(1)
def test_uada_trains_together_with_timms_options(options, passes, train):
    folder = train(*UADA_ALL, *options)
    [row] = read_summary(folder)
    assert_metrics_make_sense(row, passes)
    assert np.isfinite(float(row['train_loss']))
    if '--gradaug' in options:
        assert float(row['train_sub1_loss']) > 0 and float(row['train_sub2_width']) == 0.9
    state = read_checkpoint(folder / 'last.pth.tar')
    model = 'test_efficientnet' if 'test_efficientnet' in options else 'test_resnet'
    assert list(state['state_dict']) == list(create_model(model, num_classes=CLASSES).state_dict())
    assert all(value.isfinite().all() for value in state['state_dict'].values())
    if '--model-ema' in options:
        assert list(state['state_dict_ema']) == list(state['state_dict'])


def test_grey_images_train(train):
    grey = ('--input-size', 1, 32, 32, '--in-chans', 1, '--input-img-mode', 'L', '--mean', 0.5, '--std', 0.25)
    [row] = read_summary(train(*UADA_ALL, *grey))
    assert_metrics_make_sense(row)


@contextlib.contextmanager
def watched():
    """Lists of (raw images, chosen images, pixels of the full network's pass), filled by runs of this process."""
    seen = []
    choose_input = RegAugTask.choose_input

    def keep(task, input, target):
        chosen = choose_input(task, input, target)
        seen.append((input.clone(), chosen[0].clone()))
        return chosen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RegAugTask, 'choose_input', keep)
        yield seen


@pytest.mark.parametrize(
    ('options', 'dtype', 'memory_format'),
    [
        ([], torch.float32, torch.contiguous_format),
        pytest.param(['--model-dtype', 'bfloat16'], torch.bfloat16, torch.contiguous_format, marks=pytest.mark.slow),
        (['--channels-last', '--amp', '--amp-dtype', 'bfloat16'], torch.float32, torch.channels_last),
        (['--no-prefetcher', '--channels-last'], torch.float32, torch.channels_last),
    ],
)
def test_a_run_gives_uada_pixels_and_the_network_normalised_images(options, dtype, memory_format, train):
    with watched() as seen:
        train(*UADA_ALL, *PLAIN, '--mean', *MEAN, '--std', *STD, '--lr', 1e-3, *options)
    assert len(seen) == 4
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    for raw, chosen in seen:
        assert raw.dtype == torch.float32 and chosen.dtype == dtype
        assert raw.min() >= 0 and raw.max() <= 1
        assert chosen.is_contiguous(memory_format=memory_format)
        pixels = chosen.float() * std + mean
        assert pixels.min() >= -0.01 and pixels.max() <= 1.01
        if dtype == torch.float32:
            assert (pixels * 255 - (pixels * 255).round()).abs().max() < 1e-3
        assert (pixels.abs() < 0.005).flatten(1).any(dim=1).float().mean() > 0.9  # Cutout is black


def test_with_epsilon_0_the_operators_run_without_adaptation(train, caplog):
    log = follow_log(caplog)
    with watched() as seen:
        folder = train(*UADA_ALL, '--uada-epsilon', 0, '--lr', 1e-9)
    [row] = read_summary(folder)
    assert {name for name in row if 'uada' in name} == {'train_uada_passes'}
    assert float(row['train_uada_passes']) == 0
    assert 'Uada passes: 0' in log.text
    with watched() as adaptive:
        train(*UADA_ALL, '--lr', 1e-9, experiment='adaptive')
    for (raw, base), (other_raw, chosen) in zip(seen, adaptive, strict=True):
        assert_equal(raw, other_raw)
        same = (base == chosen).flatten(1).all(dim=1)
        assert not same.all()
        assert (base != raw).flatten(1).any(dim=1).all()


# --- the log --------------------------------------------------------------------------------------------------------


def test_the_console_and_the_summary_have_the_metrics_without_the_histograms(train, caplog):
    log = follow_log(caplog)
    [row] = read_summary(train(*UADA_ALL, '--log-interval', 1))
    assert_metrics_make_sense(row)
    lines = [record.message for record in log.records if record.message.startswith('Train: ')]
    assert len(lines) == 4
    names = ('uada_passes', 'uada_gain', 'uada_moved', 'uada_moved_crop', 'uada_moved_flip', 'uada_moved_policy')
    for line in lines:
        values = [float(line.partition(f'  {label(name)}: ')[2].split()[0]) for name in (*names, 'uada_moved_cutout')]
        assert values[0] == 8
        assert values[2] == pytest.approx(sum(values[3:]), abs=0.02)
        assert 'operator' not in line and 'level' not in line


@pytest.mark.slow
def test_wandb_has_the_metrics_of_every_log_interval_and_epoch(train, monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith('WANDB_')]:
        monkeypatch.delenv(name)
    for name, value in (('MODE', 'offline'), ('DIR', str(tmp_path)), ('SILENT', 'true')):
        monkeypatch.setenv(f'WANDB_{name}', value)
    wandb.teardown()  # an earlier run in this process would decide on the folder
    with warnings.catch_warnings(), watched() as seen:
        warnings.simplefilter('ignore')
        folder = train(*UADA_ALL, '--log-wandb', '--log-interval', 1)
    [run_folder] = (tmp_path / 'wandb').glob('offline-run-*')
    command = [str(Path(sys.executable).parent / 'wandb'), 'leet', 'inspect', '--json', str(run_folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    records = [json.loads(line) for line in output.splitlines()]
    history = [record['history']['item'] for record in records if record['type'] == 'history']
    rows = [row for row in history if 'update' in row]
    [summary], [epoch] = read_summary(folder), [row for row in history if 'eval_top1' in row]
    names = METRICS | OTHER_GROUPS | HISTOGRAMS
    assert len(rows) == len(seen) == 4
    for name in names:
        values = [row[f'step/{name}'] for row in rows]
        assert np.mean(values) == pytest.approx(epoch[f'train_{name}'], abs=1e-5), name
        if name not in HISTOGRAMS:
            assert epoch[f'train_{name}'] == pytest.approx(float(summary[f'train_{name}']), abs=1e-9)
    pictures = [key for row in history for key in row if key.startswith('batch/')]
    assert any(key.startswith('batch/main') for key in pictures)


def test_pictures_of_a_phase_show_what_uada_did(train):
    folder = train(*UADA_ALL, '--save-images', '--refine-epochs', 1)
    names = {path.name for path in (folder / 'pictures').iterdir()}
    assert names == {'main-batch.png', 'main-uada.png', 'refine-batch.png'}


# --- phases -------------------------------------------------------------------------------------------------------


def test_refinement_trains_without_uada_after_it_faded(train, caplog):
    log = follow_log(caplog)
    with watched() as seen:
        folder = train('--uada', *ALL, '--epochs', 2, '--refine-epochs', 1, '--refine-fade', 1, '--smoothing', 0)
    rows = read_summary(folder)
    assert [row['phase'] for row in rows] == ['main', 'fade', 'refine']
    assert [row['train_uada_passes'] for row in rows] == ['8.0', '8.0', '']
    assert_metrics_make_sense(rows[0])
    assert_metrics_make_sense(rows[1])
    assert len({tuple(row) for row in rows}) == 1
    [switch] = [record.message for record in log.records if 'Phase refine' in record.message]
    assert '--uada' in switch
    for number, (raw, chosen) in enumerate(seen):
        assert torch.equal(raw, chosen) == (number >= 8)
        assert (raw.min() < -0.1) == (number >= 8)  # the loader normalises only then


def selector_at(epoch, *options):
    """What chooses the input in an epoch, for a network with random weights; None for nothing."""
    args = train_args('--num-classes', CLASSES, '--warmup-epochs', 0, '--uada', *options)
    phase = phase_at(epoch, args)
    task = make_task(make_model(dtype=torch.float32))
    if 'uada' not in phase.methods:
        return None
    return create_uada(phase, task, args, {'input_size': (3, 32, 32), 'mean': MEAN, 'std': STD})


def test_policy_and_cutout_fade_and_crop_and_flip_stay():
    fade = ('--epochs', 4, '--refine-epochs', 1, '--refine-fade', 3, '--uada-epsilon', 0, '--hflip', 0.5)
    input = torch.ones(600, 3, 32, 32)
    for epoch, intensity in enumerate((1, 0.75, 0.5, 0.25)):
        selector = selector_at(epoch, *fade, '--uada-groups', 'cutout', '--cutout-size', 8)
        chosen, _, _ = selector(input, torch.zeros(600), (0, 0, 0))
        erased = (chosen[:, 0] < 0).flatten(1).any(dim=1).float().mean().item()
        assert erased == pytest.approx(intensity, abs=0.06 if intensity < 1 else 0)
        half = input.clone()
        half[..., 16:] = 0.5
        selector = selector_at(epoch, *fade, '--uada-groups', 'flip')
        chosen, _, _ = selector(half, torch.zeros(600), (0, 0, 0))
        assert (chosen[:, 0, 0, 0] < chosen[:, 0, 0, -1]).float().mean().item() == pytest.approx(0.5, abs=0.06)
    assert selector_at(4, *fade) is None


# --- exact resume -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # plain and with a sub-network: tests/training/test_methods.py
@pytest.mark.parametrize(
    ('options', 'epochs'),
    [
        (['--grad-accum-steps', 3, '--batch-size', 8, '--model-ema', '--model-ema-decay', 0.9, '--drop', 0.2], [0, 1]),
        (['--workers', 1, '--gradaug', 1], [1]),
    ],
    ids=['accumulation', 'sub-network'],
)
def test_runs_resumed_in_every_phase_equal_the_uninterrupted_one(options, epochs, train):
    common = ('--exact-resume', '--uada', *ALL, '--epochs', 2, '--refine-epochs', 1, '--refine-fade', 1)
    common = (*common, '--model', 'test_efficientnet', *options)
    whole = train(*common, experiment='whole')
    assert [row['phase'] for row in read_summary(whole)] == ['main', 'fade', 'refine']
    for epoch in epochs:
        resume = ['--resume', whole / f'checkpoint-{epoch}.pth.tar']
        resumed = train(*common, *resume, experiment=f'resumed-{epoch}')
        rows, expected = read_summary(resumed), read_summary(whole)[epoch + 1 :]
        saved, reference = (read_checkpoint(run / 'last.pth.tar') for run in (resumed, whole))
        for key in ('epoch', 'state_dict', 'state_dict_ema', 'optimizer', 'metric'):
            assert_equal(saved.get(key), reference.get(key), key)
        for row, other in zip(rows, expected, strict=True):
            assert {name: value for name, value in row.items() if value} == {
                name: value for name, value in other.items() if value
            }


@pytest.mark.slow
def test_two_runs_with_the_same_seed_are_the_same_and_with_another_one_are_not(train):
    runs = [train(*UADA_ALL, '--seed', seed, experiment=f'run{number}') for number, seed in enumerate((42, 42, 43))]
    assert_same_training(runs[1], runs[0])
    losses = [read_summary(run)[0]['train_loss'] for run in runs]
    assert losses[0] == losses[1] != losses[2]
