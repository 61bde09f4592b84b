"""Which images a model can take, found out from shapes alone."""

import pytest
import timm
import torch

from regaug.slimmable import SlimmablePlan
from regaug.slimmable.shapes import shape_error
from regaug.slimmable.trace import run_shapes
from tests.helpers.training import CLASSES


def test_a_fixed_size_is_a_reason_and_a_free_one_is_not():
    fixed = timm.create_model('test_vit', num_classes=CLASSES, img_size=64, dynamic_img_size=False)
    assert shape_error(fixed, (3, 64, 64)) is None
    assert '32' in shape_error(fixed, (3, 32, 32))


def test_a_trial_moves_no_generator():
    model = timm.create_model('test_efficientnet', num_classes=CLASSES, drop_rate=0.5)
    before = torch.get_rng_state()
    assert shape_error(model, (3, 64, 64)) is None
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_models_with_fast_norm_train_and_are_planned(train):
    try:
        folder = train('--model', 'test_convnext', '--fast-norm', '--epochs', 1, '--gradaug', 1, '--gradaug-sizes', 32)
        model = timm.create_model('test_convnext', num_classes=CLASSES)
    finally:
        timm.layers.set_fast_norm(False)
    assert (folder / 'last.pth.tar').exists()
    assert any(getattr(part, '_fast_norm', False) for part in model.modules())
    assert SlimmablePlan(model, (3, 32, 32)).layers


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('training', [True, False])
def test_shapes_of_batch_norm_are_those_that_pytorch_finds(training, layout):
    batch_norm = torch.ops.aten.native_batch_norm.default
    input = torch.empty(2, 5, 3, 4, device='meta').to(memory_format=layout)
    parts = torch.empty(4, 5, device='meta').unbind()
    outputs, expected = (call(input, *parts, training, 0.1, 1e-5) for call in (own_batch_norm, batch_norm))
    assert [(out.shape, out.stride(), out.dtype) for out in outputs] == [
        (out.shape, out.stride(), out.dtype) for out in expected
    ]
    with pytest.raises(RuntimeError):
        own_batch_norm(input, torch.empty(4, device='meta'), *parts[1:], training, 0.1, 1e-5)


def own_batch_norm(*args):
    return run_shapes(torch.ops.aten.native_batch_norm.default, args, {})
