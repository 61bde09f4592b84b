"""Risk on training images: clean against the evaluation loss, augmented against images mixed by hand."""

import random

import numpy as np
import pytest
import torch
import yaml
from timm.data import create_transform
from torch.nn import functional

from regaug.options import args_as_yaml, parse_train
from regaug.seeds import derived_seed
from tests.helpers.validate import NUM_CLASSES, PER_CLASS, PIXELS, make_model, prepare_images, save_grey_model

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none
COLUMNS = ['risk_clean', 'risk_crop_flip', 'risk_augmented']


@pytest.fixture
def args_yaml(folder, tmp_path):
    """Writes args.yaml as a training run on the folder does."""

    def args_yaml(*options, data=None, **changes):
        common = [
            '--model',
            'test_resnet',
            '--num-classes',
            NUM_CLASSES,
            '--img-size',
            PIXELS,
            '--train-split',
            'train',
        ]
        data = data or ['--data-dir', folder]
        args = parse_train([str(part) for part in (*data, *common, '--device', 'cpu', *options)])
        vars(args).update(changes)
        path = tmp_path / 'args.yaml'
        path.write_text(args_as_yaml(args))
        return path

    return args_yaml


PLAIN = ['--no-aug', '--smoothing', 0]
MIXED = ['--mixup', 0.8, '--cutmix', 1.0, '--aa', 'rand-m9-inc1', '--reprob', 0.5, '--smoothing', 0.1]


def test_clean_risk_is_the_evaluation_loss_on_the_training_split(run, model, checkpoint, folder, args_yaml):
    row = run('--checkpoint', checkpoint, '--risk', args_yaml(*PLAIN))
    loss = run('--checkpoint', checkpoint, '--ece', '--split', 'train')['nll']
    input, target = prepare_images(folder, 'train')
    with torch.no_grad():
        by_hand = float(functional.cross_entropy(model(input), target))
    assert row['risk_clean'] == pytest.approx(1000 * loss, rel=1e-4)
    assert row['risk_clean'] == pytest.approx(1000 * by_hand, rel=1e-5)
    assert list(row)[5:8] == COLUMNS


def test_risk_of_a_run_without_augmentation_is_clean_but_for_the_crop(run, checkpoint, args_yaml):
    """timm's `--no-aug` resizes and crops without randomness; at crop_pct 1 that is the evaluation transform."""
    row = run('--checkpoint', checkpoint, '--risk', args_yaml(*PLAIN, '--crop-pct', 1.0), '--crop-pct', 1.0)
    assert row['risk_augmented'] == pytest.approx(row['risk_clean'], rel=1e-6)


def test_augmented_risk_equals_images_mixed_by_hand(run, model, checkpoint, folder, args_yaml):
    """Mixup of lam with the batch's reverse, in batches of 16 in the order of the seed."""
    path = args_yaml(*PLAIN, '--crop-pct', 0.95, '--mixup', 0.7)
    row = run('--checkpoint', checkpoint, '--risk', path, '-b', 16)
    input, target = prepare_images(folder, 'train')
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(42))
    loss, state = 0.0, np.random.get_state()
    for number, batch in enumerate(order.split(16)):
        np.random.seed(derived_seed('risk batch', 42, number) % 2**32)
        np.random.rand()  # timm decides whether to mix
        lam = np.random.beta(0.7, 0.7)
        images, labels = input[batch], functional.one_hot(target[batch], NUM_CLASSES).float()
        images = lam * images + (1 - lam) * images.flip(0)
        labels = lam * labels + (1 - lam) * labels.flip(0)
        with torch.no_grad():
            loss += float(functional.cross_entropy(model(images), labels, reduction='sum'))
    np.random.set_state(state)
    transform = create_transform(PIXELS, is_training=True, no_aug=True, use_prefetcher=False)
    crop_only = 'CenterCrop' in str(transform)
    assert crop_only, 'what --no-aug means'
    assert row['risk_augmented'] == pytest.approx(1000 * loss / len(target), rel=0.05)


