"""The command line of `python -m regaug.detection`: defaults, what is refused, and the file that `-c` reads back."""

import pytest
import yaml

from regaug.detection import as_config, parse
from regaug.errors import OptionError
from tests.helpers.detection import detection_argv


def parse_with(*options):
    return parse(detection_argv('/data', *options))


def test_defaults_are_the_papers_and_the_1x_schedule():
    args = parse(['--data-dir', '/data', '--device', 'cpu'])
    assert (args.size, args.max_size, args.gradaug_sizes) == (600, 1000, [600, 500, 400, 300])
    assert (args.gradaug, args.gradaug_min_width) == (0, 0.9)
    assert (args.epochs, args.decay_milestones, args.warmup_updates) == (12, [8, 11], 500)
    assert (args.lr, args.lr_base, args.lr_base_size) == (None, 0.02, 16)
    assert (args.momentum, args.weight_decay, args.backbone, args.detector) == (0.9, 1e-4, 'resnet50', 'mask')


def test_sizes_and_milestones_follow_size_and_epochs():
    args = parse_with('--size', 120, '--epochs', 24)
    assert (args.max_size, args.gradaug_sizes) == (200, [120, 100, 80, 60])
    assert args.decay_milestones == [16, 22]


@pytest.mark.parametrize(
    'options, message',
    [
        (['--gradaug-sizes', 65], r'--gradaug-sizes 65: must not be above --size 64'),
        (['--gradaug-sizes', 0], r'--gradaug-sizes 0: must be at least 1'),
        (['--max-size', 50], r'--max-size 50: is less than --size 64'),
        (['--detector-kwargs', 'box_score_tresh=1'], r'--detector-kwargs .*did you mean box_score_thresh'),
        (['--backbone', 'resnet51'], r'--backbone resnet51: unknown model'),
        (['--backbone', 'test_coatnet2', '--pretrained'], r'--backbone test_coatnet2: '),
        (['--checkpoint', '/no.pth'], r'--checkpoint /no.pth: there is no such file'),
        (['--resume', '/no.pth'], r'--resume /no.pth: there is no such file'),
        (['--decay-milestones', 8, 4], r'--decay-milestones 8.0 4.0: must be in ascending order'),
        (['--resume', 'auto', '--overwrite'], r'--overwrite: does not go with --resume auto'),
        (['--gradaug', -1], r'--gradaug -1: must not be negative'),
        (['--detector', 'yolo'], r'invalid choice'),
        (['--mixup', 1], r'unknown argument --mixup'),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, message):
    with pytest.raises(OptionError, match=message) as error:
        parse_with(*options)
    assert '\n' not in str(error.value)


def test_data_folder_is_needed():
    with pytest.raises(OptionError, match='--data-dir: is needed'):
        parse(['--device', 'cpu'])


def test_options_without_gradaug_warn(caplog):
    parse_with('--gradaug-sizes', 32)
    assert '--gradaug-sizes 32 has no effect without --gradaug.' in caplog.text


def test_config_is_read_back(tmp_path):
    args = parse_with('--gradaug', 2, '--epochs', 7, '--amp', '--resume', 'auto')
    path = tmp_path / 'args.yaml'
    path.write_text(as_config(args))
    assert yaml.safe_load(path.read_text())['resume'] == ''
    again = parse(['-c', str(path)])
    assert {**vars(again), 'resume': 'auto'} == vars(args)
    assert parse(['-c', str(path), '--epochs', '9']).epochs == 9
