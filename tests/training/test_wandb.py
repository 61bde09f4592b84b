"""Weights & Biases: a real offline run, read back with wandb's own tool."""

import contextlib
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_pre_hook

from regaug.training.task import RegAugTask
from regaug.training.wandb_log import WandbLog, caption
from tests.helpers.training import (
    assert_equal,
    read_checkpoint,
    read_summary,
    run_train,
    train_args,
)

PLAIN = ('--mixup', 1, '--cutmix', 1, '--mixup-off-epoch', 1, '--gradaug', 1, '--gradaug-min-width', 0.5, '--drop', 0.2)
OPTIONS = (
    *PLAIN,
    *('--log-wandb', '--wandb-project', 'flowers', '--wandb-tags', 'first', 'small', '--log-interval', 1),
)
UPDATES = 4  # of an epoch


def inspect(run_folder):
    """All records of an offline run, in order, as wandb itself reads them."""
    program = Path(sys.executable).parent / 'wandb'
    command = [str(program), 'leet', 'inspect', '--json', str(run_folder)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600).stdout
    return [json.loads(line) for line in output.splitlines()]


@pytest.fixture(scope='module')
def logged(image_folder, tmp_path_factory):
    """A run of two epochs and phases, with what was seen of it from outside.

    Attributes: folder, records, history (rows), run_folder, norms (of each update), batches (first of each epoch).
    """
    root = tmp_path_factory.mktemp('wandb')
    norms, batches = [], []
    choose_input = RegAugTask.choose_input

    def keep_batches(task, input, target):
        batches.append((input.clone(), target.clone()))
        return choose_input(task, input, target)

    def keep_norm(optimizer, args, kwargs):
        gradients = [p.grad for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        norms.append(math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients)))

    hook = register_optimizer_step_pre_hook(keep_norm)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of wandb and of files that timm leaves open
        patch.setattr(RegAugTask, 'choose_input', keep_batches)
        for name in [name for name in os.environ if name.startswith('WANDB_')]:
            patch.delenv(name)
        patch.setenv('WANDB_MODE', 'offline')
        patch.setenv('WANDB_DIR', str(root))
        patch.setenv('WANDB_SILENT', 'true')
        wandb.teardown()  # an earlier run in this process would decide on the folder
        try:
            folder = run_train(image_folder, root, *OPTIONS)
        finally:
            hook.remove()
    [run_folder] = (root / 'wandb').glob('offline-run-*')
    records = inspect(run_folder)
    return SimpleNamespace(
        folder=folder,
        run_folder=run_folder,
        records=records,
        history=[record['history']['item'] for record in records if record['type'] == 'history'],
        norms=norms,
        batches=batches[::UPDATES],
    )


def step_rows(logged):
    return [row for row in logged.history if 'update' in row]


# --- the run ------------------------------------------------------------------------------------------------------


def test_run_has_the_name_project_and_tags_of_the_options(logged):
    [run] = [record['run'] for record in logged.records if record['type'] == 'run']
    assert (run['display_name'], run['project'], sorted(run['tags'])) == ('run', 'flowers', ['first', 'small'])


def test_every_option_is_in_the_configuration(logged):
    [run] = [record['run'] for record in logged.records if record['type'] == 'run']
    config = run['config']['update']
    options = yaml.safe_load((logged.folder / 'args.yaml').read_text())
    assert set(options) <= set(config)
    differing = {name for name, value in options.items() if config[name] != value}
    assert differing == set()


def test_run_is_finished(logged):
    assert [record['exit']['exit_code'] for record in logged.records if record['type'] == 'exit'] == [0]


def test_each_metric_is_drawn_against_its_own_axis(logged):
    metrics = [record['metric'] for record in logged.records if record['type'] == 'metric']
    axes = {metric.get('glob_name') or metric['name']: metric.get('step_metric') for metric in metrics}
    assert axes == {
        'epoch': None,
        'update': None,
        'train_*': 'epoch',
        'eval_*': 'epoch',
        'lr': 'epoch',
        'phase': 'epoch',
        'step/*': 'update',
    }


# --- epochs -------------------------------------------------------------------------------------------------------


def test_epoch_metrics_have_timms_names_and_the_values_of_the_summary(logged):
    rows = [row for row in logged.history if 'eval_top1' in row]
    summary = read_summary(logged.folder)
    assert len(rows) == len(summary) == 2
    for row, expected in zip(rows, summary, strict=True):
        logged_row = {name: value for name, value in row.items() if not name.startswith('_')}
        assert list(expected)[:6] == ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']
        assert set(logged_row) == set(expected)
        assert logged_row.pop('phase') == expected['phase']
        assert logged_row == {name: pytest.approx(float(expected[name]), rel=1e-9) for name in logged_row}


# --- log intervals ------------------------------------------------------------------------------------------------


def test_every_log_interval_has_all_step_metrics(logged):
    rows = step_rows(logged)
    assert [row['update'] for row in rows] == list(range(1, 2 * UPDATES + 1))
    expected = {'loss', 'lr', 'images_per_second', 'data_wait_share', 'grad_norm', 'epoch', 'phase'}
    expected |= {f'sub1_{name}' for name in ('loss', 'agreement', 'width', 'size')}
    for row in rows:
        assert {name for name in row if not name.startswith('_')} == {'update', *(f'step/{name}' for name in expected)}


