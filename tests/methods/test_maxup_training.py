"""MaxUp through train.py: with what timm offers, with frozen batch-norm, and what W&B gets."""

from types import SimpleNamespace

import numpy as np
import pytest
import timm.task.distillation
import torch
from timm import create_model

from regaug.errors import OptionError
from tests.helpers.maxup import METRICS, assert_metrics_make_sense
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    read_checkpoint,
    read_summary,
)

MAXUP = ('--maxup', 3, '--maxup-warmup-epochs', 0, '--epochs', 1)

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
@pytest.mark.few(1)
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


@pytest.mark.few(1)
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
