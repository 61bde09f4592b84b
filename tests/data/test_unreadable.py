"""Images that cannot be read: whatever a decoder raises, images in a row, evaluation images that do not count."""

import functools
import io
import random
import shutil

import numpy as np
import pytest
import torch
from PIL import Image, features
from timm.data import create_dataset as create_timm_dataset
from torch.utils.data import DataLoader

from regaug.data.counted import Counted, left_out
from regaug.data.datasets import create_dataset
from regaug.data.samples import Samples
from regaug.errors import OptionError
from tests.helpers.data import noise_images
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import read_summary
from tests.helpers.validate import NUM_CLASSES, PER_CLASS, top_k, validate_rank

pytest_plugins = ['tests.helpers.data_fixtures', 'tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none


# --- decoders -------------------------------------------------------------------------------------------------------


def encoded(kind):
    buffer = io.BytesIO()
    Image.fromarray(noise_images(1, 40, 40)[0]).save(buffer, kind)
    return buffer.getvalue()


def undecodable(kind):
    """Bytes that Pillow does not decode, and the type of what it raises."""
    if kind == 'DDS':
        return encoded(kind)[:-100], ValueError
    if kind == 'PPM':
        return encoded(kind).replace(b'40 40', b'\x910 40'), ValueError
    if kind == 'JPEG2000':
        return encoded(kind)[:-3000], OSError
    rng = random.Random(1)
    while True:
        data = bytearray(encoded(kind))
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(200)] = rng.randrange(256)
        try:
            Image.open(io.BytesIO(data)).convert('RGB')
        except RuntimeError as error:
            return bytes(data), type(error)
        except Exception:
            continue


@pytest.mark.filterwarnings('ignore::UserWarning')  # of libavif
@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
@pytest.mark.parametrize('kind', ['AVIF', 'DDS', 'PPM', 'JPEG2000'])
def test_whatever_a_decoder_raises_the_image_is_unreadable_and_named(photos, caplog, name, kind):
    if not features.check({'AVIF': 'avif', 'JPEG2000': 'jpg_2000'}.get(kind, 'jpg')):
        pytest.skip(f'Pillow without {kind}')
    content, raised = undecodable(kind)
    try:
        Image.open(io.BytesIO(content)).convert('RGB')
    except raised:
        pass
    else:
        assert kind == 'DDS'
        pytest.skip('an older Pillow, which fills what a DDS file lacks')
    (photos / 'train' / 'class0' / '1.png').write_bytes(content)
    samples = Samples(create_dataset(name, str(photos), 'train'))
    image, label = samples[1]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(samples[2][0]))
    assert (label, samples.num_unreadable) == (0, 1)
    assert 'class0/1.png' in caplog.text


@pytest.mark.parametrize('error', [RuntimeError, ValueError, TypeError])
@pytest.mark.parametrize('part', ['transform', 'target_transform'])
def test_what_a_transform_or_a_label_raises_is_not_the_images_fault(photos, error, part):
    def fail(value):
        raise error('a mistake')

    dataset = create_dataset('', str(photos), 'train')
    setattr(dataset, part, fail)
    samples = Samples(dataset)
    with pytest.raises(error, match='a mistake'):
        samples[0]
    assert samples.num_unreadable == 0
    assert getattr(dataset, part) is fail


def test_a_picture_beyond_pillows_warning_is_read(photos, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 1000)  # the pictures have 1600: a warning, below twice the limit
    samples = Samples(create_dataset('', str(photos), 'train'))
    with pytest.warns(Image.DecompressionBombWarning):
        assert samples[0][0].size == (40, 40)
    assert samples.num_unreadable == 0


def test_a_picture_beyond_pillows_limit_is_unreadable(photos, monkeypatch, caplog):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 2000)
    Image.fromarray(noise_images(1, 80, 80)[0]).save(photos / 'train' / 'class0' / '0.png')
    samples = Samples(create_dataset('', str(photos), 'train'))
    assert samples[0][0].size == (40, 40)
    assert samples.num_unreadable == 1
    assert 'class0/0.png' in caplog.text


# --- in the middle of a run -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('workers', [0, 2])
def test_fifty_unreadable_images_in_a_row_are_one_line(tmp_path, workers):
    for index in range(60):
        path = tmp_path / 'class0' / f'{index:02d}.png'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'')
    samples = Samples(create_timm_dataset('', root=str(tmp_path)))
    with pytest.raises(OptionError) as caught:
        list(DataLoader(samples, num_workers=workers))
    assert str(caught.value) == '--data-dir: 50 unreadable images in a row, the last is class0/49.png.'


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def damaged(folder, tmp_path_factory):
    """The data folder with two unreadable validation images, the first and the last but one."""
    root = tmp_path_factory.mktemp('damaged')
    shutil.copytree(folder, root, dirs_exist_ok=True)
    paths = sorted(root.glob('val/*/*.JPEG'))
    paths[0].write_bytes(b'')
    paths[-2].write_bytes(paths[-2].read_bytes()[:300])
    return root


