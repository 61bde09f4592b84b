"""Input channels: the mode images are read in, statistics of as many channels, and no false alarms in the log."""

import numpy as np
import pytest
import torch
from timm.data import create_loader, create_transform

from regaug.data.channels import fit_channels, image_mode, input_channels
from regaug.errors import OptionError
from tests.helpers.data import BYTES_CONFIG, noise_set
from tests.helpers.training import CPU, read_summary, train_args

IMAGENET = {**BYTES_CONFIG, 'mean': (0.485, 0.456, 0.406), 'std': (0.229, 0.224, 0.225)}


@pytest.mark.parametrize(
    ('given', 'channels', 'mode'),
    [
        (None, 3, 'RGB'),
        (None, 1, 'L'),
        ('YCbCr', 3, 'YCbCr'),
        ('RGBA', 4, 'RGBA'),
        ('LA', 2, 'LA'),
        ('I;16', 1, 'I;16'),
    ],
)
def test_images_are_read_in_a_mode_of_as_many_channels(given, channels, mode):
    assert image_mode(given, channels) == mode


@pytest.mark.parametrize(
    ('given', 'channels', 'message'),
    [
        ('RGB', 1, r'--input-img-mode RGB: images in mode RGB have 3 channels, the model takes 1'),
        ('L', 3, r'--input-img-mode L: images in mode L have 1 channels, the model takes 3'),
        (None, 4, r'--in-chans 4 without --input-img-mode: images in mode L have 1 channels, the model takes 4'),
    ],
)
def test_a_mode_of_other_channels_is_an_error(given, channels, message):
    with pytest.raises(OptionError, match=message):
        image_mode(given, channels)


def test_channels_are_those_of_the_options():
    lines = {(): 3, ('--in-chans', 1): 1, ('--input-size', 4, 32, 32): 4, ('--img-size', 32): 3}
    for options, channels in lines.items():
        assert input_channels(train_args(*options)) == channels


@pytest.mark.parametrize('channels', [1, 4])
@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')
def test_statistics_are_averaged_as_timms_loader_averages_them(channels):
    fitted = fit_channels(IMAGENET, channels)
    assert fitted['input_size'] == (channels, 32, 32)
    common = dict(input_size=(channels, 32, 32), batch_size=2, num_workers=0, device=CPU)
    timms = create_loader(noise_set(2), mean=IMAGENET['mean'], std=IMAGENET['std'], **common)
    ours = create_loader(noise_set(2), mean=fitted['mean'], std=fitted['std'], **common)
    assert torch.equal(ours.mean, timms.mean)
    assert torch.equal(ours.std, timms.std)


def test_statistics_that_fit_stay_as_they_are(caplog):
    caplog.set_level('INFO')
    assert fit_channels(IMAGENET, 3) == IMAGENET
    assert caplog.text == ''


def test_grey_images_are_normalised_without_the_prefetcher_too():
    fitted = fit_channels(IMAGENET, 1)
    common = dict(input_size=(1, 32, 32), use_prefetcher=False, crop_pct=1.0)
    transform = create_transform(**common, mean=fitted['mean'], std=fitted['std'])
    image = noise_set(1)[0][0].convert('L')
    expected = (torch.from_numpy(np.array(image)) / 255 - np.mean(IMAGENET['mean'])) / np.mean(IMAGENET['std'])
    torch.testing.assert_close(transform(image)[0], expected.float())


@pytest.mark.filterwarnings('ignore:unclosed file:ResourceWarning')
@pytest.mark.parametrize(
    'options',
    [
        ('--uada',),
        ('--in-chans', 1),
        ('--in-chans', 1, '--no-prefetcher'),
        ('--in-chans', 1, '--uada'),
        ('--in-chans', 1, '--maxup', 2, '--maxup-warmup-epochs', 0, '--maxup-aug', 'gauss'),
        ('--in-chans', 1, '--aa', 'rand-m9-n2'),
    ],
    ids=lambda options: ' '.join(map(str, options)),
)
def test_the_log_has_no_alarm_about_statistics(train, caplog, options):
    caplog.set_level('WARNING')
    size = ('--input-size', 1, 32, 32) if '--in-chans' in options else ()
    rows = read_summary(train('--epochs', 1, *size, *options))
    assert len(rows) == 1
    assert 'mean' not in caplog.text
