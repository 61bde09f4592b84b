"""MaxUp through the phases of a run: warm-up, fade, refinement, and resuming in each of them."""

import numpy as np
import pytest
import torch

from regaug.methods.maxup import create_maxup
from regaug.training.criterion import create_criterion
from regaug.training.phases import phase_at
from tests.helpers.maxup import assert_metrics_make_sense
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    follow_log,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
    train_args,
)


def test_warm_up_trains_on_one_copy_and_refinement_on_none(train, caplog):
    log = follow_log(caplog)
    options = ('--maxup', 3, '--maxup-warmup-epochs', 1, '--epochs', 3, '--log-interval', 1)
    rows = read_summary(train(*options, '--refine-epochs', 1, '--refine-fade', 1))
    assert [row['phase'] for row in rows] == ['warmup', 'main', 'fade', 'refine']
    assert [row['train_maxup_passes'] for row in rows] == ['0.0', '3.0', '3.0', '']
    assert [row['train_maxup_share3'] == '' for row in rows] == [True, False, False, True]
    assert [row['train_maxup_lambda'] == '' for row in rows] == [False, False, False, True]
    for row in rows[1:3]:
        assert_metrics_make_sense(row)
    assert len({tuple(row) for row in rows}) == 1
    [switch] = [record.message for record in log.records if 'Phase refine' in record.message]
    assert '--maxup' in switch and '--cutmix' in switch
    lines = [record.message for record in log.records if record.message.startswith('Train: ')]
    assert len(lines) == 16
    for number, line in enumerate(lines):
        assert ('Maxup lambda: ' in line) == (number < 12)
        assert ('Maxup passes: 3' in line) == ('Maxup chosen loss: ' in line) == (4 <= number < 12)
    shares = lines[5].partition('Maxup share: ')[2].split('  ')[0].split()
    assert len(shares) == 3
    assert sum(map(float, shares)) == pytest.approx(1, abs=0.01)


def test_a_dry_run_tells_the_warm_up(train, caplog, tmp_path):
    log = follow_log(caplog)
    train('--maxup', 3, '--maxup-warmup-epochs', 2, '--epochs', 5, '--refine-epochs', 1, '--dry-run')
    lines = [record.message for record in log.records if record.message.startswith('Dry run: phase')]
    assert [line.split(': ', 1)[1] for line in lines] == [
        'phase warmup: epochs 0 to 1',
        'phase main: epochs 2 to 4',
        'phase refine: epochs 5 to 5, without --cutmix, --maxup, --color-jitter',
    ]
    assert list(tmp_path.glob('run*')) == []


def selector_at(epoch, *options):
    """What chooses the input in an epoch, for a network with random weights; None for nothing."""
    args = train_args('--num-classes', CLASSES, '--warmup-epochs', 0, '--maxup', 4, *options)
    phase = phase_at(epoch, args)
    if 'maxup' not in phase.methods:
        return None
    task = make_task(make_model(dtype=torch.float32), create_criterion(phase))
    return create_maxup(phase, task, {'input_size': (3, 16, 16), 'std': (0.5, 0.25, 0.2)})


def candidates_at(epoch, input, *options):
    selector = selector_at(epoch, *options)
    target = torch.arange(len(input)) % CLASSES
    return list(selector.candidates(input, target, np.random.default_rng(3)))


FADE = ('--maxup-warmup-epochs', 0, '--epochs', 4, '--refine-epochs', 1, '--refine-fade', 3)


def test_the_probability_of_cutmix_fades():
    input = torch.arange(600.0).view(600, 1, 1, 1).expand(600, 1, 16, 16)
    for epoch, intensity in enumerate((1, 0.75, 0.5, 0.25)):
        for prob in (1.0, 0.6):
            candidates = candidates_at(epoch, input, *FADE, '--mixup-prob', prob, '--cutmix-minmax', 0.4, 0.8)
            assert len(candidates) == 4
            mixed = torch.stack([(image != input).any(dim=(1, 2, 3)) for image, _, _ in candidates]).double().mean()
            assert mixed.item() == pytest.approx(prob * intensity, abs=0.04)
    assert selector_at(4, *FADE) is None


def test_the_alpha_of_mixup_fades():
    """Beta(a, a) has the deviation 1 / (2 sqrt(2a + 1)), and so has the share."""
    input = torch.zeros(2500, 1, 1, 1)
    for epoch, alpha in enumerate((0.8, 0.6, 0.4, 0.2)):
        candidates = candidates_at(epoch, input, *FADE, '--mixup', 0.8)
        lam = torch.cat([lam for _, _, lam in candidates])
        assert lam.std().item() == pytest.approx(0.5 / (2 * alpha + 1) ** 0.5, rel=0.02)
        assert lam.mean().item() == pytest.approx(0.5, abs=0.02)