@pytest.fixture(scope='module')
def kept():
    """Which validation images can be read."""
    mask = torch.ones(NUM_CLASSES * PER_CLASS, dtype=torch.bool)
    mask[[0, -2]] = False
    return mask


@pytest.mark.parametrize('options', ['', '-j 2', '--no-prefetcher', '-b 1', '--dataset torch/image_folder'])
def test_unreadable_evaluation_images_do_not_count_and_the_row_says_how_many(
    run, damaged, model, images, kept, checkpoint, options
):
    with torch.no_grad():
        output = model(images[0])
    row = run('--checkpoint', checkpoint, *options.split(), data=('--data-dir', damaged))
    for k in (1, 5):
        assert row[f'top{k}'] == top_k(output[kept], images[1][kept], k)
    assert row['top1'] != top_k(output, images[1], 1)
    assert row['unreadable'] == 2


def test_unreadable_evaluation_images_are_named_and_counted_in_the_log(run, damaged, checkpoint, caplog):
    run('--checkpoint', checkpoint, data=('--data-dir', damaged))
    lines = [record.getMessage() for record in caplog.records if record.name in ('train', 'validate')]
    named = [line for line in lines if line.startswith('Unreadable image left out of the metrics: ')]
    assert ['class0/ILSVRC2012_val_00000001' in named[0], 'class9/ILSVRC2012_val_00000039' in named[1]] == [True, True]
    assert '2 images of --split validation cannot be read and were left out.' in lines


def test_only_the_first_unreadable_evaluation_images_are_named(tmp_path, caplog):
    for index in range(40):
        path = tmp_path / f'{index:02d}.png'
        path.write_bytes(b'') if index < 30 else Image.new('RGB', (4, 4)).save(path)
    samples = Samples(create_timm_dataset('', root=str(tmp_path)), leave_out=True)
    targets = [samples[index][1] for index in range(40)]
    assert targets == [left_out(0)] * 30 + [0] * 10
    assert sum(record.getMessage().startswith('Unreadable') for record in caplog.records) == 10


def test_each_width_counts_for_itself_and_calibration_goes_on(run, damaged, checkpoint):
    rows = run('--checkpoint', checkpoint, '--width', 1.0, 0.5, data=('--data-dir', damaged))
    assert [row['unreadable'] for row in rows] == [2, 2]


def test_real_labels_are_refused_where_images_are_unreadable(refusal, damaged, checkpoint, tmp_path):
    (tmp_path / 'real.json').write_text(str([[0]] * 40))
    options = ['--checkpoint', checkpoint, '--real-labels', tmp_path / 'real.json']
    assert '--real-labels: go by the order' in refusal(*options, data=('--data-dir', damaged))


def test_two_ranks_leave_out_what_one_process_leaves_out(damaged, checkpoint, tmp_path):
    for path in sorted(damaged.glob('val/*/*.JPEG'))[1:]:
        copied = tmp_path / 'odd' / 'val' / path.parent.name / path.name  # 39 images: one rank gets padding
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.symlink_to(path)
    argv = ['--data-dir', tmp_path / 'odd', '--split', 'val', '--checkpoint', checkpoint, '-b', 4]
    (row,) = validate_rank(argv, 0, 1)
    assert row['unreadable'] == 1
    ranks = run_on_ranks(tmp_path, functools.partial(evaluate_on_rank, argv), ['val'])
    assert [rows['val'] for rows in ranks] == [[row], [row]]


def evaluate_on_rank(argv, case, rank, world_size):
    return validate_rank(argv, rank, world_size)


def test_padding_is_left_out_before_unreadable_images_are():
    class Loader:
        dataset = type('Dataset', (), {'num_unreadable': 1})
        sampler = type('Sampler', (), {'num_valid_samples': 5})

    counted = Counted(Loader)
    assert counted(torch.tensor([3, -100, 1])).tolist() == [0, 2]
    assert counted(torch.tensor([2, 4, -100])).tolist() == [0, 1]
    assert counted.unreadable == 1
    counted = Counted(Loader)
    labels = torch.tensor([[0.0, 1.0], [float('nan')] * 2, [1.0, 1.0]])
    assert counted(labels).tolist() == [0, 2]


@pytest.mark.parametrize('options', [(), ('--workers', 2), ('--model-ema',)])
@pytest.mark.few(1)
def test_training_evaluates_without_unreadable_images(train, image_folder, tmp_path, options):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    whole = read_summary(train('--lr', 1e-6, *options, experiment='whole'))
    bad = min(root.glob('val/*/*.png'))
    bad.write_bytes(b'')
    broken = read_summary(train('--data-dir', root, '--lr', 1e-6, *options, experiment='broken'))
    bad.unlink()
    without = read_summary(train('--data-dir', root, '--lr', 1e-6, *options, experiment='without'))
    for one, other in zip(broken, without, strict=True):
        assert one['eval_unreadable'] == '1'
        assert 'eval_unreadable' not in other
        assert float(one['eval_loss']) == pytest.approx(float(other['eval_loss']), rel=1e-6)
        assert one['eval_top1'] == other['eval_top1']
    assert [row['eval_loss'] for row in broken] != [row['eval_loss'] for row in whole]
