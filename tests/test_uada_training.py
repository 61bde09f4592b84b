"""UADA through train.py: what the loader delivers, with what timm offers, through phases and resuming, on two ranks."""

import contextlib
import copy
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
import wandb
from data_case import as_bytes, noise_images, noise_set
from timm import create_model
from torch import nn
from training_case import (
    CLASSES,
    CPU,
    assert_close,
    assert_equal,
    assert_same_training,
    follow_log,
    gradients_at_updates,
    make_engine,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
    sum_of,
    train_args,
)

from regaug.augmentation import Augmentation
from regaug.loaders import TrainLoader
from regaug.methods import create_selector
from regaug.operators import OPERATORS
from regaug.phases import phase_at
from regaug.samples import training_samples
from regaug.scoring import Scorer
from regaug.task import RegAugTask
from regaug.uada import UADA

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
ALL = ('--uada-groups', 'crop', 'flip', 'policy', 'cutout', '--pad-crop', 4)
PLAIN = ('--color-jitter', 0, '--hflip', 0)
UADA_ALL = ('--uada', *ALL, '--epochs', 1)
HISTOGRAMS = {f'uada_operator/{name}' for name in OPERATORS} | {f'uada_level/{level}' for level in range(10)}
FIGURES = {'uada_passes', 'uada_gain', 'uada_moved', 'uada_moved_policy'}
OTHER_GROUPS = {'uada_moved_crop', 'uada_moved_flip', 'uada_moved_cutout'}


def assert_figures_make_sense(row, passes=8):
    """An epoch's figures: passes, a gain, shares that add up."""
    values = {name.removeprefix('train_'): float(value) for name, value in row.items() if name.startswith('train_uada')}
    if passes is None:  # some scores are reused, which is compared with the exact choice
        assert 0 < values.pop('uada_agreement') <= 1
    assert set(values) == FIGURES | OTHER_GROUPS | HISTOGRAMS
    assert values['uada_passes'] == passes or (passes is None and 2 < values['uada_passes'] < 8)
    assert values['uada_gain'] > 0
    assert 0 < values['uada_moved'] <= 1 + 1e-6
    assert sum(values[name] for name in ('uada_moved_policy', *OTHER_GROUPS)) == pytest.approx(values['uada_moved'])
    assert sum(value for name, value in values.items() if name.startswith('uada_level/')) == pytest.approx(1, abs=1e-5)
    operators = sum(value for name, value in values.items() if name.startswith('uada_operator/'))
    assert 0 < operators <= 1 + 1e-5


# --- what the loader delivers -------------------------------------------------------------------------------------


def delivered(epoch, *options, size=(32, 32), img_dtype=torch.float32, images=None):
    """The images of an epoch [N, 3, H, W] as the loop gets them, in the order of their labels."""
    images = noise_images(16, *size) if images is None else images
    dataset = noise_set(len(images))
    dataset.images, dataset.labels = images, np.arange(len(images))
    config = {'input_size': (3, 32, 32), 'interpolation': 'bicubic', 'mean': MEAN, 'std': STD, 'crop_pct': 1.0}
    args = train_args('--num-classes', len(images), '--batch-size', 8, '--workers', 0, '--warmup-epochs', 0, *options)
    data = TrainLoader(training_samples(dataset), config, device=CPU, img_dtype=img_dtype, num_classes=len(images))
    data.use(phase_at(epoch, args))
    batches = [(input.clone(), target.clone()) for input, target in data.loader]
    order = torch.cat([target for _, target in batches]).argsort()
    return torch.cat([input for input, _ in batches])[order]


REFINED = ('--uada', *PLAIN, '--epochs', 1, '--refine-epochs', 1)


@pytest.mark.parametrize('fetch', [[], ['--no-prefetcher']])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_in_the_main_phase_images_come_as_they_are_on_disk_divided_by_255(fetch, dtype):
    images = noise_images(16)
    input = delivered(0, *REFINED, *ALL, *fetch, images=images, img_dtype=dtype)
    assert input.dtype == torch.float32  # whatever the model's number format
    assert_equal((input * 255).round().to(torch.uint8), torch.from_numpy(images).permute(0, 3, 1, 2).contiguous())
    assert input.max() <= 1 and (input * 255 - (input * 255).round()).abs().max() < 1e-4


