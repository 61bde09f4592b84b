"""Refinement through train.py: what the workers deliver, learning rates, resuming, finished models."""

import logging

import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset

from regaug.training import run as run_module
from regaug.training.checkpoints import Saver
from regaug.training.phases import phase_at
from tests.helpers.data import as_bytes, deliver, make_train_data, noise_images, noise_set
from tests.helpers.training import CLASSES, assert_same_training, read_checkpoint, read_summary

HEAVY = ('--mixup', 0.8, '--cutmix', 1.0, '--aa', 'rand-m9', '--reprob', 1.0, '--color-jitter', 0.4)
WHOLE = ('--scale', 1, 1, '--ratio', 1, 1)  # the random resized crop then takes all of an image of the training size
REFINE = ('--epochs', 1, '--warmup-epochs', 0, '--refine-epochs', 1, '--batch-size', 8)
INTENSIVE = {
    'Mixup': ('--mixup', 0.8),
    'CutMix': ('--cutmix', 1.0),
    'CutMix by range': ('--cutmix-minmax', 0.2, 0.8),
    'policy': ('--aa', 'rand-m9-n3'),
    'erasing': ('--reprob', 1.0),
    'jitter': ('--color-jitter', 0.4),
    'jitter at times': ('--color-jitter', 0.4, '--color-jitter-prob', 1.0),
    'grey': ('--color-jitter', 0, '--grayscale-prob', 1.0),
    'blur': ('--color-jitter', 0, '--gaussian-blur-prob', 1.0),
}


def delivered(*options, workers=0):
    """The images of the main phase and of refinement, uint8 [N, 32, 32, 3], and their targets; images of noise."""
    dataset = noise_set(16)
    train_data, args = make_train_data(dataset, *REFINE, *options, '--workers', workers)
    epochs = [deliver(train_data)]
    assert train_data.use(phase_at(1, args))
    epochs.append(deliver(train_data))
    return dataset.images, [(as_bytes(images), targets) for images, targets in epochs]


def is_whole(images, originals):
    """Which images are one of the originals or its mirror image, to the bit: [N]."""
    known = {image.tobytes() for image in originals} | {image[:, ::-1].tobytes() for image in originals}
    return [image.tobytes() in known for image in images]


@pytest.mark.parametrize('name', INTENSIVE)
def test_each_intensive_augmentation_ends_with_refinement(name):
    originals, [(before, _), (after, targets)] = delivered(*WHOLE, *INTENSIVE[name])
    assert sum(is_whole(before, originals)) < len(before) / 2  # blur and policies may draw next to nothing
    assert all(is_whole(after, originals))
    assert targets.dtype == torch.int64 and targets.ndim == 1


def test_workers_deliver_flipped_crops_and_nothing_else_in_refinement():
    heavy = (*HEAVY, '--grayscale-prob', 1.0, '--gaussian-blur-prob', 1.0)
    originals, [(_, soft), (after, targets)] = delivered(*WHOLE, *heavy, workers=2)
    assert soft.ndim == 2 and targets.ndim == 1
    assert all(is_whole(after, originals))
    mirrored = is_whole(after, [image[:, ::-1] for image in originals[:1]])  # either way round
    assert sum(mirrored) == 1
    flips = [not (image == originals).all(axis=(1, 2, 3)).any() for image in after]
    assert 0 < sum(flips) < len(flips)
    originals, [_, (after, _)] = delivered(*heavy)
    assert sum(is_whole(after, originals)) < len(after) / 2  # the crop is still there


def test_refinement_trains_on_at_its_learning_rate_and_says_so(train, caplog):
    caplog.set_level(logging.INFO)
    folder = train(*HEAVY, '--refine-epochs', 2, '--refine-lr', 0.002, '--workers', 2, '--model-ema')
    table = read_summary(folder)
    assert [row['phase'] for row in table] == ['main', 'main', 'refine', 'refine']
    assert [float(row['lr']) for row in table] == pytest.approx([0.05, 0.025, 0.002, 0.002])
    assert all(list(row) == list(table[0]) for row in table)
    switches = [record.message for record in caplog.records if 'Phase refine' in record.message]
    assert len(switches) == 1 and '--mixup' in switches[0] and '--aa' in switches[0]
    assert any('Final metric' in record.message for record in caplog.records)
    assert any('Best metric' in record.message for record in caplog.records)


