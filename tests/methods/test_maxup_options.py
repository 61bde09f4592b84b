"""Options of MaxUp: what is refused before any data is loaded, and the defaults that depend on other options."""

import pytest
import torch
import yaml
from timm import create_model

import regaug.training.run
from regaug.errors import OptionError
from regaug.options import parse_train
from regaug.options import timm_data_checks as data_checks
from tests.helpers.training import CLASSES, read_summary

BASE = ['--device', 'cpu', '--dataset', 'regaug/digits', '--model', 'resnet10t']

REFUSALS = [
    ('--maxup -1', ['--maxup -1', 'negative']),
    ('--maxup 2 --maxup-warmup-epochs -1', ['--maxup-warmup-epochs -1', 'negative']),
    ('--maxup 2 --cutout-size 0', ['--cutout-size 0', 'at least 1']),
    ('--maxup 2 --gauss-sigma -0.5', ['--gauss-sigma -0.5', 'negative']),
    ('--maxup 2 --mixup-prob 1.5', ['--mixup-prob 1.5', 'between 0 and 1']),
    # what the copies are made of
    ('--maxup 2 --maxup-aug cutmax', ['--maxup-aug cutmax', "'cutmax'", 'did you mean cutmix']),
    ('--maxup 2 --maxup-aug cutout+blur', ['--maxup-aug cutout+blur', "'blur'"]),
    ('--maxup 2 --maxup-aug cutout+', ['--maxup-aug cutout+', "''"]),
    ('--maxup 2 --maxup-aug=', ["--maxup-aug ''", "''"]),
    ('--maxup 2 --maxup-aug cutout,gauss', ['--maxup-aug cutout,gauss', "'cutout,gauss'"]),
    ('--maxup 2 --maxup-aug cutout+gauss+cutout', ['--maxup-aug cutout+gauss+cutout', 'once']),
    ('--maxup 2 --maxup-aug cutmix', ['--maxup-aug cutmix', '--cutmix', 'alpha']),
    ('--maxup 2 --maxup-aug cutmix --cutmix 0', ['--maxup-aug cutmix', '--cutmix', 'alpha']),
    ('--maxup 2 --maxup-aug gauss+cutmix', ['--maxup-aug gauss+cutmix', '--cutmix', 'alpha']),
    ('--maxup 2 --maxup-aug mixup', ['--maxup-aug mixup', '--mixup', 'alpha']),
    ('--maxup 2 --maxup-aug mixup+cutmix --cutmix 1', ['--maxup-aug mixup+cutmix', '--mixup', 'alpha']),
    ('--maxup 2 --maxup-aug cutout --cutmix 1', ['--maxup-aug cutout', '--cutmix 1', 'add cutmix']),
    ('--maxup 2 --maxup-aug cutout --cutmix-minmax 0.2 0.8', ['--maxup-aug cutout', '--cutmix-minmax 0.2 0.8']),
    ('--maxup 2 --maxup-aug gauss --mixup 0.2', ['--maxup-aug gauss', '--mixup 0.2', 'add mixup']),
    ('--maxup 2 --maxup-aug cutmix --cutmix 1 --mixup 0.2', ['--maxup-aug cutmix', '--mixup 0.2', 'add mixup']),
    ('--maxup 2 --mixup 0.2 --cutmix 1', ['--maxup-aug cutmix', '--mixup 0.2', 'add mixup']),
    ('--maxup 2 --mixup-mode pair --cutmix 1', ['--mixup-mode pair', '--maxup 2']),
    ('--maxup 2 --mixup-mode half', ['--mixup-mode half', '--maxup 2']),
    # views
    ('--maxup 2 --maxup-aug views --train-img-sizes 16 32', ['--maxup-aug views', '--train-img-sizes 16 32']),
    ('--maxup 2 --maxup-aug views --no-prefetcher', ['--maxup-aug views', '--no-prefetcher']),
    ('--maxup 2 --maxup-aug cutout+views --no-prefetcher', ['--maxup-aug cutout+views', '--no-prefetcher']),
    ('--maxup 2 --maxup-aug views --no-aug', ['--maxup-aug views', '--no-aug']),
    # other methods and loaders
    ('--maxup 2 --maxup-aug cutout --aug-splits 2', ['--maxup 2', '--aug-splits 2']),
    ('--maxup 2 --maxup-aug cutout --aug-splits 2 --jsd-loss', ['--maxup 2', '--jsd-loss']),
    ('--maxup 2 --aug-splits 2', ['--aug-splits 2']),
    ('--maxup 2 --naflex-loader', ['--maxup 2', '--naflex-loader']),
    ('--maxup 2 --torchscript', ['--maxup 2', '--torchscript']),
    ('--maxup 2 --uada', ['--maxup 2', '--uada']),
    ('--maxup 2 --manifold-mixup 1', ['--maxup 2', '--manifold-mixup 1']),
    # a warm-up that never ends
    ('--maxup 2 --maxup-warmup-epochs 10 --epochs 10', ['--maxup-warmup-epochs 10', '--maxup 2', '--epochs 10']),
    ('--maxup 2 --epochs 5', ['--maxup-warmup-epochs 5', '--maxup 2', '--epochs 5']),
]


