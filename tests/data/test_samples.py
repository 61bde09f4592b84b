"""`--labels-per-class` subsets, and unreadable images."""

import gc
import io
import itertools
import logging
import tarfile
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import IterableDataset

from regaug.data.samples import Samples, training_samples
from regaug.data.subsets import sample_labels, stratified_subset
from regaug.errors import OptionError
from tests.helpers.data import MemoryDataset, deliver, make_train_data, noise_images, noise_set

# timm's readers leave it to the garbage collector to close files.
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')
LABELS = np.array([2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 2, 1, 0, 1, 2, 2])


@pytest.fixture(autouse=True)
def collect_files():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ResourceWarning)
        gc.collect()


# --- subsets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('per_class', 'split', 'indices'),
    [
        (1, 0, [2, 5, 7]),
        (2, 0, [1, 2, 5, 7, 8, 10]),
        (3, 0, [1, 2, 3, 4, 5, 7, 8, 10, 14]),
        (1, 1, [2, 6, 7]),
        (2, 1, [2, 4, 6, 7, 8, 10]),
        (2, 7, [1, 3, 8, 9, 14, 15]),
    ],
)
@pytest.mark.few(3)
def test_subset_is_the_committed_one(per_class, split, indices):
    assert stratified_subset(LABELS, per_class, split).tolist() == indices


def test_every_class_has_the_same_number_of_samples():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    chosen = stratified_subset(labels, 12, 3)
    assert np.bincount(labels[chosen]).tolist() == [12] * 7
    assert len(set(chosen.tolist())) == 84


def test_a_smaller_subset_is_part_of_a_larger_one_of_the_same_split():
    labels = np.random.default_rng(0).integers(0, 7, 500)
    subsets = [set(stratified_subset(labels, per_class, 5).tolist()) for per_class in range(1, 40)]
    assert all(small < large for small, large in itertools.pairwise(subsets))


def test_splits_are_different_random_subsets():
    labels = np.random.default_rng(0).integers(0, 5, 2000)
    subsets = [set(stratified_subset(labels, 40, split).tolist()) for split in range(6)]
    shares = [len(one & other) / 200 for index, one in enumerate(subsets) for other in subsets[:index]]
    assert max(shares) < 0.2  # about 40 of 400 of each class are common by chance
    assert 0.06 < np.mean(shares) < 0.14


def test_drawing_a_subset_leaves_the_runs_random_numbers_alone():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    stratified_subset(LABELS, 2, 3)
    assert torch.equal(torch.get_rng_state(), before[0])
    np.testing.assert_array_equal(np.random.get_state()[1], before[1])


def test_a_class_that_is_too_small_is_an_error_that_names_class_and_sizes():
    with pytest.raises(OptionError, match=r'--labels-per-class 6: class 0 has only 5 samples'):
        stratified_subset(LABELS, 6, 0)


def image_folder_set(root):
    return create_dataset('', root=str(root), split='train')


def torch_folder_set(root):
    return create_dataset('torch/image_folder', root=str(root), split='train')


def tar_set(root):
    path = root.parent / f'{root.name}.tar'
    if not path.exists():
        with tarfile.open(path, 'w') as archive:
            archive.add(root / 'train', arcname='.')
    return create_dataset('', root=str(path), split='')


def general_set(root):
    return noise_set(64)


@pytest.mark.parametrize('make', [image_folder_set, torch_folder_set, tar_set, general_set])
def test_labels_are_those_of_the_samples_whatever_the_kind_of_data_set(image_folder, make):
    dataset = make(image_folder)
    expected = [dataset[index][1] for index in range(64)]
    assert sample_labels(dataset).tolist() == expected
    assert sorted(set(expected)) == [0, 1, 2, 3]
    subset = training_samples(dataset, labels_per_class=3, label_split=1)
    assert len(subset) == 12
    assert sorted(subset[index][1] for index in range(12)) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [subset[index][1] for index in range(12)] == [expected[i] for i in stratified_subset(expected, 3, 1)]


def test_labels_kept_in_a_tensor_are_read_without_opening_images():
    dataset = noise_set(8)
    dataset.targets = torch.arange(8) % 2  # as torchvision's MNIST has them
    dataset.images = None
    assert sample_labels(dataset).tolist() == [0, 1] * 4


def test_loader_delivers_the_subset_and_nothing_else():
    images, labels = noise_images(64), np.arange(64) % 4
    chosen = stratified_subset(labels, 4, 2)
    subset = Samples(MemoryDataset(images, np.arange(64)), chosen)
    train_data, _ = make_train_data(subset, '--batch-size', 4, '--workers', 2, '--smoothing', 0, classes=64)
    _, delivered = deliver(train_data)
    assert sorted(delivered.tolist()) == chosen.tolist()


def test_a_stream_has_no_subsets_and_is_left_as_it_is():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    stream = Stream()
    assert training_samples(stream) is stream
    with pytest.raises(OptionError, match=r'--labels-per-class 5: Stream has no sample index'):
        training_samples(stream, labels_per_class=5)


# --- unreadable images --------------------------------------------------------------------------------------------


