"""What validate.py says of bad options, checkpoints, data and labels: one line and exit status 2."""

import json

import pytest
import timm
import torch

from tests.helpers.validate import NUM_CLASSES, make_model

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


def test_bad_options_are_refused_in_one_line(refusal, checkpoint, folder, tmp_path):
    weights = ['--checkpoint', checkpoint]
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'names.txt').write_text('test_resnet\ntest_resnt\n')
    complaints = {
        'test_resnet': refusal('--model', 'test_resnt', *weights),
        '--model-kwargs depth=3': refusal('--model-kwargs', 'depth=3', *weights),
        "'test_resnt'": refusal('--model', tmp_path / 'names.txt'),
        '--model test_re*': refusal('--model', 'test_re*', *weights),
        '--width 1.5': refusal('--width', 1.5, *weights),
        '--results-file': refusal('--results-file', tmp_path / 'missing' / 'rows.csv', *weights),
        '--in-chans 4': refusal('--in-chans', 4, '--input-size', 3, 32, 32, *weights),
        'no-such-file': refusal('--checkpoint', tmp_path / 'no-such-file.pth'),
        f'--checkpoint {tmp_path / "folder"}': refusal('--checkpoint', tmp_path / 'folder'),
    }
    if not torch.cuda.is_available():
        complaints['--device cpu'] = refusal('--device', 'cuda', *weights)
    for needle, complaint in complaints.items():
        assert needle in complaint, complaint


def test_bad_checkpoints_are_refused_in_one_line(refusal, checkpoint, tmp_path):
    (tmp_path / 'half.pth').write_bytes(checkpoint.read_bytes()[: checkpoint.stat().st_size // 2])
    torch.save(timm.create_model('test_efficientnet', num_classes=NUM_CLASSES).state_dict(), tmp_path / 'other.pth')
    for name, reason in (('half', 'truncated'), ('other', 'missing')):
        complaint = refusal('--checkpoint', tmp_path / f'{name}.pth')
        assert f'--checkpoint {tmp_path / name}.pth' in complaint
        assert reason in complaint
    complaint = refusal('--checkpoint', checkpoint, '--num-classes', NUM_CLASSES + 1)
    assert 'fc.weight' in complaint


def test_bad_data_is_refused_in_one_line(refusal, checkpoint, tmp_path):
    (tmp_path / 'no-images').mkdir()
    (tmp_path / 'no-images' / 'notes.txt').write_text('no image')
    for path in (tmp_path / 'no-images', tmp_path / 'missing'):
        assert str(path) in refusal('--checkpoint', checkpoint, data=['--data-dir', path])


def test_labels_that_do_not_fit_are_refused_in_one_line(refusal, images, checkpoint, tmp_path):
    torch.save(make_model(images, seed=1, num_classes=12).state_dict(), tmp_path / 'twelve.pth')
    twelve = ['--checkpoint', tmp_path / 'twelve.pth', '--num-classes', 12]
    assert '--num-classes 12' in refusal(*twelve)
    torch.save(make_model(images, seed=1, num_classes=8).state_dict(), tmp_path / 'eight.pth')
    assert '--num-classes 8' in refusal('--checkpoint', tmp_path / 'eight.pth', '--num-classes', 8)

    (tmp_path / 'valid.txt').write_text('0\n10\n')
    assert 'class index 10' in refusal('--checkpoint', checkpoint, '--valid-labels', tmp_path / 'valid.txt')
    (tmp_path / 'valid.txt').write_text('0\n3\n0\n')
    assert 'class index 0 is there more' in refusal(
        '--checkpoint', checkpoint, '--valid-labels', tmp_path / 'valid.txt'
    )
    (tmp_path / 'valid.txt').write_text('zero\n')
    message = refusal('--checkpoint', checkpoint, '--valid-labels', tmp_path / 'valid.txt')
    assert '--valid-labels' in message and 'expected a class index a line' in message

    for content in ('[[1], [2]]', 'no json'):
        (tmp_path / 'real.json').write_text(content)
        assert '--real-labels' in refusal('--checkpoint', checkpoint, '--real-labels', tmp_path / 'real.json')


def test_real_labels_need_the_names_of_imagenet(refusal, checkpoint, tmp_path):
    labels = [[0]] * 360
    (tmp_path / 'real.json').write_text(json.dumps(labels))
    options = ['--checkpoint', checkpoint, '--real-labels', tmp_path / 'real.json']
    assert '.pgm' in refusal(*options, data=['--dataset', 'regaug/digits'])


def test_real_labels_need_names_of_images(refusal, checkpoint, folder, tmp_path):
    (tmp_path / 'real.json').write_text('[]')
    data = ['--dataset', 'torch/image_folder', '--data-dir', folder]
    assert 'names of the images' in refusal(
        '--checkpoint', checkpoint, '--real-labels', tmp_path / 'real.json', data=data
    )


@pytest.mark.parametrize('model', ['test_convnext', 'mobilenetv3_small_050'])
def test_test_time_pooling_is_refused_where_it_would_be_another_network(refusal, tmp_path, model):
    torch.save(timm.create_model(model, num_classes=NUM_CLASSES).state_dict(), tmp_path / 'model.pth')
    weights = ['--model', model, '--checkpoint', tmp_path / 'model.pth']
    assert f'--test-pool: {model}' in refusal(*weights, '--img-size', 256, '--test-pool')


def test_test_time_pooling_takes_images_of_other_channels(run, tmp_path):
    torch.save(
        timm.create_model('test_resnet', in_chans=1, num_classes=NUM_CLASSES).state_dict(), tmp_path / 'grey.pth'
    )
    row = run('--checkpoint', tmp_path / 'grey.pth', '--in-chans', 1, '--img-size', 192, '--test-pool')
    assert row['crop_pct'] == 1.0


def test_bulk_validation_without_any_result_is_refused(refusal, tmp_path):
    (tmp_path / 'broken.pth').write_bytes(b'no checkpoint')
    assert 'broken.pth' in refusal('--checkpoint', tmp_path)