def test_more_augmentation_means_more_risk_for_a_fitted_network(run, checkpoint, args_yaml):
    plain = run('--checkpoint', checkpoint, '--risk', args_yaml('--smoothing', 0))
    mixed = run('--checkpoint', checkpoint, '--risk', args_yaml(*MIXED))
    assert plain['risk_clean'] == mixed['risk_clean']
    assert plain['risk_crop_flip'] == mixed['risk_crop_flip'], 'crop and flip alone, whatever the run had'
    assert plain['risk_augmented'] != mixed['risk_augmented']


@pytest.mark.parametrize('options', [['-j', 2], ['--no-prefetcher']])
@pytest.mark.few(1)
def test_workers_do_not_change_what_is_drawn(run, checkpoint, args_yaml, options):
    path = args_yaml(*MIXED)
    row = run('--checkpoint', checkpoint, '--risk', path, *options)
    expected = run('--checkpoint', checkpoint, '--risk', path)
    assert [row[name] for name in COLUMNS] == pytest.approx([expected[name] for name in COLUMNS], rel=1e-6)


def test_drawing_leaves_the_generators_as_they_were(run, checkpoint, args_yaml):
    path = args_yaml(*MIXED)
    drawn = []
    for options in ([], ['--risk', path]):
        run('--checkpoint', checkpoint, *options)
        drawn.append((random.random(), np.random.rand()))
    assert drawn[0] == drawn[1]


def test_columns_of_every_width(run, checkpoint, args_yaml):
    rows = run('--checkpoint', checkpoint, '--risk', args_yaml(*MIXED), '--width', 1.0, 0.5)
    assert all(rows[0][name] != rows[1][name] for name in COLUMNS)


def test_subset_of_the_run_is_what_is_measured(run, model, checkpoint, folder, args_yaml):
    row = run('--checkpoint', checkpoint, '--risk', args_yaml(*PLAIN, '--labels-per-class', PER_CLASS - 1))
    assert row['risk_clean'] != run('--checkpoint', checkpoint, '--risk', args_yaml(*PLAIN))['risk_clean']


def test_bad_input_is_refused(refusal, checkpoint, folder, args_yaml, tmp_path):
    weights = ['--checkpoint', checkpoint]

    def complaint(*options, **kwargs):
        return refusal(*weights, '--risk', args_yaml(*options, **kwargs))

    other = tmp_path / 'other'
    for split in ('train', 'val'):
        (other / split).mkdir(parents=True)
        (other / split / 'class0').symlink_to(folder / 'val' / 'class0')
    assert str(other) in complaint(data=['--data-dir', other])
    assert 'regaug/digits' in complaint(data=['--dataset', 'regaug/digits'])
    assert '12 classes' in complaint(num_classes=12)
    assert '--uada' in complaint('--uada', '--reprob', 0, '--hflip', 0)
    assert '--maxup' in complaint('--maxup', 2)
    (tmp_path / 'broken.yaml').write_text(yaml.safe_dump({'no_such_option': 1}))
    assert 'no_such_option' in refusal(*weights, '--risk', tmp_path / 'broken.yaml')
    assert '--risk /nowhere' in refusal(*weights, '--risk', '/nowhere')
    assert '--test-pool' in refusal(*weights, '--risk', args_yaml(), '--test-pool')


def test_images_have_as_many_channels_as_in_the_run(run, args_yaml, tmp_path):
    row = run('--in-chans', 1, '--checkpoint', save_grey_model(tmp_path), '--risk', args_yaml('--in-chans', 1, *PLAIN))
    assert 0 < row['risk_clean'] < 1e4


def test_mixed_labels_are_those_of_the_outputs_that_are_kept(run, images, args_yaml, tmp_path):
    wide = make_model(images, seed=5, num_classes=25)
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, range(NUM_CLASSES))))
    options = ('--num-classes', 25, '--checkpoint', tmp_path / 'wide.pth', '--valid-labels', tmp_path / 'valid.txt')
    row = run(*options, '--risk', args_yaml(*PLAIN, '--mixup', 0.5, num_classes=None))
    assert row['risk_augmented'] != row['risk_crop_flip']
