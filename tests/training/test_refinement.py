"""Refinement through train.py: what the workers deliver, learning rates, resuming, finished models."""

import logging

import pytest
import torch
from PIL import Image
from timm.data import IterableImageDataset

from regaug.data.loaders import TrainLoader
from regaug.data.samples import Samples
from regaug.training import run as run_module
from regaug.training.phases import phase_at
from tests.helpers.training import CLASSES, read_checkpoint, read_summary, train_args

HEAVY = ('--mixup', 0.8, '--cutmix', 1.0, '--aa', 'rand-m9', '--reprob', 1.0, '--color-jitter', 0.4)
DATA_CONFIG = {'input_size': (3, 32, 32), 'mean': (0.0,) * 3, 'std': (1.0,) * 3, 'interpolation': 'bilinear'}


class RampImages:
    """Images of one size whose rows are a fixed ramp and whose columns differ from image to image."""

    transform = None

    def __len__(self):
        return 32

    def __getitem__(self, index):
        ramp = torch.arange(32, dtype=torch.uint8).repeat(32, 1) * 4 + index
        image = Image.fromarray(ramp.unsqueeze(-1).repeat(1, 1, 3).numpy())
        return self.transform(image), index % CLASSES


def delivered(epoch, *options):
    """One epoch's batches from two worker processes, with the loader that a phase change builds."""
    args = train_args('--epochs', 1, '--warmup-epochs', 0, '--refine-epochs', 1, '--batch-size', 8, *options)
    args.workers = 2
    data = TrainLoader(
        Samples(RampImages()), DATA_CONFIG, device=torch.device('cpu'), img_dtype=torch.float32, num_classes=CLASSES
    )
    data.use(phase_at(0, args))
    batches = list(data.loader)
    if epoch == 1:
        assert data.use(phase_at(1, args))
        batches = list(data.loader)
    return batches


def is_crop_or_flip(image):
    """True if each row of the image is a stretch of one ramp: monotone, the same in all channels and rows."""
    row = image[0, 0]
    steps = row[1:] - row[:-1]
    monotone = bool((steps >= -1e-6).all() or (steps <= 1e-6).all())
    return monotone and torch.allclose(image, row.expand_as(image), atol=1.5 / 255)


def test_workers_deliver_only_crops_and_flips_in_refinement():
    options = (*HEAVY, '--grayscale-prob', 1.0, '--gaussian-blur-prob', 1.0)
    before, after = delivered(0, *options), delivered(1, *options)
    assert all(target.ndim == 2 for _, target in before)
    assert not all(is_crop_or_flip(image) for input, _ in before for image in input)
    for input, target in after:
        assert target.ndim == 1 and target.dtype == torch.int64
        assert all(is_crop_or_flip(image) for image in input)
        assert input.max() <= 1.0 and input.min() >= 0.0


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
    """A stream of ramps, as timm's WebDataset and TFDS readers are for `IterableImageDataset`."""

    def __iter__(self):
        for index in range(16):
            ramp = torch.arange(32, dtype=torch.uint8).repeat(32, 1) * 4 + index
            yield Image.fromarray(ramp.unsqueeze(-1).repeat(1, 1, 3).numpy()), index % CLASSES

    def __len__(self):
        return 16

    def set_epoch(self, epoch):
        self.epoch = epoch

    def set_loader_cfg(self, num_workers=None):
        self.num_workers = num_workers


@pytest.mark.parametrize('workers', [0, 1])
def test_streams_survive_the_change(workers):
    args = train_args('--epochs', 1, '--warmup-epochs', 0, '--refine-epochs', 1, '--batch-size', 8, *HEAVY)
    args.workers = workers
    stream = IterableImageDataset('', reader=StreamReader())
    device = torch.device('cpu')
    data = TrainLoader(stream, DATA_CONFIG, device=device, img_dtype=torch.float32, num_classes=CLASSES)
    data.use(phase_at(0, args))
    assert all(target.ndim == 2 for _, target in data.loader)
    assert data.use(phase_at(1, args))
    data.set_epoch(1)
    batches = list(data.loader)
    assert stream.reader.epoch == 1 and sum(len(target) for _, target in batches) == 16
    assert all(is_crop_or_flip(image) for input, _ in batches for image in input)
