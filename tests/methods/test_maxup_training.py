"""MaxUp through train.py: with what timm offers, through phases and resuming, on two ranks, with frozen batch-norm."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm.task.distillation
import torch
from timm import create_model

from regaug.errors import OptionError
from regaug.methods.maxup import create_maxup
from regaug.training.criterion import create_criterion
from regaug.training.phases import phase_at
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

MAXUP = ('--maxup', 3, '--maxup-warmup-epochs', 0, '--epochs', 1)
METRICS = [
    *('train_maxup_passes', 'train_maxup_chosen_loss', 'train_maxup_mean_loss'),
    *('train_maxup_share1', 'train_maxup_share2', 'train_maxup_share3', 'train_maxup_lambda'),
]


def assert_metrics_make_sense(row, passes=3):
    """An epoch's metrics: the shares of the copies, a chosen loss above the mean, lambda between 0 and 1."""
    values = {name: float(row[name]) for name in ('train_loss', *METRICS)}
    assert all(np.isfinite(value) for value in values.values()), values
    assert values['train_maxup_passes'] == passes
    assert sum(values[f'train_maxup_share{number}'] for number in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert values['train_maxup_chosen_loss'] > values['train_maxup_mean_loss'] > 0
    assert 0 < values['train_maxup_lambda'] <= 1


# --- what must not matter -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor that is not a leaf')  # dynamo asks for it
@pytest.mark.parametrize(
    ('options', 'tolerance'),
    [
        (['--model-ema'], 0),
        pytest.param(['--torchcompile', 'eager', '--model', 'test_resnet'], 0, marks=pytest.mark.slow),
        (['--channels-last'], 1e-3),
        (['--amp', '--amp-dtype=bfloat16'], 0.03),
        pytest.param(['--torchcompile', 'aot_eager', '--model', 'test_resnet'], 1e-3, marks=pytest.mark.slow),
        pytest.param(['--torchcompile', 'eager'], 0, marks=pytest.mark.slow),
    ],
)
@pytest.mark.few(1)
def test_timms_options_of_execution_change_no_choice(options, tolerance, train):
    """One small update: the metrics of the choice are those without the option, up to rounding."""
    common = [*MAXUP, '--lr', 1e-6, '--model', 'test_efficientnet', '--drop', 0.2, '--drop-path', 0.2]
    plain = train(*common, *options[2:], experiment='plain')  # without what is under test
    folder = train(*common, *options, experiment='other')
    ([row], [expected]) = (read_summary(run) for run in (folder, plain))
    assert_metrics_make_sense(row)
    for name in ('train_loss', 'train_maxup_chosen_loss', 'train_maxup_mean_loss', 'train_maxup_lambda'):
        assert float(row[name]) == pytest.approx(float(expected[name]), rel=tolerance, abs=0), name
    if not tolerance:
        states = [read_checkpoint(run / 'last.pth.tar')['state_dict'] for run in (folder, plain)]
        assert_equal(*states)
    if '--model-ema' in options:
        saved = read_checkpoint(folder / 'last.pth.tar')
        assert list(saved['state_dict_ema']) == list(saved['state_dict'])


def test_an_augmentation_of_no_strength_leaves_the_plain_run_bit_for_bit(train):
    """Noise of deviation 0: scoring copies that are the images themselves leaves no trace in any number."""
    common = ['--model', 'test_efficientnet', '--drop', 0.2, '--drop-path', 0.2, '--reprob', 0.3]
    plain = train(*common, experiment='plain')
    expected = read_checkpoint(plain / 'last.pth.tar')
    for copies in (1, 3):
        silent = ['--maxup', copies, '--maxup-aug', 'gauss', '--gauss-sigma', 0, '--maxup-warmup-epochs', 0]
        other = train(*common, *silent, experiment=f'of-{copies}')
        saved = read_checkpoint(other / 'last.pth.tar')
        assert_equal(
            {key: saved[key] for key in ('state_dict', 'optimizer', 'metric')},
            {key: expected[key] for key in ('state_dict', 'optimizer', 'metric')},
        )
        for row, plain_row in zip(read_summary(other), read_summary(plain), strict=True):
            assert {name: row[name] for name in plain_row} == plain_row
            assert float(row['train_maxup_passes']) == (copies if copies > 1 else 0)


# --- together with --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'options',
    [
        ['--grad-accum-steps', 3, '--batch-size', 8, '--clip-grad', 1.0],
        ['--bce-loss'],
        ['--bce-loss', '--bce-sum', '--bce-target-thresh', 0.2, '--bce-pos-weight', 2.0],
        ['--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3],
        ['--grad-checkpointing', '--no-prefetcher'],
        ['--train-img-sizes', 24, 32, '--train-batch-sizes', 12, 8],
        ['--maxup-aug', 'mixup', '--mixup', 0.4, '--mixup-prob', 0.7],
        ['--maxup-aug', 'cutmix+gauss', '--cutmix-minmax', 0.2, 0.8],
        ['--maxup-aug', 'cutout', '--cutout-size', 20, '--smoothing', 0],
        ['--maxup-aug', 'cutout', '--bce-loss'],
        ['--maxup-aug', 'views+cutmix', '--cutmix', 1.0, '--aa', 'rand-m9-mstd0.5', '--reprob', 0.5],
        ['--maxup-score', 'excess'],
        ['--gradaug', 2, '--model-ema', '--grad-accum-steps', 2],
        ['--dist-bn', 'reduce', '--clip-mode', 'agc', '--clip-grad', 0.1],
    ],
)
@pytest.mark.few(3)
def test_maxup_trains_together_with_timms_options(options, train):
    maxup = list(MAXUP) if '--maxup-aug' in options else [*MAXUP, '--maxup-aug', 'cutmix', '--cutmix', 1.0]
    folder = train(*maxup, *(['--cutmix', 1.0] if 'cutmix+gauss' in options else []), *options)
    [row] = read_summary(folder)
    if 'excess' in options:  # another copy than that of the largest loss may be the choice
        assert float(row['train_maxup_passes']) == 3
        assert float(row['train_maxup_chosen_loss']) > 0
    else:
        assert_metrics_make_sense(row)
    if '--gradaug' in options:
        assert float(row['train_sub1_loss']) > 0 and float(row['train_sub2_width']) == 0.9
    state = read_checkpoint(folder / 'last.pth.tar')['state_dict']
    assert list(state) == list(create_model('test_resnet', num_classes=CLASSES).state_dict())
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize('kind', ['logit', 'feature', 'token'])
def test_distillation_scores_the_student_by_the_criterion_of_the_task(kind, train, monkeypatch):
    def untrained(model_name, pretrained=False, **kwargs):
        torch.manual_seed(5)
        return create_model(model_name, **kwargs)

    monkeypatch.setattr(timm.task.distillation, 'create_model', untrained)
    options = ['--kd-model-name', 'test_efficientnet', '--kd-distill-type', kind, '--lr', 1e-9]
    if kind == 'token':
        options += ['--model', 'deit_tiny_distilled_patch16_224', '--model-kwargs', 'img_size=32', 'depth=2']
    folder = train(*MAXUP, *options, '--exact-resume')
    [row] = read_summary(folder)
    assert_metrics_make_sense(row)
    assert float(row['train_distill_loss' if kind == 'token' else 'train_kd_loss']) > 0
    # Under batch-norm a sample has other company in training than in scoring; the transformer has none.
    tolerance = 1e-5 if kind == 'token' else 0.2
    assert float(row['train_task_loss']) == pytest.approx(float(row['train_maxup_chosen_loss']), rel=tolerance)


def test_a_model_that_a_pass_would_change_is_refused_before_training(train, tmp_path):
    model = ['--model', 'test_efficientnet', '--model-kwargs', 'norm_layer=evonormb0']
    with pytest.raises(OptionError, match=r"^--maxup 3 with --model test_efficientnet: .*buffer 'bn1\.running_var'"):
        train(*MAXUP, *model)
    assert list(tmp_path.iterdir()) == []
    train(*MAXUP, *model, '--maxup', 1)


# --- phases -------------------------------------------------------------------------------------------------------


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


# --- Weights & Biases ---------------------------------------------------------------------------------------------


def test_every_log_interval_has_the_metrics_of_the_choice(train, monkeypatch):
    import wandb

    logged = []
    run = SimpleNamespace(define_metric=lambda *args, **kwargs: None, log=logged.append, finish=lambda: None)
    monkeypatch.setattr(wandb, 'init', lambda **kwargs: run)
    options = ('--maxup', 3, '--maxup-warmup-epochs', 1, '--epochs', 2, '--log-interval', 1)
    summary = read_summary(train(*options, '--log-wandb', '--wandb-project', 'test'))
    steps = [row for row in logged if 'update' in row]
    assert [row['update'] for row in steps] == list(range(1, 9))
    for row in steps[:4]:
        assert sorted(name for name in row if 'maxup' in name) == ['step/maxup_lambda', 'step/maxup_passes']
        assert row['step/maxup_passes'] == 0
    names = [name.removeprefix('train_') for name in METRICS]
    for row in steps[4:]:
        assert sorted(name for name in row if 'maxup' in name) == sorted(f'step/{name}' for name in names)
    for epoch, rows in ((0, steps[:4]), (1, steps[4:])):
        for name in names if epoch else ('maxup_lambda', 'maxup_passes'):
            average = np.mean([row[f'step/{name}'] for row in rows])
            assert average == pytest.approx(float(summary[epoch][f'train_{name}']), rel=1e-5), name
    epochs = [row for row in logged if 'eval_top1' in row]
    assert [set(METRICS) <= set(row) for row in epochs] == [False, True]