def test_step_metrics_average_to_those_of_the_epoch(logged):
    rows, summary = step_rows(logged), read_summary(logged.folder)
    for epoch in range(2):
        for name in ('loss', 'sub1_loss', 'sub1_agreement', 'sub1_width', 'sub1_size'):
            values = [row[f'step/{name}'] for row in rows[epoch * UPDATES : (epoch + 1) * UPDATES]]
            assert np.mean(values) == pytest.approx(float(summary[epoch][f'train_{name}']), rel=1e-5), name


def test_step_metrics_place_an_update_in_the_run(logged):
    rows = step_rows(logged)
    assert [row['step/epoch'] for row in rows] == [(index + 1) / UPDATES for index in range(2 * UPDATES)]
    assert [row['step/phase'] for row in rows] == ['main'] * UPDATES + ['unmixed'] * UPDATES
    cosine = [0.05 * (1 + math.cos(math.pi * epoch / 2)) / 2 for epoch in (0, 1)]
    assert [row['step/lr'] for row in rows] == pytest.approx([cosine[0]] * UPDATES + [cosine[1]] * UPDATES)


def test_speed_and_waiting_are_possible_numbers(logged):
    for row in step_rows(logged):
        assert 0 <= row['step/data_wait_share'] <= 1
        assert 0 < row['step/images_per_second'] < 1e5


def test_gradient_norm_is_that_of_all_gradients_at_the_update(logged):
    assert [row['step/grad_norm'] for row in step_rows(logged)] == pytest.approx(logged.norms, rel=1e-5)
    assert min(logged.norms) > 0


# --- pictures -----------------------------------------------------------------------------------------------------


def pictures(logged):
    """{name: (pixels [H, W, 3], caption)} of the logged pictures."""
    found = {}
    for row in logged.history:
        for key in [key for key in row if key.endswith('.path')]:
            name = key.removesuffix('.path')
            with Image.open(logged.run_folder / 'files' / row[key]) as image:
                found[name] = np.asarray(image.convert('RGB')).astype(int), row[f'{name}.caption']
    return found


def test_the_first_batch_of_each_phase_is_a_picture_in_its_own_colours(logged):
    found = pictures(logged)
    assert list(found) == ['batch/main', 'batch/unmixed']
    for (pixels, _), (input, _) in zip(found.values(), logged.batches, strict=True):
        expected = ((input * 0.5 + 0.5).clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy()
        for index in range(16):
            top, left = (2 + 34 * place for place in divmod(index, 4))  # 4 in a row, 2 pixels apart
            cell = pixels[top : top + 32, left : left + 32]
            assert np.abs(cell - expected[index]).max() <= 1.01, index


def test_pictures_have_the_labels_of_their_images(logged):
    found = pictures(logged)
    for (_, text), (_, target) in zip(found.values(), logged.batches, strict=True):
        assert [int(part.partition(':')[0]) for part in text.split()] == target.argmax(dim=1).tolist()
    mixed, unmixed = (text.split() for _, text in found.values())
    shares = [[float(part.partition(':')[2].partition('+')[0]) for part in texts] for texts in (mixed, unmixed)]
    assert min(shares[0]) < 0.9
    assert set(shares[1]) == {0.93}  # 0.9 + 0.1 / 4, smoothed


def test_labels_are_reported_as_classes_or_as_the_two_largest_shares():
    assert caption(torch.tensor([3, 1])) == '3 1'
    assert caption(torch.tensor([[0.1, 0.6, 0.3], [0.0, 0.0, 1.0]])) == '1:0.60+2 2:1.00+0'


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('options', 'expected'), [((), (None, None)), (('--wandb-resume-id', 'abc'), ('abc', 'must'))])
def test_a_resume_id_must_be_that_of_an_existing_run(monkeypatch, options, expected):
    import wandb

    given = {}

    def init(**kwargs):
        given.update(kwargs)
        return SimpleNamespace(define_metric=lambda *args, **kwargs: None)

    monkeypatch.setattr(wandb, 'init', init)
    WandbLog(train_args('--log-wandb', *options), name='run', mean=(0.5,), std=(0.5,))
    assert (given['id'], given['resume']) == expected


def test_logging_changes_no_weight(logged, train):
    plain = train(*PLAIN, '--log-interval', 1)
    states = [read_checkpoint(folder / 'last.pth.tar')['state_dict'] for folder in (logged.folder, plain)]
    assert_equal(*states)
    assert read_summary(logged.folder) == read_summary(plain)


def test_without_the_option_nothing_is_logged(train, monkeypatch, tmp_path):
    import wandb

    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    started = []
    monkeypatch.setattr(wandb, 'init', lambda **kwargs: started.append(kwargs))
    with contextlib.chdir(tmp_path):
        train('--epochs', 1)
    assert started == []
    assert not (tmp_path / 'wandb').exists()
