"""Pictures of what training sees: in their own colours, with their labels, of the methods too, once a phase."""

import numpy as np
import pytest
import torch
from PIL import Image

from regaug.training.pictures import captions_of, draw
from regaug.training.report import Report
from tests.helpers.training import CLASSES, train_args


def test_images_are_drawn_in_their_own_colours_enlarged_with_room_for_captions():
    images = torch.rand(5, 3, 10, 12, generator=torch.Generator().manual_seed(1))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    normalised = (images - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    picture = np.asarray(draw(normalised, list('abcde'), mean, std)).astype(int)
    scale, height, width = 10, 100, 120
    for index, (row, column) in enumerate([(0, 0), (0, 1), (0, 2), (0, 3), (1, 0)]):
        top, left = row * (height + 16), column * (width + 2)
        drawn = picture[top : top + height : scale, left : left + width : scale]
        assert np.abs(drawn - 255 * images[index].permute(1, 2, 0).numpy()).max() <= 1.01
        below = picture[top + height : top + height + 14, left : left + width]
        assert below.min() < 100  # ink of the caption


def test_grey_images_and_few_of_them_are_drawn_too():
    picture = draw(torch.zeros(1, 1, 8, 8), ['x'], (0.5,), (0.5,))
    assert picture.mode == 'RGB'
    assert picture.getpixel((3, 3)) == (127, 127, 127)


@pytest.mark.parametrize(
    ('target', 'names', 'expected'),
    [
        ([3, 1], None, ['3', '1']),
        ([1, 0], ['cat', 'dog'], ['dog', 'cat']),
        ([[0.1, 0.6, 0.3], [0.02, 0.0, 0.98]], None, ['1:0.60+2', '2']),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 0.9]], None, ['0 2', '1 2']),
    ],
)
def test_captions_name_the_classes(target, names, expected):
    assert captions_of(torch.tensor(target), names) == expected


def test_the_first_batch_of_each_phase_is_kept_with_what_the_subnetworks_saw(train):
    options = ('--save-images', '--gradaug', 2, '--mixup', 1.0, '--epochs', 1, '--refine-epochs', 1, '--refine-plain')
    folder = train(*options)
    names = {path.name for path in (folder / 'pictures').iterdir()}
    assert names == {'main-batch.png', 'main-sub1.png', 'main-sub2.png', 'refine-batch.png'}
    for path in (folder / 'pictures').iterdir():
        with Image.open(path) as picture:
            assert len(np.unique(np.asarray(picture.convert('L')))) > 50, path
    assert CLASSES == 4


def test_a_dry_run_keeps_pictures_and_nothing_else(train):
    folder = train('--save-images', '--dry-run', '--gradaug', 1)
    assert {path.name for path in folder.iterdir()} == {'pictures'}


def test_a_run_outlives_pictures_that_cannot_be_written(tmp_path, caplog):
    class Full:
        def save(self, *args):
            raise OSError('No space left on device')

    report = Report(train_args('--save-images'), num_epochs=1, primary=True, output_dir=None, pictures=Full())
    report.phase = 'main'
    input, target = torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.long)
    for _ in range(2):
        report._picture_due = True
        report.on_batch(input, target, 0)
    assert [record.message for record in caplog.records] == ['No pictures any more: No space left on device.']
