"""Corruption errors by published numbers, both layouts, and the maker of corrupted images."""

from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from PIL import Image

from regaug.errors import OptionError
from regaug.evaluators import corrupt
from regaug.evaluators.corruptions import (
    ALEXNET,
    EXTRA,
    TYPES,
    corruption_error,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from tests.helpers.validate import NUM_CLASSES, PER_CLASS, PIXELS, normalise, save_grey_model, top_k

pytest_plugins = ['tests.helpers.validate_fixtures']
pytestmark = pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')  # timm's folder reader closes none

# GradAug (arXiv 2006.07989), table 6: CE of the 15 types in the order of `ALEXNET`, and the printed mCE.
TABLE_6 = {
    'ResNet-50': ((72, 75, 76, 77, 91, 82, 81, 78, 76, 65, 59, 65, 89, 72, 75), 75.5),
    'Cutout': ((72, 74, 77, 77, 91, 80, 80, 77, 77, 65, 58, 64, 89, 75, 76), 75.5),
    'Mixup': ((68, 72, 72, 75, 88, 75, 74, 70, 70, 55, 55, 61, 85, 65, 72), 70.5),
    'CutMix': ((72, 74, 76, 77, 91, 78, 78, 77, 75, 62, 56, 65, 87, 77, 74), 74.6),
    'GradAug': ((72, 72, 79, 78, 90, 80, 80, 73, 72, 61, 55, 64, 87, 64, 71), 73.2),
    'GradAug+': ((71, 73, 78, 76, 91, 78, 77, 72, 71, 61, 53, 63, 86, 76, 69), 73.0),
}
# Accuracies of torchvision's ResNet-50 on 5,000 images of ImageNet-C, as RobustBench stores them, by severity.
RESNET50 = {
    'gaussian_noise': (0.602, 0.4878, 0.3124, 0.1422, 0.0288),
    'shot_noise': (0.5828, 0.4486, 0.2856, 0.1026, 0.0352),
    'impulse_noise': (0.4854, 0.3862, 0.2904, 0.113, 0.0244),
    'defocus_blur': (0.5914, 0.5154, 0.3808, 0.2752, 0.1824),
    'glass_blur': (0.5362, 0.3974, 0.1708, 0.1306, 0.1034),
    'motion_blur': (0.636, 0.5342, 0.3754, 0.2158, 0.1452),
    'zoom_blur': (0.5258, 0.4302, 0.356, 0.2844, 0.2194),
    'snow': (0.5468, 0.312, 0.3494, 0.2344, 0.165),
    'frost': (0.6106, 0.4366, 0.3064, 0.2864, 0.2258),
    'fog': (0.6092, 0.56, 0.4674, 0.4024, 0.236),
    'brightness': (0.736, 0.7222, 0.6958, 0.6496, 0.5886),
    'contrast': (0.6428, 0.5824, 0.466, 0.2098, 0.0542),
    'elastic_transform': (0.6684, 0.4514, 0.5456, 0.4122, 0.1702),
    'pixelate': (0.638, 0.6434, 0.4598, 0.293, 0.2088),
    'jpeg_compression': (0.6644, 0.6234, 0.6004, 0.4786, 0.3254),
}


@pytest.mark.parametrize('model', TABLE_6)
def test_rows_of_gradaugs_table_average_to_their_printed_mce(model):
    errors, printed = TABLE_6[model]
    means = {name: ce * ALEXNET[name] / 100 for name, ce in zip(ALEXNET, errors, strict=True)}
    assert mean_corruption_error(means) == pytest.approx(printed, abs=0.08), 'the row is rounded, the mean was not'


def test_stored_row_of_robustbench_has_its_mce():
    means = {name: 1 - fmean(row) for name, row in RESNET50.items()}
    assert mean_corruption_error(means) == pytest.approx(76.37, abs=0.005)
    assert corruption_error('gaussian_noise', means['gaussian_noise']) == pytest.approx(100 * 0.68536 / 0.886428)


def test_alexnet_itself_is_the_unit():
    assert mean_corruption_error(ALEXNET) == pytest.approx(100)
    assert relative_mean_corruption_error(ALEXNET, 0.435) == pytest.approx(100)


def write_part(root, name, severity, files=('a.png', 'b.png'), classes=NUM_CLASSES, side=PIXELS + 4):
    """Noise images of one type and severity, larger than the model's input; returned uncropped with their labels."""
    generator = np.random.default_rng(abs(hash((name, severity))) % 2**32)
    arrays = []
    for index in range(classes):
        folder = root / name / str(severity) / f'class{index}'
        folder.mkdir(parents=True)
        for file in files:
            arrays.append(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
            Image.fromarray(arrays[-1]).save(folder / file)
    return np.stack(arrays), torch.arange(classes).repeat_interleave(len(files))


def centre(arrays, margin=2):
    return normalise(arrays[:, margin:-margin, margin:-margin])


def test_rows_equal_a_plain_loop_over_cropped_images(run, model, checkpoint, tmp_path):
    expected = {}
    for name in ('fog', 'gaussian_noise', 'spatter'):
        for severity in (1, 4):
            arrays, labels = write_part(tmp_path, name, severity)
            with torch.no_grad():
                expected[name, severity] = top_k(model(centre(arrays)), labels, 1)
    assert len(set(expected.values())) > 1
    rows = run('--checkpoint', checkpoint, '--imagenet-c', tmp_path)
    clean, *others = rows
    assert [row['condition'] for row in others] == ['gaussian_noise', 'fog', 'spatter']
    for row in others:
        values = [expected[row['condition'], severity] for severity in (1, 4)]
        assert [row['top1_severity1'], row['top1_severity4']] == values
        assert row['top1'] == pytest.approx(fmean(values), abs=1e-4)
        assert 'ce' not in row, 'two of five severities'
    common = [expected[name, severity] for name in ('fog', 'gaussian_noise') for severity in (1, 4)]
    assert clean['corruption_top1'] == pytest.approx(fmean(common), abs=1e-4)
    assert clean['extra_corruption_top1'] == others[2]['top1']
    assert 'mce' not in clean
    assert clean['mce_missing'].split() == list(ALEXNET), 'none of them is complete'


def test_another_number_of_images_and_a_crop_are_told(run, checkpoint, tmp_path, caplog):
    caplog.set_level('INFO')
    files = [f'{index}.png' for index in range(PER_CLASS)]
    write_part(tmp_path, 'fog', 1, files=files)
    run('--checkpoint', checkpoint, '--imagenet-c', tmp_path)
    size, crop = PIXELS + 4, f'{PIXELS}x{PIXELS}'
    assert f'of {size}x{size} pixels the middle {crop} are taken' in caplog.text and 'as many' not in caplog.text
    caplog.clear()
    write_part(tmp_path, 'fog', 3, files=files[:-1], side=PIXELS)
    run('--checkpoint', checkpoint, '--imagenet-c', tmp_path, '--severities', 3)
    whole, part = NUM_CLASSES * PER_CLASS, NUM_CLASSES * (PER_CLASS - 1)
    assert f'1 of 1 parts have not as many images as --split validation ({whole}), such as fog 3' in caplog.text
    assert f'fog 3 ({part}).' in caplog.text
    assert 'the middle' not in caplog.text


@pytest.mark.slow
def test_mce_of_all_types_and_severities(run, checkpoint, tmp_path):
    for name in ALEXNET:
        for severity in range(1, 6):
            write_part(tmp_path, name, severity, files=('a.png',))
    clean, *rows = run('--checkpoint', checkpoint, '--imagenet-c', tmp_path, '-b', 64)
    means = {row['condition']: 1 - row['top1'] / 100 for row in rows}
    assert list(means) == list(ALEXNET)
    assert clean['mce'] == pytest.approx(mean_corruption_error(means), abs=1e-3)
    relative = relative_mean_corruption_error(means, 1 - clean['top1'] / 100)
    assert clean['relative_mce'] == pytest.approx(relative, abs=1e-3)
    assert [row['ce'] for row in rows] == pytest.approx([corruption_error(*each) for each in means.items()], abs=1e-3)
    partial = run(
        '--checkpoint', checkpoint, '--imagenet-c', tmp_path, '--corruptions', 'snow', 'fog', '--severities', 2
    )
    assert [row.get('condition') for row in partial] == ['clean', 'snow', 'fog']
    assert partial[1]['top1'] == next(row['top1_severity2'] for row in rows if row['condition'] == 'snow')


def test_cifar_layout_holds_five_severities_in_a_row(run, model, checkpoint, tmp_path):
    generator = np.random.default_rng(1)
    arrays = generator.integers(0, 256, (5 * 30, PIXELS, PIXELS, 3), dtype=np.uint8)
    labels = np.tile(generator.integers(0, NUM_CLASSES, 30), 5)
    np.save(tmp_path / 'snow.npy', arrays)
    np.save(tmp_path / 'labels.npy', labels)
    with torch.no_grad():
        output = model(normalise(arrays))
    parts = [top_k(output[i : i + 30], torch.from_numpy(labels[i : i + 30]), 1) for i in range(0, 150, 30)]
    clean, row = run('--checkpoint', checkpoint, '--imagenet-c', tmp_path)
    assert [row[f'top1_severity{severity}'] for severity in range(1, 6)] == parts
    assert clean['corruption_top1'] == pytest.approx(fmean(parts), abs=1e-3)
    assert not {'mce', 'mce_missing', 'relative_mce'} & set(clean), 'its convention is the plain mean'


def test_colour_images_are_grey_for_a_network_of_one_channel(run, tmp_path):
    arrays = np.random.default_rng(1).integers(0, 256, (5 * 4, PIXELS, PIXELS, 3), dtype=np.uint8)
    np.save(tmp_path / 'snow.npy', arrays)
    np.save(tmp_path / 'labels.npy', np.zeros(20, dtype=np.int64))
    _, row = run('--in-chans', 1, '--checkpoint', save_grey_model(tmp_path), '--imagenet-c', tmp_path)
    assert row['condition'] == 'snow'


def test_smaller_images_are_resized_only_when_asked(run, refusal, checkpoint, tmp_path):
    write_part(tmp_path, 'fog', 1, side=PIXELS - 8)
    complaint = refusal('--checkpoint', checkpoint, '--imagenet-c', tmp_path)
    assert '24x24' in complaint
    assert '--corruption-resize' in complaint
    assert len(run('--checkpoint', checkpoint, '--imagenet-c', tmp_path, '--corruption-resize')) == 2


def test_bad_folders_are_refused_before_any_evaluation(refusal, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr('validate.evaluate', lambda *_: pytest.fail('an evaluation was spent'))
    folders = {name: tmp_path / name for name in ('empty', 'few', 'odd', 'half', 'numpy')}
    for folder in folders.values():
        folder.mkdir()
    write_part(folders['few'], 'fog', 1, classes=NUM_CLASSES - 1)
    write_part(folders['odd'], 'fog', 1)
    (folders['odd'] / 'fog' / '1' / 'class0').rename(folders['odd'] / 'fog' / '1' / 'zebra')
    write_part(folders['half'], 'fog', 1)
    np.save(folders['numpy'] / 'labels.npy', np.arange(9))
    np.save(folders['numpy'] / 'fog.npy', np.zeros((10, 32, 32, 3), np.uint8))
    weights = ['--checkpoint', checkpoint]
    for needle, options in {
        'no corruption': ['--imagenet-c', folders['empty']],
        'class9': ['--imagenet-c', folders['few']],
        'zebra': ['--imagenet-c', folders['odd']],
        'no severity 3': ['--imagenet-c', folders['half'], '--severities', 1, 3],
        'no snow': ['--imagenet-c', folders['half'], '--corruptions', 'snow'],
        '--corruptions rain': ['--imagenet-c', folders['half'], '--corruptions', 'rain'],
        '--severities 6': ['--imagenet-c', folders['half'], '--severities', 6],
        'five severities': ['--imagenet-c', folders['numpy']],
        '--imagenet-c /nowhere': ['--imagenet-c', '/nowhere'],
    }.items():
        assert needle in refusal(*weights, *options), needle


@pytest.fixture
def source(tmp_path):
    """Two classes of one image each, of different shapes."""
    generator = np.random.default_rng(2)
    for name, size in (('a', (300, 260)), ('b', (230, 403))):
        (tmp_path / 'source' / name).mkdir(parents=True)
        pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'source' / name / 'image.jpg')
    return tmp_path / 'source'


def jobs(source, destination, types=('fog', 'snow'), severities=(1, 5), seed=42):
    images = corrupt.find_images(source, None)
    return [(path, source, destination, types, severities, seed) for path in images]


@pytest.fixture
def noisy(monkeypatch):
    """Stands in for the optional package: noise by the seed."""

    def noise(image, name, severity, seed):
        drawn = np.random.default_rng(seed).integers(0, 256, (*image.size[::-1], 3), dtype=np.uint8)
        return Image.fromarray(drawn)

    monkeypatch.setattr(corrupt, 'corrupt', noise)


def test_maker_writes_the_layout_once_and_goes_on(source, tmp_path, noisy):
    first = [corrupt.make_all(job) for job in jobs(source, tmp_path / 'one')]
    paths = sorted(path.relative_to(tmp_path / 'one') for path in (tmp_path / 'one').rglob('*.*'))
    expected = [f'{t}/{s}/{c}/image.JPEG' for t in ('fog', 'snow') for s in (1, 5) for c in 'ab']
    assert [str(path) for path in paths] == sorted(expected)
    assert first == [4, 4]
    contents = {path: (tmp_path / 'one' / path).read_bytes() for path in paths}
    assert len(set(contents.values())) == 8, 'every image has noise of its own'
    with Image.open(tmp_path / 'one' / paths[0]) as image:
        assert image.size == (224, 224)
        assert image.quantization[0][0] == 5, 'quality 85'
    (tmp_path / 'one' / paths[3]).unlink()
    assert [corrupt.make_all(job) for job in jobs(source, tmp_path / 'one')] == [0, 1]
    assert [corrupt.make_all(job) for job in reversed(jobs(source, tmp_path / 'two'))] == [4, 4]
    for path, content in contents.items():
        assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'two' / path).read_bytes() == content


def test_images_are_resized_and_cropped_as_imagenet_c(source):
    for path, size in zip(corrupt.find_images(source, None), ((256, 295), (448, 256)), strict=True):
        with Image.open(path) as image:
            resized = image.resize(size, Image.BILINEAR)  # the long side is cut off, not rounded
        left, top = (round((side - 224) / 2) for side in size)
        assert corrupt.prepare(path) == resized.crop((left, top, left + 224, top + 224))


def test_maker_without_package_or_images_says_so(source, tmp_path, monkeypatch):
    monkeypatch.setattr(corrupt.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(OptionError, match='pip install imagecorruptions-imaug'):
        corrupt.main([str(source), str(tmp_path / 'out')])
    monkeypatch.setattr(corrupt.importlib.util, 'find_spec', lambda name: name)
    for folder in (tmp_path / 'missing', tmp_path):
        with pytest.raises(OptionError, match=str(folder)):
            corrupt.main([str(folder), str(tmp_path / 'out')])
    with pytest.raises(OptionError, match='--workers 0'):
        corrupt.main([str(source), str(tmp_path / 'out'), '-j', '0'])
    assert not (tmp_path / 'out').exists()


@pytest.mark.slow
def test_all_types_are_made_alike_by_any_number_of_processes(source, tmp_path):
    pytest.importorskip('imagecorruptions', reason='imagecorruptions-imaug is not installed')
    for name, workers in (('one', 1), ('two', 2)):
        corrupt.main(
            [str(source), str(tmp_path / name), '--severities', '3', '-j', str(workers), '--corruptions', *TYPES]
        )
    paths = sorted(path.relative_to(tmp_path / 'one') for path in (tmp_path / 'one').rglob('*.JPEG'))
    assert len(paths) == 2 * (len(ALEXNET) + len(EXTRA))
    for path in paths:
        assert (tmp_path / 'one' / path).read_bytes() == (tmp_path / 'two' / path).read_bytes(), path


def test_an_image_whose_writing_is_cut_short_is_not_taken_for_made(tmp_path, monkeypatch):
    class FullDisk:
        """Stands where a corrupted image stands; half of it fits on the disk."""

        def save(self, path, *args, **kwargs):
            Path(path).write_bytes(b'half')
            raise OSError('no space')

    monkeypatch.setattr(corrupt, 'corrupt', lambda *args: FullDisk())
    path = tmp_path / 'source' / 'class' / 'image.png'
    path.parent.mkdir(parents=True)
    Image.new('RGB', (300, 300)).save(path)
    with pytest.raises(OSError, match='no space'):
        corrupt.make_all((path, tmp_path / 'source', tmp_path / 'made', ['fog'], [1], 42))
    assert not list((tmp_path / 'made').rglob('*.JPEG'))