def test_optimiser_state_and_moving_average_carry_over(train):
    """The momentum that refinement starts with is that of the last main epoch: a fresh one ends elsewhere."""
    options = ('--mixup', 0.2, '--epochs', 1, '--model-ema', '--refine-lr', 0.01, '--exact-resume')
    train(*options, experiment='main')
    whole = train(*options, '--refine-epochs', 1, experiment='whole')
    start = str(whole.parent / 'main' / 'last.pth.tar')
    kept = train(*options, '--refine-epochs', 1, '--resume', start, experiment='kept')
    fresh = train(*options, '--refine-epochs', 1, '--resume', start, '--no-resume-opt', experiment='fresh')
    states = {folder.name: read_checkpoint(folder / 'last.pth.tar') for folder in (whole, kept, fresh)}
    for key in ('state_dict', 'state_dict_ema'):
        for name, value in states['whole'][key].items():
            assert torch.equal(value, states['kept'][key][name])
    assert any(not torch.equal(v, states['fresh']['state_dict'][n]) for n, v in states['whole']['state_dict'].items())


def test_a_refinement_alone_goes_on_with_the_moving_average(train):
    """Its first update would be timm's first of a run, which replaces the average by the weights."""
    main = train('--epochs', 2, '--mixup', 0.2, '--model-ema', '--model-ema-decay', 0.5, experiment='main')
    start = ('--resume', main / 'last.pth.tar', '--epochs', 0, '--refine-epochs', 1, '--refine-lr', 1e-9)
    refined = train(*start, '--model-ema', '--model-ema-decay', 0.9, '--log-interval', 1, experiment='refined')
    before, after = (read_checkpoint(folder / 'last.pth.tar') for folder in (main, refined))
    kept = 0.9**4  # updates
    for name, weight in after['state_dict'].items():
        if name.endswith('.weight'):
            average = before['state_dict_ema'][name]
            assert torch.allclose(after['state_dict_ema'][name], kept * average + (1 - kept) * weight, atol=1e-6)


def test_a_refinement_alone_resumes_exactly_with_the_warm_up_of_the_moving_average(train):
    options = ('--model-ema', '--model-ema-decay', 0.99, '--model-ema-warmup', '--exact-resume')
    main = train(*options, '--epochs', 2, experiment='main')
    refine = (*options, '--epochs', 0, '--refine-epochs', 2, '--refine-lr', 0.01)
    whole = train(*refine, '--resume', main / 'last.pth.tar', experiment='whole')
    resumed = train(*refine, '--resume', whole / 'checkpoint-0.pth.tar', experiment='resumed')
    assert_same_training(resumed, whole, from_epoch=1)


@pytest.mark.few(1)
@pytest.mark.parametrize('schedule', [('--sched', 'cosine'), ('--sched', 'step', '--decay-epochs', 1)])
def test_layer_decay_holds_in_refinement(train, schedule, monkeypatch):
    seen = []
    original = run_module.Run.start_phase

    def spy(run, phase):
        original(run, phase)
        seen.append([(group['lr'], group.get('lr_scale', 1.0)) for group in run.optimizer.param_groups])

    monkeypatch.setattr(run_module.Run, 'start_phase', spy)
    train(*schedule, '--layer-decay', 0.5, '--refine-epochs', 1)
    expected = 0.05 * 0.1 if 'step' in schedule else 0.05 * 1e-3
    assert len({scale for _, scale in seen[-1]}) > 2
    for lr, scale in seen[-1]:
        assert lr == pytest.approx(expected * scale)


