"""GradAug together with what timm offers: checkpointing, autocast, compilation, moving average, options of train.py."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm import create_model
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask
from torch import nn

from tests.helpers.slimmable_oracle import make_generic
from tests.helpers.training import (
    CLASSES,
    assert_close,
    created_gradaug,
    gradients,
    gradients_at_updates,
    make_batches,
    make_droppy_model,
    make_engine,
    make_gradaug,
    make_model,
    make_task,
    read_checkpoint,
    read_summary,
)


def test_gradient_checkpointing_changes_no_gradient():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(2)
        model = make_model()
        model.set_grad_checkpointing(checkpointing)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        found.append(gradients_at_updates(optimizer, model))
        make_engine(make_task(model, gradaug=make_gradaug()), optimizer).train_one_epoch(0, make_batches(1))
    assert_close(found[1][0], found[0][0], tolerance=1e-9)


def test_forward_refuses_several_terms_under_gradient_checkpointing():
    """One backward pass over their sum would recompute all of them at the width of the last."""
    model = make_model()
    model.set_grad_checkpointing(True)
    with pytest.raises(RuntimeError, match='gradient checkpointing'):
        make_task(model, gradaug=make_gradaug())(*make_batches(1)[0])
    assert make_task(model)(*make_batches(1)[0])['loss'].isfinite()


def test_autocast_in_bfloat16_stays_near_float32_and_trains_float32_parameters():
    found = []
    for autocast in (None, partial(torch.autocast, 'cpu', torch.bfloat16)):
        torch.manual_seed(2)
        model = make_model(dtype=torch.float32)
        task = make_task(model, gradaug=make_gradaug(transforms=()))
        if autocast is not None:
            task.autocast = autocast
        (_, full), *subnets = task.loss_terms(*make_batches(1, size=16, dtype=torch.float32)[0])
        results = [full(), *(term() for _, term in subnets[:1])]
        sum(result['loss'] for result in results).backward()
        assert results[1]['output'].dtype == (torch.float32 if autocast is None else torch.bfloat16)
        assert results[1]['loss'].dtype == torch.float32
        found.append(torch.cat([gradient.flatten() for gradient in gradients(model).values()]))
    assert F.cosine_similarity(found[0], found[1], dim=0) > 0.98
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    'options',
    [
        ['--amp', '--amp-dtype', 'bfloat16'],
        ['--channels-last'],
        pytest.param(['--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3], marks=pytest.mark.slow),
        ['--grad-checkpointing'],
        ['--cutmix', 1.0, '--mixup-prob', 0.5, '--clip-grad', 1.0, '--grad-accum-steps', 2, '--bce-loss'],
    ],
)
@pytest.mark.few(1)
def test_gradaug_trains_together_with_timms_options(options, train):
    few = ('--epochs', 1, '--labels-per-class', 8)
    folder = train('--gradaug', 2, '--gradaug-transforms', 'rotate', 'scale', *few, *options)
    [row] = read_summary(folder)
    assert all(np.isfinite(float(row[f'train_{name}'])) for name in ('loss', 'sub1_loss', 'sub2_loss'))
    assert float(row['train_sub1_loss']) > 0


@pytest.mark.filterwarnings('ignore:The .grad attribute of a Tensor that is not a leaf')  # dynamo asks for it
@pytest.mark.slow
def test_compiled_subnetworks_run_at_the_width_that_is_set():
    """Once a width is compiled, another one must not silently run the code of the first."""
    outputs = []
    batches = make_batches(2, dtype=torch.float32)
    for compiled in (False, True):
        model, gradaug = created_gradaug('--model', 'test_resnet', '--gradaug-compile', 3, '--torchcompile', 'eager')
        gradaug.compile_kwargs = gradaug.compile_kwargs if compiled else None
        task = make_task(make_generic(model), gradaug=gradaug)
        outputs.append([])
        for update, batch in enumerate(batches):
            task.begin_update(update)
            results = [term() for _, term in task.loss_terms(*batch)]
            outputs[-1].append({result['width']: result['output'] for result in results[1:]})
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-5)
    widths = {width for results in outputs[1] for width in results}
    assert len(widths) > 2


def test_moving_average_optimiser_and_checkpoint_hold_the_plain_model_alone(train):
    model = make_droppy_model()
    task = make_task(model, gradaug=make_gradaug())
    task.setup_ema(decay=0.9)
    plain = ClassificationTask(model, nn.CrossEntropyLoss(), verbose=False)
    plain.setup_ema(decay=0.9)
    names = [name for name, _ in task.named_modules() if name != 'criterion']
    assert names == [name for name, _ in plain.named_modules() if name != 'criterion']
    assert list(task.state_dict()) == list(plain.state_dict())
    optimizer = create_optimizer_v2(task.get_trainable_module(), opt='sgd', lr=0.1)
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(model.parameters()))

    state = read_checkpoint(train('--gradaug', 2, '--model-ema', '--epochs', 1) / 'last.pth.tar')
    expected = create_model('test_resnet', num_classes=CLASSES).state_dict()
    for key in ('state_dict', 'state_dict_ema'):
        assert list(state[key]) == list(expected)
        assert all(state[key][name].shape == value.shape for name, value in expected.items())