@pytest.mark.parametrize('fetch', [[], ['--no-prefetcher']])
def test_in_refinement_images_are_normalised_cropped_and_flipped_as_without_uada(fetch):
    options = (*REFINED[1:], '--hflip', 0.5, '--pad-crop', 4, *fetch)
    torch.manual_seed(3)
    input = delivered(1, '--uada', *ALL, *options)
    torch.manual_seed(3)
    assert_equal(input, delivered(1, *options))
    pixels = input * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    original = torch.from_numpy(noise_images(16)).permute(0, 3, 1, 2) / 255
    centre = pixels[:, :, 12:20, 12:20]
    shifts, flips = set(), 0
    for sample, image in zip(centre, original):
        places = [
            (row, column, flipped)
            for flipped, source in ((False, image), (True, image.flip(-1)))
            for row in range(-4, 5)
            for column in range(-4, 5)
            if (source[:, 12 + row : 20 + row, 12 + column : 20 + column] - sample).abs().max() < 1e-3
        ]
        [(row, column, flipped)] = places
        shifts.add((row, column))
        flips += flipped
    assert len(shifts) > 8
    assert 1 <= flips <= 15


@pytest.mark.parametrize('groups', [['crop', 'policy'], ['flip'], ['policy'], ['crop', 'flip', 'cutout']], ids='+'.join)
def test_the_loader_leaves_out_the_crop_and_the_flip_that_adapt_and_keeps_the_others(groups):
    images = noise_images(16)
    original = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    options = ('--uada', '--uada-groups', *groups, '--color-jitter', 0, '--hflip', 1.0, '--pad-crop', 4)
    input = delivered(0, *options, '--epochs', 1, images=images)
    if 'flip' not in groups:
        input = input.flip(-1)
    unmoved = (input - original).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert unmoved.all() if 'crop' in groups else unmoved.sum() <= 3


@pytest.mark.parametrize('size', [(40, 56), (24, 24), (32, 50)])
def test_images_of_other_sizes_arrive_in_that_of_training_with_the_crop_left_to_uada(size):
    """They are resized to the smallest size that holds the training size; the rest is cut off, black is never added."""
    images = np.full((8, *size, 3), 200, dtype=np.uint8)
    input = delivered(0, *REFINED, *ALL, images=images)
    assert input.shape == (8, 3, 32, 32)
    assert (input - 200 / 255).abs().max() < 1e-5


def test_noise_of_the_data_is_delivered_bytewise():
    images = noise_images(8)
    assert np.array_equal(as_bytes(delivered(0, *REFINED, *ALL, images=images) * 255), images)


@pytest.mark.parametrize('groups', [('policy',), ('crop', 'flip', 'policy', 'cutout')], ids='+'.join)
def test_what_the_model_trains_on_is_normalised(groups):
    """White images: whatever is neither filled nor changed is (1 - mean) / std."""
    args = train_args('--num-classes', CLASSES, '--uada', '--uada-groups', *groups, '--pad-crop', 4)
    task = make_task(make_model(dtype=torch.float32))
    config = {'input_size': (3, 32, 32), 'mean': MEAN, 'std': STD}
    selector = create_selector(phase_at(0, args).options, task, config)
    chosen, _, _ = selector(torch.ones(32, 3, 32, 32), torch.arange(32) % CLASSES, (0, 0, 0))
    for channel, (mean, std) in enumerate(zip(MEAN, STD)):
        values, counts = chosen[:, channel].unique(return_counts=True)
        assert values[counts.argmax()].item() == pytest.approx((1 - mean) / std, abs=1e-5)
        assert values.min().item() >= (0 - mean) / std - 1e-5
        assert values.max().item() <= (1 - mean) / std + 1e-5
        if 'cutout' in groups:
            assert values.min().item() == pytest.approx((0 - mean) / std, abs=1e-5)


@pytest.mark.parametrize('channels', [1, 3])
def test_one_mean_serves_all_channels(channels):
    """As in timm: `--mean 0.5` for a model with three channels."""
    args = train_args('--num-classes', CLASSES, '--uada', '--uada-groups', 'flip', '--uada-epsilon', 0)
    config = {'input_size': (channels, 8, 8), 'mean': (0.5,), 'std': (0.25,)}
    selector = create_selector(phase_at(0, args).options, make_task(nn.Identity()), config)
    chosen, _, _ = selector(torch.ones(4, channels, 8, 8), torch.zeros(4, dtype=torch.int64), (0, 0, 0))
    assert_equal(chosen, torch.full((4, channels, 8, 8), 2.0))


