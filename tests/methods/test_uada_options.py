"""UADA's options: what cannot work is refused by option and value, before any data is read and anything is written."""

import pytest
import torch
from timm.models import register_model
from torch import nn

import regaug.training.run
from regaug.errors import OptionError
from regaug.options import parse_train
from tests.helpers.training import follow_log

REFUSALS = [
    # groups
    ('--uada-groups', ['--uada-groups', 'at least one']),
    ('--uada-groups policy colour', ['--uada-groups policy colour', "unknown group 'colour'"]),
    ('--uada-groups polisy', ['--uada-groups polisy', "unknown group 'polisy'", 'did you mean policy']),
    ('--uada-groups flip policy flip', ['--uada-groups flip policy flip', 'once']),
    ('--uada-groups crop policy', ['--uada-groups crop policy', '--pad-crop']),
    # sizes
    ('--uada-delta 0', ['--uada-delta 0', 'at least 1']),
    ('--uada-delta -1', ['--uada-delta -1', 'at least 1']),
    ('--uada-epsilon -1', ['--uada-epsilon -1', 'negative']),
    ('--uada-groups cutout --cutout-size 0', ['--cutout-size 0', 'at least 1']),
    # other augmentations
    ('--maxup 4 --maxup-aug cutout', ['--maxup 4', '--uada']),
    ('--mixup 0.2', ['--uada', '--mixup 0.2']),
    ('--cutmix 1.0', ['--uada', '--cutmix 1.0']),
    ('--cutmix-minmax 0.2 0.8', ['--uada', '--cutmix-minmax 0.2 0.8']),
    ('--manifold-mixup 2.0', ['--uada', '--manifold-mixup 2.0']),
    ('--aa rand-m9-mstd0.5', ['--uada', '--aa rand-m9-mstd0.5']),
    ('--reprob 0.25', ['--uada', '--reprob 0.25']),
    # batches that are no images, or no single ones
    ('--aug-splits 3', ['--uada', '--aug-splits 3']),
    ('--aug-splits 3 --jsd-loss', ['--uada', '--jsd-loss']),
    ('--naflex-loader --model naflexvit_base_patch16_gap', ['--uada', '--naflex-loader']),
    ('--torchscript', ['--uada', '--torchscript']),
    # number formats and ranks
    ('--model-dtype bfloat16 --no-prefetcher', ['--uada', '--no-prefetcher']),
]


@pytest.fixture
def no_data(monkeypatch):
    """Data sets are not even looked for."""

    def refuse(*args, **kwargs):
        raise AssertionError('data was loaded')

    monkeypatch.setattr(regaug.training.run, 'create_datasets', refuse)


@pytest.mark.parametrize(('line', 'parts'), REFUSALS, ids=[line for line, _ in REFUSALS])
def test_options_that_cannot_work_are_refused_by_name_and_value(line, parts, train, no_data, tmp_path):
    with pytest.raises(OptionError) as caught:
        train('--uada', *line.split())
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert '\n' not in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('line', [line for line, _ in REFUSALS if '--uada' not in line and '--cutout' not in line])
def test_without_uada_the_same_options_are_no_error_of_uada(line):
    """What is refused above is refused because of UADA."""
    try:
        args = parse_train(['--device', 'cpu', '--dataset', 'regaug/digits', *line.split()])
        assert not args.uada
    except OptionError as error:
        assert 'uada' not in str(error)


@pytest.mark.parametrize(
    'line',
    [
        '--uada-groups crop flip policy cutout --pad-crop 4 --hflip 0.3 --cutout-size 8',
        '--uada-epsilon 0 --uada-delta 3 --uada-ranges timm --uada-step random',
        '--model-dtype bfloat16',
        '--uada-step descend --no-prefetcher --vflip 0.5 --color-jitter 0.2',
        '--gradaug 2 --refine-epochs 3 --refine-fade 1 --bce-loss --channels-last --amp --amp-dtype bfloat16',
        '--sync-bn --grad-accum-steps 2 --model-ema --exact-resume',
        '--no-prefetcher --model-dtype float32',
    ],
)
def test_what_goes_together_is_accepted(line):
    args = parse_train(['--device', 'cpu', '--dataset', 'regaug/digits', '--uada', *line.split()])
    assert args.uada


@pytest.mark.parametrize(
    ('line', 'choices'),
    [
        ('--uada-step uphill', ('ascend', 'random', 'descend')),
        ('--uada-ranges papers', ('paper', 'timm')),
        ('--uada-delta 0.5', ('invalid int value',)),
        ('--uada-epsilon small', ('invalid int value',)),
    ],
)
def test_values_that_cannot_be_read_are_refused_with_the_choice(line, choices):
    with pytest.raises(OptionError) as caught:
        parse_train(['--device', 'cpu', '--dataset', 'regaug/digits', '--uada', *line.split()])
    message = str(caught.value)
    assert all(part in message for part in (*line.split(), *choices)), message


def test_defaults_are_those_of_the_paper():
    """One level or pixel for the probe and for the step, the paper's ranges."""
    args = parse_train(['--device', 'cpu', '--dataset', 'regaug/digits', '--uada'])
    assert (args.uada_delta, args.uada_epsilon, args.uada_step) == (1, 1, 'ascend')
    assert (args.uada_groups, args.uada_ranges, args.cutout_size) == (['policy'], 'paper', 16)
    assert not parse_train(['--device', 'cpu', '--dataset', 'regaug/digits']).uada


class Counting(nn.Module):
    """A network that counts its calls, as running statistics of other kinds do."""

    def __init__(self, num_classes=4, **kwargs):
        super().__init__()
        self.num_classes = num_classes
        self.head = nn.Linear(3, num_classes)
        self.register_buffer('calls', torch.zeros(()))

    def forward(self, input):
        self.calls += self.training
        return self.head(input.mean(dim=(2, 3)))


@register_model
def counting_network_of_the_uada_tests(pretrained=False, **kwargs):
    return Counting(kwargs['num_classes'])


COUNTING = ('--model', 'counting_network_of_the_uada_tests', '--epochs', 1)


@pytest.mark.parametrize('options', [[], ['--uada-step', 'random']])
def test_a_model_whose_buffers_a_pass_would_change_is_refused_by_the_buffers_name(options, train, tmp_path):
    with pytest.raises(OptionError, match=r"^--uada with --model counting_network.*the buffer 'calls' of Counting"):
        train('--uada', *options, *COUNTING)
    assert list(tmp_path.iterdir()) == []


def test_such_a_model_trains_where_nothing_is_scored(train, caplog):
    log = follow_log(caplog)
    assert (train('--uada', '--uada-epsilon', 0, *COUNTING) / 'last.pth.tar').exists()
    assert 'Uada passes: 0' in log.text