def test_a_finished_model_is_refined_without_a_main_phase(train):
    finished = train('--mixup', 0.5)
    weights = str(finished / 'last.pth.tar')
    refine = ('--epochs', 0, '--refine-epochs', 2, '--lr', 0.1)
    from_weights = train(*refine, '--initial-checkpoint', weights, experiment='weights')
    from_run = train(*refine, '--resume', weights, experiment='resumed')
    for folder in (from_weights, from_run):
        table = read_summary(folder)
        assert [(row['epoch'], row['phase']) for row in table] == [('0', 'refine'), ('1', 'refine')]
        assert [float(row['lr']) for row in table] == pytest.approx([1e-4, 1e-4])


def test_an_interrupted_refinement_of_a_finished_model_goes_on_where_it_was(train):
    finished = train('--mixup', 0.5)
    refine = ('--epochs', 0, '--lr', 0.1, '--initial-checkpoint', str(finished / 'last.pth.tar'))
    train(*refine, '--refine-epochs', 1, experiment='refined')
    folder = train(*refine, '--refine-epochs', 3, '--resume', 'auto', experiment='refined')
    assert [row['epoch'] for row in read_summary(folder)] == ['0', '1', '2']


def test_without_validation_the_ranking_restarts_with_the_phase(train):
    """Losses on mixed images are larger than on clean ones: the best of the main phase must not stand for ever."""
    folder = train('--val-split', '', '--mixup', 0.8, '--refine-epochs', 1, '--refine-lr', 3)
    losses = [float(row['train_loss']) for row in read_summary(folder)]
    assert losses[2] > min(losses[:2])  # an old best would stand
    assert read_checkpoint(folder / 'model_best.pth.tar')['epoch'] == 2


def test_scheduled_sizes_survive_the_change(train):
    sizes = ('--train-img-sizes', 24, 32, '--train-batch-sizes', 16, 8)
    assert [row['phase'] for row in read_summary(train(*sizes, '--mixup', 0.2, '--refine-epochs', 1))] == [
        'main',
        'main',
        'refine',
    ]


class StreamReader:
    """A stream of images of noise, as timm's WebDataset and TFDS readers are for `IterableImageDataset`."""

    def __iter__(self):
        for index, pixels in enumerate(noise_images(16)):
            yield Image.fromarray(pixels), index % CLASSES

    def __len__(self):
        return 16

    def set_epoch(self, epoch):
        self.epoch = epoch

    def set_loader_cfg(self, num_workers=None):
        self.num_workers = num_workers


@pytest.mark.parametrize('workers', [0, 1])
def test_streams_survive_the_change(workers):
    stream = IterableImageDataset('', reader=StreamReader())
    train_data, args = make_train_data(stream, *REFINE, *HEAVY, *WHOLE, '--workers', workers)
    assert all(target.ndim == 2 for _, target in train_data.loader)
    assert train_data.use(phase_at(1, args))
    train_data.set_epoch(1)
    images, targets = deliver(train_data)
    assert stream.reader.epoch == 1
    assert len(targets) == 16
    assert all(is_whole(as_bytes(images), noise_images(16)))


def test_the_ranking_restarts_once_however_long_refinement_is(train, monkeypatch):
    restart, restarted = Saver.restart_ranking, []
    monkeypatch.setattr(Saver, 'restart_ranking', lambda saver: restarted.append(saver.best_epoch) or restart(saver))
    train('--val-split', '', '--epochs', 1, '--refine-epochs', 2)
    assert restarted == [0]


def test_a_schedule_on_updates_leaves_the_learning_rate_of_refinement_alone(train):
    folder = train('--sched-on-updates', '--refine-epochs', 2, '--refine-lr', 0.002)
    table = read_summary(folder)
    assert [float(row['lr']) for row in table[-2:]] == [0.002, 0.002]
    assert read_checkpoint(folder / 'last.pth.tar')['optimizer']['param_groups'][0]['lr'] == 0.002