# --- together with --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('options', 'passes'),
    [
        (['--grad-accum-steps', 3, '--batch-size', 8, '--clip-grad', 1.0], 8),
        (['--bce-loss', '--model-ema', '--model-ema-decay', 0.9], 8),
        (['--amp', '--amp-dtype', 'bfloat16', '--channels-last'], 8),
        (['--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3], 8),
        (['--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3, '--uada-reuse'], None),
        (['--amp', '--amp-dtype', 'bfloat16', '--uada-reuse', '--workers', 2], None),
        (['--no-prefetcher', '--grad-checkpointing', '--channels-last'], 8),
        (['--gradaug', 2, '--gradaug-transforms', 'rotate', 'scale', '--grad-accum-steps', 2], 8),
        (['--uada-step', 'random', '--uada-ranges', 'timm', '--workers', 1, '--no-prefetcher'], 5),
        (['--uada-delta', 3, '--uada-epsilon', 2, '--drop', 0.2, '--model', 'test_efficientnet'], 8),
        (['--pad-mode', 'reflect', '--hflip', 0.2, '--vflip', 0.5, '--smoothing', 0], 8),
    ],
    ids=lambda value: ' '.join(map(str, value)) if isinstance(value, list) else '',
)
def test_uada_trains_together_with_timms_options(options, passes, train):
    folder = train(*UADA_ALL, *options)
    [row] = read_summary(folder)
    assert_figures_make_sense(row, passes)
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
    assert_figures_make_sense(row)


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
        (['--model-dtype', 'bfloat16'], torch.bfloat16, torch.contiguous_format),
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
    assert 'uada_passes: 0' in log.text
    with watched() as adaptive:
        train(*UADA_ALL, '--lr', 1e-9, experiment='adaptive')
    for (raw, base), (other_raw, chosen) in zip(seen, adaptive, strict=True):
        assert_equal(raw, other_raw)
        same = (base == chosen).flatten(1).all(dim=1)
        assert not same.all()
        assert (base != raw).flatten(1).any(dim=1).all()


# --- the log --------------------------------------------------------------------------------------------------------


def test_the_console_has_the_figures_without_the_histograms_and_the_summary_has_all(train, caplog):
    log = follow_log(caplog)
    [row] = read_summary(train(*UADA_ALL, '--log-interval', 1))
    assert_figures_make_sense(row)
    lines = [record.message for record in log.records if record.message.startswith('Train: ')]
    assert len(lines) == 4
    names = ('uada_passes', 'uada_gain', 'uada_moved', 'uada_moved_crop', 'uada_moved_flip', 'uada_moved_policy')
    for line in lines:
        values = [float(line.partition(f'  {name}: ')[2].split()[0]) for name in (*names, 'uada_moved_cutout')]
        assert values[0] == 8
        assert values[2] == pytest.approx(sum(values[3:]), abs=0.02)
        assert 'uada_operator' not in line and 'uada_level' not in line
        assert 'Cost: ' in line


def test_wandb_has_the_figures_of_every_log_interval_and_epoch(train, monkeypatch, tmp_path):
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
    names = FIGURES | OTHER_GROUPS | HISTOGRAMS
    assert len(rows) == len(seen) == 4
    for name in names:
        values = [row[f'step/{name}'] for row in rows]
        assert np.mean(values) == pytest.approx(float(summary[f'train_{name}']), abs=1e-5), name
        assert epoch[f'train_{name}'] == pytest.approx(float(summary[f'train_{name}']), abs=1e-9)
    pictures = [key for row in history for key in row if key.startswith('batch/')]
    assert any(key.startswith('batch/main') for key in pictures)


# --- phases -------------------------------------------------------------------------------------------------------


def test_refinement_trains_without_uada_after_it_faded(train, caplog):
    log = follow_log(caplog)
    with watched() as seen:
        folder = train('--uada', *ALL, '--epochs', 2, '--refine-epochs', 1, '--refine-fade', 1, '--smoothing', 0)
    rows = read_summary(folder)
    assert [row['phase'] for row in rows] == ['main', 'fade', 'refine']
    assert [row['train_uada_passes'] for row in rows] == ['8.0', '8.0', '']
    assert_figures_make_sense(rows[0])
    assert_figures_make_sense(rows[1])
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
    return create_selector(phase.options, task, {'input_size': (3, 32, 32), 'mean': MEAN, 'std': STD})


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


@pytest.mark.parametrize(
    ('options', 'epochs'),
    [
        (['--grad-accum-steps', 3, '--batch-size', 8, '--model-ema', '--model-ema-decay', 0.9, '--drop', 0.2], [0, 1]),
        (['--uada-reuse', '--workers', 1, '--gradaug', 1], [1]),
    ],
    ids=['accumulation', 'reuse'],
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


def test_two_runs_with_the_same_seed_are_the_same_and_with_another_one_are_not(train):
    runs = [train(*UADA_ALL, '--seed', seed, experiment=f'run{number}') for number, seed in enumerate((42, 42, 43))]
    assert_same_training(runs[1], runs[0])
    losses = [read_summary(run)[0]['train_loss'] for run in runs]
    assert losses[0] == losses[1] != losses[2]


# --- two ranks ----------------------------------------------------------------------------------------------------

RANKS = 2
CASES = {  # micro-batches per update, further arguments of UADA
    'exact': (1, {}),
    'exact, accumulated': (2, {}),
    'reuse': (2, {'reuse': True}),
}


def raw_batches(count=4, size=4):
    """The same batches for all ranks: images in [0, 1] with 8 bits, labels."""
    generator = torch.Generator().manual_seed(9)
    return [
        (
            torch.randint(256, (size, 3, 32, 32), generator=generator) / 255,
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def train_rank(case, rank, world_size=1):
    """An epoch of 4 batches; what was chosen, the gradients of each update, figures and buffers."""
    accum, kwargs = CASES[case]
    torch.manual_seed(1)
    model = make_model()
    task = make_task(model, rank=rank)
    groups = ('crop', 'flip', 'policy', 'cutout')
    augmentation = Augmentation(groups, mean=MEAN, std=STD, dtype=torch.float64, cutout_size=8)
    selector = UADA(augmentation, scorer=Scorer(task), seed=42, **kwargs)
    chosen = []

    def noting(input, target, key):
        chosen.append((selector(input, target, key), key))
        return chosen[-1][0]

    task.selector = noting
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    seen = gradients_at_updates(optimizer, model)
    engine = make_engine(task, optimizer, '--grad-accum-steps', accum, rank=rank, world_size=world_size)
    if world_size > 1:
        task.prepare_distributed(device_ids=None)
    figures = engine.train_one_epoch(0, raw_batches())
    return {
        'gradients': seen,
        'figures': dict(figures),
        'chosen': [input for (input, _, _), _ in chosen],
        'keys': [key for _, key in chosen],
    }


def work(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'file://{folder}/group', rank=rank, world_size=RANKS)
    results = {case: train_rank(case, rank, world_size=RANKS) for case in CASES}
    torch.save(results, f'{folder}/{rank}.pt')
    dist.destroy_process_group()


@pytest.fixture(scope='module')
def ranks(tmp_path_factory):
    """What both ranks saw, by rank."""
    folder = tmp_path_factory.mktemp('ranks')
    torch.multiprocessing.spawn(work, args=(str(folder),), nprocs=RANKS)
    return [torch.load(folder / f'{rank}.pt', weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize('case', CASES)
def test_gradients_and_figures_are_the_mean_of_single_processes(case, ranks):
    alone = [train_rank(case, rank) for rank in range(RANKS)]
    assert len(alone[0]['gradients']) == 4 / CASES[case][0]
    for update, single in enumerate(zip(*(run['gradients'] for run in alone), strict=True)):
        mean = {name: value / RANKS for name, value in sum_of(*single).items()}
        for rank in range(RANKS):
            assert_close(ranks[rank][case]['gradients'][update], mean)
        with pytest.raises(AssertionError):
            assert_close(single[0], mean, tolerance=1e-2)  # the ranks' own gradients differ
    mean = {name: (alone[0]['figures'][name] + alone[1]['figures'][name]) / 2 for name in alone[0]['figures']}
    for rank in range(RANKS):
        assert ranks[rank][case]['figures'] == pytest.approx(mean, rel=1e-5, abs=1e-7)
        assert_equal(ranks[rank][case]['chosen'], alone[rank]['chosen'])


@pytest.mark.parametrize('case', CASES)
def test_ranks_and_micro_batches_draw_different_augmentations_of_the_same_images(case, ranks):
    first, second = (ranks[rank][case]['chosen'] for rank in range(RANKS))
    assert len(first) == 4
    for images, others in zip(first, second, strict=True):
        assert not (images == others).flatten(1).all(dim=1).any()
    keys = [tuple(key) for rank in range(RANKS) for key in ranks[rank][case]['keys']]
    assert len(set(keys)) == len(keys) == 8
    assert {rank for _, rank, _ in keys} == {0, 1}


def test_the_forward_of_the_task_trains_on_the_choice():
    """In any loop written for timm's tasks: `forward` alone gives loss and gradient of the chosen images."""
    torch.manual_seed(1)
    model = make_model()
    task = make_task(model)
    augmentation = Augmentation(('policy', 'cutout'), mean=MEAN, std=STD, dtype=torch.float64, cutout_size=8)
    task.selector = UADA(augmentation, scorer=Scorer(task), seed=42)
    [(input, target)] = raw_batches(1, size=8)
    chosen, _, _ = task.selector(input, target, (0, 0, 0))
    expected = nn.functional.cross_entropy(copy.deepcopy(model)(chosen), target)
    torch.testing.assert_close(task(input, target)['loss'], expected)
