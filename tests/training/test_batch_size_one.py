"""`--batch-size 1`: an early error where batch-norm would see one value per channel, training everywhere else."""

import pytest
import torch

import train as train_script
from regaug.errors import OptionError
from regaug.slimmable.shapes import single_values
from tests.helpers.training import make_model, read_summary, train_argv

pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's readers close no files


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'test_vit', 'test_convnext', 'resnet18_cifar'])
@pytest.mark.parametrize('side', [32, 64])
def test_single_values_are_foretold_as_pytorch_finds_them(name, side):
    kwargs = {'dynamic_img_size': True} if name == 'test_vit' else {}
    model = make_model(name, torch.float32, **kwargs).train()
    try:
        model(torch.zeros(1, 3, side, side))
        expected = False
    except ValueError as error:
        assert 'more than 1 value per channel' in str(error)
        expected = True
    buffers = {key: value.clone() for key, value in model.named_buffers()}
    state = torch.get_rng_state()
    assert single_values(model, (3, side, side)) is expected
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, buffers[key]) for key, value in model.named_buffers())


@pytest.mark.parametrize(
    'options',
    [
        (),
        ('--grad-accum-steps', 2),
        ('--train-img-sizes', 64, 32, '--train-batch-sizes', 4, 1),
        ('--train-img-sizes', 64, 32),
        ('--aug-splits', 2, '--split-bn', '--jsd-loss', '--aa', 'rand-m9'),
    ],
)
def test_batch_norm_over_one_value_is_refused_before_anything_is_written(image_folder, tmp_path, options):
    with pytest.raises(OptionError) as caught:
        train_script.main(train_argv(image_folder, tmp_path / 'out', '--batch-size', 1, *options))
    message = str(caught.value)
    assert message.startswith('--batch-size 1: batch-norm of --model test_resnet would see one value per channel')
    assert '32x32' in message
    assert not (tmp_path / 'out').exists()


def test_sub_networks_on_smaller_images_are_tried_too(image_folder, tmp_path):
    options = ('--batch-size', 1, '--img-size', 64, '--gradaug', 2, '--gradaug-sizes', 64, 32)
    argv = train_argv(image_folder, tmp_path / 'out', *options)
    size = argv.index('--input-size')
    with pytest.raises(OptionError, match=r'--batch-size 1: .*at --gradaug-sizes 32'):
        train_script.main([*argv[:size], *argv[size + 4 :]])


@pytest.mark.parametrize(
    'options',
    [
        ('--model', 'test_vit', '--model-kwargs', 'dynamic_img_size=True'),
        ('--input-size', 3, 64, 64),
        ('--freeze-bn',),
        ('--aug-splits', 2, '--jsd-loss', '--aa', 'rand-m9'),
    ],
)
@pytest.mark.few(1)
def test_everything_else_trains_on_single_images(train, options):
    rows = read_summary(train('--batch-size', 1, '--epochs', 1, '--lr', 1e-4, *options))
    assert len(rows) == 1
