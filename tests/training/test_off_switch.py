"""With every method off, train.py trains what a plain loop over timm's library trains, bit for bit."""

import math
import warnings

import pytest
import torch
from timm import create_model
from timm.data import FastCollateMixup, create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationTask
from timm.utils import random_seed
from torch import nn

from tests.helpers.training import (
    CLASSES,
    CPU,
    assert_equal,
    gradients,
    make_batches,
    make_gradaug,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
)

EPOCHS = 2


def accumulated(num_batches, steps):
    """Batches of each update, the short rest included."""
    return [range(start, min(start + steps, num_batches)) for start in range(0, num_batches, steps)]


def plain_training(folder, *, model_name, opt, mixing=None, workers=0, steps=1, ema=False, sched='cosine', drop=0.0):
    """Two epochs by timm's library alone, with timm's defaults for what train.py's defaults are.

    Returns:
        (task, optimizer, summary rows as (train loss, learning rate)).
    """
    random_seed(42, 0)
    model = create_model(model_name, num_classes=CLASSES, in_chans=3, drop_rate=drop)
    config = resolve_data_config({'input_size': (3, 32, 32)}, model=model)
    dataset = create_dataset(
        '', root=folder, split='train', is_training=True, batch_size=16, seed=42, input_img_mode='RGB'
    )
    eval_set = create_dataset('', root=folder, split='val', is_training=False, batch_size=16, input_img_mode='RGB')
    mixup = FastCollateMixup(label_smoothing=0.1, num_classes=CLASSES, **mixing) if mixing else None
    common = dict(batch_size=16, mean=config['mean'], std=config['std'], num_workers=workers, device=CPU)
    loader = create_loader(
        dataset,
        input_size=config['input_size'],
        is_training=True,
        interpolation='random',
        collate_fn=mixup,
        re_mode='pixel',
        **common,
    )
    eval_loader = create_loader(
        eval_set,
        input_size=config['input_size'],
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        **common,
    )
    criterion = SoftTargetCrossEntropy() if mixing else LabelSmoothingCrossEntropy(smoothing=0.1)
    task = ClassificationTask(model, criterion, device=CPU, verbose=False)
    optimizer = create_optimizer_v2(model, opt=opt, lr=0.05, momentum=0.9, weight_decay=2e-5)
    if ema:
        task.setup_ema(decay=0.9)
    groups = accumulated(len(loader), steps)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched=sched, num_epochs=EPOCHS, warmup_epochs=0, min_lr=0, updates_per_epoch=len(groups)
    )
    rows, num_updates = [], 0
    for epoch in range(EPOCHS):
        task.train()
        losses = []
        sizes = [len(group) for group in groups for _ in group]
        for index, (input, target) in enumerate(loader):
            loss = task(input, target)['loss']
            (loss / sizes[index]).backward()
            losses.append(loss.item())
            if index in {group[-1] for group in groups}:
                optimizer.step()
                optimizer.zero_grad()
                num_updates += 1
                task.update_ema(step=num_updates)
                scheduler.step_update(num_updates)
        rows.append((math.fsum(losses) / len(losses), optimizer.param_groups[0]['lr']))
        task.eval()
        with torch.inference_mode():
            for evaluated in [model, *([task.get_eval_model(ema=True)] if ema else [])]:
                for input, _ in eval_loader:  # its workers' seeds are drawn from the same stream
                    evaluated(input)
        if epoch + 1 < EPOCHS:  # the last checkpoint has the rates of its epoch
            scheduler.step(epoch + 1)
    return task, optimizer, rows


CASES = {
    'plain': (
        {'model_name': 'test_resnet', 'opt': 'sgd'},
        [],
    ),
    'mixing, moving average, accumulation with a rest': (
        {
            'model_name': 'test_efficientnet',
            'opt': 'adamw',
            'mixing': {'mixup_alpha': 0.4, 'cutmix_alpha': 1.0, 'prob': 0.8},
            'steps': 3,
            'ema': True,
            'drop': 0.2,
        },
        [
            *('--model', 'test_efficientnet', '--opt', 'adamw', '--drop', 0.2, '--grad-accum-steps', 3),
            *('--mixup', 0.4, '--cutmix', 1.0, '--mixup-prob', 0.8, '--model-ema', '--model-ema-decay', 0.9),
        ],
    ),
    'workers': (
        {'model_name': 'test_resnet', 'opt': 'sgd', 'workers': 2},
        ['--workers', 2],
    ),
}


@pytest.mark.parametrize('case', CASES)
@pytest.mark.few(2)
def test_methods_off_is_a_plain_loop_over_timm(case, train, image_folder):
    settings, options = CASES[case]
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'unclosed file', ResourceWarning)
        task, optimizer, rows = plain_training(image_folder, **settings)
    folder = train(*options)
    saved = read_checkpoint(folder / 'last.pth.tar')
    assert_equal(saved['state_dict'], task.trainable_module.state_dict())
    assert_equal(saved['optimizer'], optimizer.state_dict())
    if settings.get('ema'):
        assert_equal(saved['state_dict_ema'], task.get_eval_model(ema=True).module.state_dict())
    summary = [(float(row['train_loss']), float(row['lr'])) for row in read_summary(folder)]
    assert summary == [(pytest.approx(loss, rel=1e-6), pytest.approx(lr, rel=1e-12)) for loss, lr in rows]


def test_subnetworks_that_weigh_nothing_leave_the_plain_run(train):
    """They run, but 1e-60 is 0 in float32."""
    common = ['--model', 'test_efficientnet', '--drop', 0.2, '--drop-path', 0.2, '--labels-per-class', 8]
    plain = read_checkpoint(train(*common, experiment='plain') / 'last.pth.tar')
    weightless = ['--gradaug', 3, '--gradaug-weight', 1e-60]
    other = read_checkpoint(train(*common, *weightless, experiment='other') / 'last.pth.tar')
    assert_equal(other['state_dict'], plain['state_dict'])


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'test_vit'])
def test_subnetwork_at_width_one_without_transform_is_the_full_network(name):
    kwargs = {'img_size': 32} if name == 'test_vit' else {}
    model = make_model(name, dtype=torch.float32, **kwargs)
    gradaug = make_gradaug(num_subnetworks=1, min_width=1.0, transforms=(), targets='hard')
    task = make_task(model, gradaug=gradaug)
    [(input, target)] = make_batches(1, dtype=torch.float32)
    results, found = [], []
    for _, term in task.loss_terms(input, target):
        model.zero_grad()
        results.append(term())
        results[-1]['loss'].backward()
        found.append(gradients(model))
    full, sub = results
    assert_equal(sub['output'], full['output'])
    assert_equal(sub['loss'], full['loss'])
    assert_equal(found[1], found[0])
    assert full['output'].std() > 1e-3


def test_soft_loss_of_the_full_network_against_itself_is_zero():
    gradaug = make_gradaug(num_subnetworks=1, min_width=1.0, transforms=())
    task = make_task(make_model(dtype=torch.float32), nn.CrossEntropyLoss(), gradaug=gradaug)
    [batch] = make_batches(1, dtype=torch.float32)
    _, (_, sub) = task.loss_terms(*batch)
    with pytest.raises(KeyError):
        sub()  # the full network runs first
    (_, full), (_, sub) = task.loss_terms(*batch)
    full()
    assert abs(sub()['loss'].item()) < 1e-6
