"""Scouts through train.py: exact where nothing is saved, named and compared where something is, refused by name."""

import re

import pytest

from regaug import methods
from regaug.errors import OptionError
from regaug.methods import scouts
from regaug.training.model import build_model
from tests.helpers.options import assert_refused
from tests.helpers.training import (
    CLASSES,
    assert_equal,
    assert_same_training,
    follow_log,
    read_checkpoint,
    read_summary,
    train_args,
)

METHODS = {
    'maxup': ('--maxup', 3, '--maxup-warmup-epochs', 0, '--cutmix', 1.0),
    'uada': ('--uada', '--uada-groups', 'policy', 'flip'),
}
by_method = pytest.mark.parametrize('method', METHODS)
BFLOAT16 = ('--amp', '--amp-dtype', 'bfloat16')
HALF = ('--model-dtype', 'bfloat16', '--opt', 'adamw', '--lr', 1e-3)
SIZES = ('--train-img-sizes', 24, 32, '--train-batch-sizes', 12, 8)
COMMON = ('--model', 'test_efficientnet', '--drop', 0.2, '--drop-path', 0.2)  # images of 32 pixels


def approximations(log):
    return [record.message for record in log.records if 'approximation' in record.message]


@by_method
@pytest.mark.parametrize(
    ('common', 'options'),
    [
        ((), ('--score-size', 32)),
        ((), ('--score-size', 0.99)),  # which is rounded to all of it
        pytest.param(*(SIZES, ('--score-size', 32)), marks=pytest.mark.slow),
        (BFLOAT16, ('--score-size', 1, '--score-dtype', 'bfloat16')),
        pytest.param(*(HALF, ('--score-dtype', 'bfloat16')), marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.few(1)
def test_the_size_and_number_format_of_training_are_the_exact_method_bit_for_bit(
    method, common, options, train, caplog
):
    log = follow_log(caplog)
    run = (*METHODS[method], *COMMON, '--epochs', 1, *common)
    exact, scouted = train(*run, experiment='exact'), train(*run, *options, experiment='scouted')
    saved, expected = (read_checkpoint(folder / 'last.pth.tar') for folder in (scouted, exact))
    for key in ('state_dict', 'optimizer', 'metric'):
        assert_equal(saved[key], expected[key])
    assert read_summary(scouted) == read_summary(exact)
    assert approximations(log) == []


@by_method
@pytest.mark.parametrize(
    ('options', 'how'),
    [
        (('--score-size', 0.5), 'at 16 pixels'),
        (('--score-dtype', 'bfloat16'), 'in bfloat16'),
        ((*BFLOAT16, '--score-dtype', 'float16', '--score-size', 0.75), 'at 24 pixels in float16'),
        ((*SIZES, '--score-size', 0.5), 'at 12 or 16 pixels'),
    ],
    ids=str,
)
@pytest.mark.few(1)
def test_an_approximation_is_named_at_the_start_and_compared_in_the_first_update(method, options, how, train, caplog):
    log = follow_log(caplog)
    folder = train(*METHODS[method], *COMMON, *options, '--refine-epochs', 1, '--log-interval', 1)
    [line] = approximations(log)
    name = {'maxup': 'MaxUp', 'uada': 'UADA'}[method]
    assert line.startswith(f'{name}: candidates are scored {how}, an approximation; every 500 updates')
    messages = [record.message for record in log.records]
    lines = [message for message in messages if message.startswith('Train: ')]
    assert messages.index(line) < messages.index(lines[0])
    label = method.capitalize()
    assert re.search(rf'  {label} agreement: \S+  ', lines[0]) and re.search(rf'  {label} gain kept: \S+', lines[0])
    first, *others = read_summary(folder)
    columns = [f'train_{method}_agreement', f'train_{method}_gain_kept']
    assert 0 < float(first[columns[0]]) <= 1
    assert -1 < float(first[columns[1]]) <= 1.5
    assert len(others) == 2 and all(row[column] == '' for row in others for column in columns)
    state = read_checkpoint(folder / 'last.pth.tar')['state_dict']
    assert all(value.isfinite().all() for value in state.values())


@by_method
@pytest.mark.few(1)
def test_scouts_train_another_network_than_exact_scores(method, train):
    """Else an option that is dropped on its way would not be missed."""
    run = (*METHODS[method], '--epochs', 1)
    folders = [
        train(*run, *options, experiment=f'run-{number}')
        for number, options in enumerate([(), ('--score-size', 0.5), ('--score-dtype', 'bfloat16')])
    ]
    losses = [
        read_summary(folder)[0][f'train_{"maxup_mean_loss" if method == "maxup" else "uada_gain"}']
        for folder in folders
    ]
    assert len(set(losses)) == 3


@by_method
@pytest.mark.slow
def test_it_resumes_exactly_with_comparisons_in_the_middle_of_epochs(method, train, monkeypatch):
    monkeypatch.setattr(scouts, 'COMPARED_EVERY', 3)
    options = (*METHODS[method], *COMMON, '--exact-resume', '--epochs', 3, '--score-size', 0.5)
    whole = train(*options, experiment='whole')
    agreements = [row[f'train_{method}_agreement'] for row in read_summary(whole)]
    assert '' not in agreements and len(set(agreements)) > 1
    for epoch in (0, 1):
        resumed = train(*options, '--resume', whole / f'checkpoint-{epoch}.pth.tar', experiment=f'resumed-{epoch}')
        assert_same_training(resumed, whole, from_epoch=epoch + 1)


# --- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('switch', ['--maxup 4', '--uada'])
@pytest.mark.parametrize(
    ('options', 'parts'),
    [
        ('--score-size 0', ['--score-size 0', 'positive']),
        ('--score-size -0.5', ['--score-size -0.5', 'positive']),
        ('--score-size 1.5', ['--score-size 1.5', 'whole numbers']),
        ('--score-size 177', ['--score-size 177', 'training size, 176']),  # resnet10t's own
        ('--score-size 32 --img-size 28', ['--score-size 32', 'training size, 28']),
        ('--score-size 32 --train-img-sizes 16 24', ['--score-size 32', 'training size, 24']),
        ('--score-size half', ['--score-size', "'half'"]),
        ('--score-dtype float64', ['--score-dtype', "'float64'", 'bfloat16']),
    ],
)
def test_what_cannot_work_is_refused_by_option_and_value(switch, options, parts):
    assert_refused(f'{switch} {options}', parts)


def created(*options, input_size=(3, 32, 32)):
    """The methods as train.py creates them for these options."""
    args = train_args('--num-classes', CLASSES, *options)
    config = {'input_size': input_size, 'mean': (0.5,) * 3, 'std': (0.25,) * 3}
    return methods.create_methods(args, build_model(args), config)


@by_method
def test_sizes_that_the_model_cannot_take_are_refused_before_anything_is_written(method, train, tmp_path):
    vit = (
        *METHODS[method],
        '--model',
        'test_vit',
        '--input-size',
        3,
        64,
        64,
        '--model-kwargs',
        'img_size=64',
        'dynamic_img_size=False',
    )
    for given, shown in ((32, '32'), (0.5, '0.5, which is 32')):
        with pytest.raises(
            OptionError, match=rf'^--score-size {shown}: VisionTransformer cannot .*dynamic_img_size'
        ) as caught:
            train(*vit, '--score-size', given)
        assert '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert created(*vit[:-1], '--score-size', 32, input_size=(3, 64, 64))
    assert created(*vit, '--score-size', 1, input_size=(3, 64, 64))


@pytest.mark.parametrize('switch', [('--maxup', 4), ('--uada',)])
def test_sizes_above_that_of_a_model_whose_size_only_its_download_tells_are_refused(switch):
    with pytest.raises(OptionError, match=r'^--score-size 48: above the training size, 32 pixels'):
        created(*switch, '--model', 'test_resnet', '--score-size', 48)


def test_batch_norm_without_anything_to_average_is_refused():
    options = ('--model', 'resnet18', '--batch-size', 1, '--img-size', 64, '--maxup', 4)
    with pytest.raises(OptionError, match=r'--batch-size 1: .*at --score-size 32'):
        created(*options, '--score-size', 32, input_size=(3, 64, 64))
    assert created(*options, '--score-size', 32, '--freeze-bn', input_size=(3, 64, 64))


@pytest.mark.parametrize('line', ['--maxup 1', '--uada --uada-epsilon 0'])
def test_where_nothing_is_scored_nothing_is_approximated(line, train, caplog):
    log = follow_log(caplog)
    train(*line.split(), '--score-size', 0.5, '--epochs', 1)
    assert approximations(log) == []