@pytest.fixture(autouse=True)
def single_process(monkeypatch):
    for name in ('WORLD_SIZE', 'SLURM_NTASKS'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_data(monkeypatch):
    """Makes any building of a model or loading of data fail: what is refused must not get there."""

    def load(*args, **kwargs):
        raise AssertionError('something is loaded')

    for name in ('build_model', 'create_datasets', 'create_eval_loader'):
        monkeypatch.setattr(regaug.training.run, name, load)


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_work_is_refused_by_option_and_value_before_data_is_loaded(line, parts, train, no_data):
    with pytest.raises(OptionError) as caught:
        train('--model', 'resnet10t', '--epochs', 90, *line.split(' '))
    assert all(part in str(caught.value) for part in parts), str(caught.value)
    assert '\n' not in str(caught.value)
    assert str(caught.value).startswith('--')


def test_an_unknown_score_is_refused_with_the_choice(capsys):
    with pytest.raises((OptionError, SystemExit)) as caught:
        parse_train([*BASE, '--maxup', '2', '--maxup-score', 'entropy'])
    message = str(caught.value) + capsys.readouterr().err
    assert '--maxup-score' in message and 'entropy' in message and 'excess' in message


@pytest.mark.parametrize('prefix', ['hfids', 'tfds', 'wds'])
def test_views_of_a_stream_are_refused(prefix, monkeypatch):
    monkeypatch.setattr(data_checks, 'require_package', lambda *args: None)
    stream = [*BASE, '--dataset', f'{prefix}/x', '--data-dir', 's3://bucket/x', '--maxup', '3']
    with pytest.raises(OptionError) as caught:
        parse_train([*stream, '--maxup-aug', 'views'])
    assert '--maxup-aug views' in str(caught.value) and f'--dataset {prefix}/x' in str(caught.value)
    assert parse_train(stream).maxup_aug == 'cutmix'  # which needs no index


ACCEPTED = [
    '--maxup 1',
    '--maxup 10 --maxup-aug cutout --cutout-size 20',
    '--maxup 4 --maxup-aug cutmix+mixup+cutout+gauss+views --cutmix 1 --mixup 0.2',
    '--maxup 4 --maxup-aug cutmix --cutmix-minmax 0.2 0.8 --mixup-mode elem',
    '--maxup 4 --maxup-aug views --aa rand-m9 --reprob 0.25 --pad-crop 4',
    '--maxup 4 --train-img-sizes 16 32',
    '--maxup 4 --no-prefetcher --no-aug',
    '--maxup 4 --gradaug 2 --refine-epochs 3 --refine-fade 2 --mixup-off-epoch 80',
    '--maxup 4 --kd-model-name resnet18',
    '--maxup 4 --maxup-warmup-epochs 89 --epochs 90',
    '--maxup 4 --maxup-warmup-epochs 94 --epochs 90 --warmup-prefix --warmup-epochs 5',
    '--maxup 4 --epochs 0 --refine-epochs 2',
    '--maxup 4 --exact-resume --torchcompile --amp --channels-last --freeze-bn',
    '--maxup 0 --mixup 0.2 --cutmix 1 --mixup-mode pair',
    '--maxup 0 --torchscript --maxup-aug cutmix',  # off is off, whatever a recipe says
]


@pytest.mark.parametrize('line', ACCEPTED)
def test_what_works_is_accepted(line):
    args = parse_train([*BASE, '--epochs', '90', *line.split()])
    assert args.maxup == int(line.split()[1])


# --- defaults -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('line', 'aug', 'cutmix', 'mixup'),
    [
        ('--maxup 4', 'cutmix', 1.0, 0.0),
        ('--maxup 4 --cutmix 0.3', 'cutmix', 0.3, 0.0),
        ('--maxup 4 --cutmix-minmax 0.2 0.8', 'cutmix', 0.0, 0.0),
        ('--maxup 4 --mixup 0.2', 'mixup', 0.0, 0.2),
        ('--maxup 4 --maxup-aug cutout', 'cutout', 0.0, 0.0),
        ('--maxup 4 --maxup-aug views', 'views', 0.0, 0.0),
        ('--maxup 0', None, 0.0, 0.0),
        ('', None, 0.0, 0.0),
    ],
)
def test_maxup_alone_is_cutmix_and_with_mixup_alone_is_mixup(line, aug, cutmix, mixup):
    args = parse_train([*BASE, *line.split()])
    assert (args.maxup_aug, args.cutmix, args.mixup) == (aug, cutmix, mixup)