def broken_png():
    """A PNG file whose second chunk of pixels is damaged, which Pillow reports as a SyntaxError."""
    buffer = io.BytesIO()
    Image.fromarray(noise_images(1, 256, 256)[0]).save(buffer, 'PNG')
    head, first, second, *rest = buffer.getvalue().split(b'IDAT')
    return b'IDAT'.join([head, first]) + b'\xc7a\x96\n' + b'IDAT'.join([second, *rest])


def huge_bitmap():
    """The header of a bitmap of 60,000 by 60,000 pixels, from which Pillow protects itself."""
    buffer = io.BytesIO()
    Image.new('RGB', (4, 4)).save(buffer, 'BMP')
    data = bytearray(buffer.getvalue())
    data[18:26] = (60000).to_bytes(4, 'little') * 2
    return bytes(data)


@pytest.fixture
def damaged_folder(tmp_path):
    """32 JPEG files in 4 classes, of which one is truncated and one holds text."""
    for index, pixels in enumerate(noise_images(32, 40, 40)):
        path = tmp_path / 'damaged' / f'class{index // 8}' / f'{index:02d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    truncated = tmp_path / 'damaged' / 'class1' / '09.jpg'
    truncated.write_bytes(truncated.read_bytes()[:500])
    (tmp_path / 'damaged' / 'class3' / '31.jpg').write_text('not an image')
    return tmp_path / 'damaged'


@pytest.fixture
def shared_log(tmp_path):
    """The log as worker processes write it too: a file."""
    handler = logging.FileHandler(tmp_path / 'log.txt')
    logger = logging.getLogger('train')
    logger.addHandler(handler)
    yield lambda: (tmp_path / 'log.txt').read_text()
    logger.removeHandler(handler)
    handler.close()


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_named_counted_over_all_workers_and_replaced(damaged_folder, shared_log, workers):
    dataset = create_dataset('', root=str(damaged_folder), split='')
    train_data, _ = make_train_data(dataset, '--batch-size', 8, '--workers', workers, '--smoothing', 0)
    for epoch in (1, 2):
        images, labels = deliver(train_data)
        assert len(images) == len(labels) == 32
        assert train_data.dataset.num_unreadable == 2 * epoch
    lines = shared_log().splitlines()
    assert sum('class1/09.jpg' in line for line in lines) == 2
    assert sum('class3/31.jpg' in line for line in lines) == 2
    assert len(lines) == 4


def test_the_replacement_is_the_next_image_of_the_subset(damaged_folder):
    dataset = create_dataset('', root=str(damaged_folder), split='')
    samples = Samples(dataset, indices=[4, 9, 20, 31])
    reference = [np.asarray(dataset[index][0]) for index in (4, 20, 20, 4)]
    for position, expected in enumerate(reference):
        image, label = samples[position]
        np.testing.assert_array_equal(np.asarray(image), expected)
        assert label == [0, 2, 2, 0][position]


@pytest.mark.parametrize('content', [b'', broken_png(), huge_bitmap()], ids=['empty', 'broken chunk', 'huge'])
def test_whatever_pillow_cannot_decode_is_unreadable(damaged_folder, caplog, content):
    (damaged_folder / 'class0' / '00.jpg').write_bytes(content)
    samples = Samples(create_dataset('', root=str(damaged_folder), split=''))
    assert samples[0][0].size == (40, 40)
    assert samples.num_unreadable == 1
    assert 'class0/00.jpg' in caplog.text


@pytest.mark.parametrize('name', ['', 'torch/image_folder'])
def test_files_of_torchvisions_folder_are_named_as_those_of_timms(damaged_folder, caplog, name):
    samples = Samples(create_dataset(name, root=str(damaged_folder), split=''))
    samples[9]
    assert '09.jpg' in caplog.text


def test_a_data_set_of_unreadable_images_only_is_given_up(damaged_folder):
    for path in damaged_folder.glob('*/*.jpg'):
        path.write_bytes(b'')
    samples = Samples(create_dataset('', root=str(damaged_folder), split=''))
    with pytest.raises(OptionError, match=r'50 unreadable images in a row, the last is .*\.jpg'):
        samples[0]
    assert samples.num_unreadable == 50


def test_errors_of_a_transform_are_not_taken_for_unreadable_images():
    def fail(image):
        raise RuntimeError('a mistake in a transform')

    dataset = noise_set(4)
    dataset.transform = fail
    samples = Samples(dataset)
    with pytest.raises(RuntimeError, match='a mistake in a transform'):
        samples[0]
    assert samples.num_unreadable == 0


@pytest.mark.parametrize('workers', [0, 2])
def test_training_goes_on_and_the_log_says_how_many_were_unreadable(damaged_folder, train, caplog, workers):
    caplog.set_level(logging.INFO)
    options = ('--data-dir', damaged_folder, '--train-split', '', '--val-split', '', '--workers', workers)
    folder = train(*options, '--epochs', 2, '--batch-size', 8)
    assert (folder / 'checkpoint-1.pth.tar').exists()
    messages = [record.getMessage() for record in caplog.records if 'unreadable' in record.getMessage().lower()]
    totals = [message for message in messages if 'class' not in message]
    assert len(totals) == 2, messages  # one for each epoch
    assert ' 2 ' in f' {totals[0]} '