def test_cutout_and_noise_fade():
    input = torch.ones(400, 3, 16, 16)
    for epoch, intensity in enumerate((1, 0.75, 0.5, 0.25)):
        candidates = candidates_at(epoch, input, *FADE, '--maxup-aug', 'cutout', '--cutout-size', 4)
        erased = torch.stack([(image == 0).any(dim=3).any(dim=2).any(dim=1) for image, _, _ in candidates])
        assert erased.double().mean().item() == pytest.approx(intensity, abs=0.05)
        noise = torch.cat(
            [
                image - input
                for image, _, _ in candidates_at(epoch, input, *FADE, '--maxup-aug', 'gauss', '--gauss-sigma', 0.2)
            ]
        )
        expected = [0.2 * intensity / std for std in (0.5, 0.25, 0.2)]  # of pixels from 0 to 1, before normalisation
        assert noise.std(dim=(0, 2, 3)).tolist() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ('options', 'copies'), [((), 1), (('--maxup-aug', 'cutmix+cutout', '--cutmix', 1, '--cutout-size', 4), 4)]
)
def test_mixup_off_epoch_ends_mixing_and_leaves_other_copies(options, copies):
    input = torch.arange(1.0, 401.0).view(400, 1, 1, 1).expand(400, 1, 16, 16)
    unmixed = ('--maxup-warmup-epochs', 0, '--epochs', 4, '--mixup-off-epoch', 2, *options)
    for epoch in range(4):
        candidates = candidates_at(epoch, input, *unmixed)
        assert len(candidates) == (copies if epoch >= 2 else 4)
        for image, label, lam in candidates:
            values = {value for value in image.sub(input).flatten().tolist() if value} - set(
                (-input).flatten().tolist()
            )
            if epoch >= 2:
                assert values == set()
                assert (lam == 1).all()
                assert label.max(dim=1).values.min() == pytest.approx(0.9 + 0.1 / CLASSES)
            else:
                assert len(values) > 50
                assert lam.min() < 0.5


def test_pictures_show_the_copies_of_every_phase_that_has_several(train):
    options = ('--maxup', 3, '--maxup-warmup-epochs', 1, '--epochs', 2, '--refine-epochs', 1, '--save-images')
    names = {path.name for path in (train(*options) / 'pictures').iterdir()}
    assert names == {'warmup-batch.png', 'main-batch.png', 'main-maxup.png', 'refine-batch.png'}


# --- exact resume -------------------------------------------------------------------------------------------------

EXACT = ('--exact-resume', '--model', 'test_efficientnet', '--drop', 0.2, '--epochs', 3)
PHASES = ('--maxup', 2, '--maxup-warmup-epochs', 1, '--refine-epochs', 1, '--refine-fade', 1)


@pytest.mark.slow  # of CutMix and of views: tests/training/test_methods.py
@pytest.mark.parametrize(
    ('options', 'epochs'),
    [
        (['--batch-size', 8, '--grad-accum-steps', 3, '--model-ema', '--model-ema-decay', 0.9], (0, 1, 2)),
        (['--maxup-aug', 'views+cutout', '--aa', 'rand-m5'], (0, 2)),
    ],
)
def test_runs_resumed_at_every_phase_boundary_equal_the_uninterrupted_one(options, epochs, train):
    whole = train(*EXACT, *PHASES, *options, experiment='whole')
    assert [row['phase'] for row in read_summary(whole)] == ['warmup', 'main', 'fade', 'refine']
    for epoch in epochs:
        resume = ['--resume', whole / f'checkpoint-{epoch}.pth.tar']
        resumed = train(*EXACT, *PHASES, *options, *resume, experiment=f'resumed-{epoch}')
        rows, expected = read_summary(resumed), read_summary(whole)[epoch + 1 :]
        assert [int(row['epoch']) for row in rows] == list(range(epoch + 1, 4))
        saved, reference = (read_checkpoint(run / 'last.pth.tar') for run in (resumed, whole))
        for key in ('state_dict', 'state_dict_ema', 'optimizer', 'metric'):
            assert_equal(saved.get(key), reference.get(key), key)
        for row, other in zip(rows, expected, strict=True):
            assert {name: value for name, value in row.items() if value} == {
                name: value for name, value in other.items() if value
            }


def test_the_warm_up_is_the_run_with_one_copy(train):
    """Until it ends, nothing tells a run with four copies from one with the plain augmentation."""
    options = ('--maxup-warmup-epochs', 1, '--epochs', 2, '--exact-resume', '--maxup-aug', 'cutmix', '--cutmix', 1.0)
    four = train('--maxup', 4, *options, experiment='four')
    one = train('--maxup', 1, *options, experiment='one')
    states = [read_checkpoint(run / 'checkpoint-0.pth.tar')['state_dict'] for run in (four, one)]
    assert_equal(*states)
    losses = [read_summary(run)[1]['train_loss'] for run in (four, one)]
    assert float(losses[0]) > float(losses[1])
