"""What the tests of options share: command lines that need no data and no GPU, and what a refusal says."""

import pytest

from regaug.errors import OptionError
from regaug.options import parse_train

BASE = ['--device', 'cpu', '--dataset', 'regaug/digits', '--model', 'resnet10t']


def refusal(argv, parse=parse_train):
    """The one line that refuses these arguments."""
    with pytest.raises(OptionError) as caught:
        parse(argv)
    message = str(caught.value)
    assert '\n' not in message
    return message


def assert_refused(line, parts, parse=parse_train):
    """The arguments of a line, behind `BASE`, are refused by a message that has all the parts."""
    message = refusal([*BASE, *line.split(' ')], parse)
    assert [part for part in parts if part not in message] == [], message
