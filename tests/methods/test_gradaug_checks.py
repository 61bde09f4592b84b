"""What GradAug's sub-networks can be given: sizes that the model takes, batches that batch-norm can average over."""

import pytest

from regaug.errors import OptionError
from tests.helpers.training import created_gradaug, make_gradaug


def test_a_size_that_the_model_cannot_take_is_refused():
    vit = ['--model', 'test_vit', '--model-kwargs', 'img_size=32']
    for options, hint in ((['dynamic_img_size=False'], 'dynamic_img_size'), ([], 'dynamic_img_pad')):
        with pytest.raises(OptionError, match=rf'^--gradaug-sizes 28: .*--model-kwargs {hint}=True'):
            created_gradaug(*vit, *options)
    with pytest.raises(OptionError, match=r'^--gradaug-sizes 24: .*dynamic_img_pad=True'):
        created_gradaug(*vit, '--gradaug-transforms', 'crop', '--gradaug-sizes', 32, 24)
    assert created_gradaug(*vit, '--gradaug-sizes', 32, 16)[1] is not None
    assert created_gradaug(*vit, 'dynamic_img_pad=True')[1] is not None
    assert created_gradaug(*vit, '--gradaug-transforms', 'flip')[1] is not None


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(OptionError, match=r'^--gradaug-sizes 40: '):
        created_gradaug('--model', 'test_resnet', '--gradaug-transforms', 'crop', '--gradaug-sizes', 32, 40)


def test_sizes_are_tried_for_every_size_of_the_training_images():
    vit = ['--model', 'test_vit', '--model-kwargs', 'dynamic_img_size=True', 'img_size=64', '--gradaug-sizes', 1, 0.75]
    assert created_gradaug(*vit, input_size=(3, 64, 64))[1] is not None  # 48 pixels, three patches
    with pytest.raises(OptionError, match=r'^--gradaug-sizes 36: '):  # of 48 pixels
        created_gradaug(*vit, '--train-img-sizes', 64, 48, input_size=(3, 64, 64))


def test_a_crop_of_a_smaller_batch_is_no_larger_than_its_images():
    gradaug = make_gradaug(transforms=('crop',), sizes=(32, 24))
    assert {draw.size for update in range(30) for draw in gradaug.draw(update, 28)} == {28, 24}
    assert {draw.size for update in range(30) for draw in gradaug.draw(update, 32)} == {32, 24}


@pytest.mark.parametrize(
    ('options', 'blamed'),
    [
        (('--batch-size', 1), '--batch-size 1'),
        (('--batch-size', 1, '--freeze-bn'), '--batch-size 1'),
        (('--batch-size', 1, '--freeze-bn', '--gradaug-transforms', 'flip'), '--batch-size 1'),
        (('--batch-size', 4, '--gradaug-batch-share', 0.25), '--batch-size 4 --gradaug-batch-share 0.25'),
        (
            ('--batch-size', 8, '--unlabeled-split', 'train', '--uratio', 0.25, '--gradaug-batch-share', 0.5),
            '--batch-size 8 --uratio 0.25 --gradaug-batch-share 0.5',
        ),
    ],
)
def test_sub_networks_whose_batch_norm_would_see_one_value_are_refused(options, blamed):
    with pytest.raises(OptionError) as caught:
        created_gradaug('--model', 'test_resnet', *options)
    assert str(caught.value) == f'{blamed}: batch-norm would see one value per channel at --gradaug-sizes 32.'


@pytest.mark.parametrize(
    'options',
    [
        ('--batch-size', 2),
        ('--batch-size', 8, '--gradaug-batch-share', 0.25),
        ('--batch-size', 8, '--unlabeled-split', 'train', '--uratio', 0.25),
        ('--batch-size', 8, '--unlabeled-split', 'train', '--uratio', 0),
        ('--batch-size', 1, '--model-kwargs', 'output_stride=8'),
    ],
)
def test_two_values_are_enough(options):
    assert created_gradaug('--model', 'test_resnet', *options)[1] is not None


def test_rotation_of_images_that_are_not_square_is_refused():
    with pytest.raises(OptionError, match=r'^--gradaug-transforms rotate: .*32x48'):
        created_gradaug('--model', 'test_resnet', '--gradaug-transforms', 'rotate', input_size=(3, 32, 48))
