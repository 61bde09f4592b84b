"""Class activation maps: the classifier applied to the maps, and the pictures made of them."""

import numpy as np
import pytest
import torch
from PIL import Image

from regaug.evaluators.cam import PANEL, check_maps, class_maps, jet, overlay
from tests.helpers.evaluators import timm_network
from tests.helpers.validate import NUM_CLASSES, PER_CLASS, make_model

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none

LINEAR_ON_MAPS = {'test_resnet': 32, 'test_efficientnet': 32, 'regnetx_002': 64, 'swin_tiny_patch4_window7_224': 224}


@pytest.mark.few(3)
@pytest.mark.parametrize('name', LINEAR_ON_MAPS)
def test_mean_of_the_map_plus_bias_is_the_logit(name):
    network = timm_network(name)
    input = torch.randn(2, 3, LINEAR_ON_MAPS[name], LINEAR_ON_MAPS[name])
    with torch.no_grad():
        maps, output = class_maps(network, input), network(input)
        check_maps(network, input)
    classifier = network.get_classifier()
    assert maps.shape[:2] == (2, 4)
    assert torch.allclose(maps.mean((2, 3)) + classifier.bias, output, atol=1e-5)


def test_map_is_the_classifier_at_every_place():
    network = timm_network('test_resnet')
    input = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = class_maps(network, input)[0]
        features = network.forward_features(input)[0]
        classifier = network.get_classifier()
        for row, column in ((0, 0), (1, 0)):
            expected = classifier(features[:, row, column]) - classifier.bias
            assert torch.allclose(maps[:, row, column], expected, atol=1e-5)


@pytest.mark.parametrize(
    ('name', 'reason'),
    [('test_vit', 'no maps'), ('test_convnext', 'not what its'), ('mobilenetv3_small_050', 'takes 1024')],
)
def test_other_models_are_refused_with_the_reason(name, reason):
    network = timm_network(name)
    with torch.no_grad(), pytest.raises(ValueError, match=reason):
        check_maps(network, torch.randn(1, 3, *network.default_cfg['input_size'][1:]))


def test_another_pooling_is_refused():
    network = timm_network('test_resnet', global_pool='max')
    with torch.no_grad(), pytest.raises(ValueError, match='another pooling'):
        check_maps(network, torch.randn(1, 3, 64, 64))


def test_colours_run_from_blue_over_green_to_red():
    ends = jet(np.array([[0.0, 0.5, 1.0]]))[0]
    assert ends[0] == pytest.approx([0, 0, 0.5])
    assert ends[1] == pytest.approx([0.5, 1, 0.5])
    assert ends[2] == pytest.approx([0.5, 0, 0])
    assert overlay(np.ones((1, 1, 3)), np.zeros((1, 1)))[0, 0] == pytest.approx([0.5, 0.5, 0.65])


def test_pictures_show_baseline_widths_and_full_network_for_the_labelled_class(
    run, model, images, checkpoint, tmp_path
):
    torch.save(make_model(images, seed=2).state_dict(), tmp_path / 'base.pth')
    options = ['--cam', tmp_path / 'cam', '--cam-images', 5, '--cam-baseline', tmp_path / 'base.pth']
    plain = run('--checkpoint', checkpoint, '--width', 1.0, 0.5)
    assert run('--checkpoint', checkpoint, *options, '--width', 1.0, 0.5) == plain
    places = [0, 8, 16, 24, 32]
    stems = [f'test_resnet-{checkpoint.parent.name}-model-w1-0.5-{place:06d}' for place in places]
    assert sorted(path.name for path in (tmp_path / 'cam').iterdir()) == sorted(
        f'{stem}.{suffix}' for stem in stems for suffix in ('npz', 'png')
    )
    for stem, place in zip(stems, places, strict=True):
        raw = np.load(tmp_path / 'cam' / f'{stem}.npz')
        assert list(raw) == ['input', 'baseline', 'width 0.5', 'full network']
        label = place // PER_CLASS
        with torch.no_grad():
            expected = class_maps(model, images[0][place : place + 1])[0, label]
        assert np.allclose(raw['full network'], expected, atol=1e-4)
        assert not np.allclose(raw['baseline'], expected, atol=1e-2)
        assert np.allclose(raw['input'] * 2 - 1, images[0][place].permute(1, 2, 0), atol=1e-5)
        with Image.open(tmp_path / 'cam' / f'{stem}.png') as picture:
            assert picture.size == (4 * PANEL, PANEL + 32)
            panels = np.asarray(picture)[32:].reshape(PANEL, 4, PANEL, 3)
        assert len({panels[:, index].tobytes() for index in range(4)}) == 4
        resized = Image.fromarray((255 * raw['input'] + 0.5).astype(np.uint8)).resize((PANEL, PANEL), Image.BILINEAR)
        assert np.array_equal(panels[:, 0], resized)


def test_pictures_of_other_widths_have_other_names(run, checkpoint, tmp_path):
    options = ['--checkpoint', checkpoint, '--cam', tmp_path / 'cam', '--cam-images', 1]
    run(*options)
    run(*options, '--width', 0.5)
    name = f'test_resnet-{checkpoint.parent.name}-model'
    assert {path.name for path in (tmp_path / 'cam').glob('*.png')} == {f'{name}-000000.png', f'{name}-w0.5-000000.png'}


def test_valid_labels_choose_the_class_of_the_map(run, images, tmp_path):
    wide = make_model(images, seed=5, num_classes=25)
    torch.save(wide.state_dict(), tmp_path / 'wide.pth')
    chosen = [20, 3, 4, 7, 24, 9, 11, 0, 16, 2]
    (tmp_path / 'valid.txt').write_text('\n'.join(map(str, chosen)))
    argv = ['--checkpoint', tmp_path / 'wide.pth', '--num-classes', 25, '--valid-labels', tmp_path / 'valid.txt']
    run(*argv, '--cam', tmp_path / 'cam', '--cam-images', 2, '--use-ema')
    raw = np.load(tmp_path / 'cam' / f'test_resnet-{tmp_path.name}-wide-ema-000020.npz')
    with torch.no_grad():
        expected = class_maps(wide, images[0][20:21])[0, chosen[5]]
    assert np.allclose(raw['full network'], expected, atol=1e-4)
    assert len(chosen) == NUM_CLASSES


def test_bad_input_is_refused(refusal, checkpoint, images, tmp_path):
    (tmp_path / 'file').write_text('')
    torch.save(make_model(images, 1, name='test_vit', img_size=32).state_dict(), tmp_path / 'vit.pth')
    weights = ['--checkpoint', checkpoint]
    for needle, options in {
        'no maps': ['--model', 'test_vit', '--checkpoint', tmp_path / 'vit.pth', '--cam', tmp_path / 'cam'],
        '--cam-baseline': [*weights, '--cam', tmp_path / 'cam', '--cam-baseline', tmp_path / 'vit.pth'],
        f'--cam {tmp_path / "file"}': [*weights, '--cam', tmp_path / 'file'],
        '--cam-images 0': [*weights, '--cam', tmp_path / 'cam', '--cam-images', 0],
        '--test-pool': [*weights, '--cam', tmp_path / 'cam', '--test-pool'],
    }.items():
        assert needle in refusal(*options), needle
    assert not (tmp_path / 'cam').exists()
