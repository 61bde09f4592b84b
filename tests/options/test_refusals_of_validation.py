"""What validate.py cannot use is refused by option and value."""

import pytest

from regaug.options import parse_validate
from tests.helpers.options import assert_refused

REFUSALS = [
    ('--device nvidia', ['--device nvidia', '--device cpu']),
    ('--amp --model-dtype float16', ['--model-dtype float16', '--amp']),
    ('--fuser fast', ['--fuser fast']),
    ('--torchcompile inducter', ['--torchcompile inducter', 'inductor']),
    ('--model resnet5O', ['--model resnet5O', 'resnet50']),
    ('--model resnet200', ['--model resnet200', '--checkpoint']),
    ('--model nothing*', ['--model nothing*', 'no pretrained model']),
    ('--checkpoint gone.pth', ['--checkpoint gone.pth']),
    ('--input-size 3 32 0', ['--input-size 3 32 0']),
    ('--mean 0.5 0.5', ['--mean 0.5 0.5']),
    ('--interpolation random', ['--interpolation random']),
    ('--dataset= --data-dir gone', ['--data-dir gone']),
    ('--dataset=', ['--data-dir', 'none was given']),
    ('--crop-mode middle', ['--crop-mode middle', 'center']),
    ('--results-format xml', ['--results-format xml', 'json']),
    ('--real-labels gone.json', ['--real-labels gone.json']),
    ('--real-labels notes.txt --ece', ['--ece', '--real-labels notes.txt', 'labels of the data']),
    ('--real-labels notes.txt --certify 0.5', ['--certify 0.5', '--real-labels notes.txt']),
    ('--real-labels notes.txt --imagenet-c images', ['--imagenet-c images', '--real-labels notes.txt']),
    ('--valid-labels gone.txt', ['--valid-labels gone.txt']),
    ('--metrics-avg mean', ['--metrics-avg', "'mean'", 'macro']),
    ('--width 0', ['--width 0']),
    ('--width 1.0 1.5', ['--width 1.0 1.5']),
    ('--width 0.9 --torchscript', ['--width 0.9', '--torchscript']),
    ('--width 0.9 --naflex-loader', ['--width 0.9', '--naflex-loader']),
    ('--calibrate-images 0', ['--calibrate-images 0']),
    ('--seed -1', ['--seed -1']),
]


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_what_cannot_be_used_is_refused_by_option_and_value(workplace, line, parts):
    assert_refused(line, parts, parse_validate)