@pytest.mark.parametrize(
    ('line', 'epochs'),
    [
        ('', 5),
        ('--pretrained', 0),
        ('--initial-checkpoint weights.pth', 0),
        ('--pretrained --pretrained-path weights.pth', 0),
        ('--pretrained-path weights.pth', 0),
        ('--pretrained --maxup-warmup-epochs 3', 3),
        ('--maxup-warmup-epochs 0', 0),
        ('--resume auto', 5),
    ],
)
def test_warm_up_is_five_epochs_from_scratch_and_none_for_trained_weights(line, epochs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'weights.pth').write_text('')
    args = parse_train([*BASE, '--model', 'resnet18', '--maxup', '4', *line.split()])
    assert args.maxup_warmup_epochs == epochs


def test_what_the_defaults_became_is_in_args_yaml_and_reads_back_as_it_was(train, tmp_path):
    weights = tmp_path / 'weights.pth'
    torch.save(create_model('test_resnet', num_classes=CLASSES).state_dict(), weights)
    folder = train('--maxup', 4, '--epochs', 1, '--initial-checkpoint', weights, '--lr', 1e-3)
    recorded = yaml.safe_load((folder / 'args.yaml').read_text())
    expected = {'maxup': 4, 'maxup_aug': 'cutmix', 'maxup_warmup_epochs': 0, 'maxup_score': 'loss', 'cutmix': 1.0}
    assert {name: recorded[name] for name in expected} == expected
    again = parse_train(['-c', str(folder / 'args.yaml')])
    assert {name: value for name, value in vars(again).items() if name != 'config'} == recorded
    assert float(read_summary(folder)[0]['train_maxup_passes']) == 4


def test_a_recipe_that_sets_maxup_gets_its_defaults_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text('maxup: 4\nmixup: 0.4\nepochs: 20\n')
    args = parse_train(['-c', str(recipe), *BASE])
    assert (args.maxup_aug, args.cutmix, args.maxup_warmup_epochs) == ('mixup', 0.0, 5)
    args = parse_train(['-c', str(recipe), *BASE, '--mixup', '0', '--maxup-warmup-epochs', '1'])
    assert (args.maxup_aug, args.cutmix, args.maxup_warmup_epochs) == ('cutmix', 1.0, 1)
    args = parse_train(['-c', str(recipe), *BASE, '--maxup', '0'])
    assert (args.maxup_aug, args.cutmix, args.maxup_warmup_epochs) == (None, 0.0, None)
