"""A method's options are one file: its rows, its defaults, its checks and what holds for every method."""

import json
import shutil
import subprocess
import sys

import pytest

from regaug.options import OWN_TRAIN
from tests.conftest import ROOT, process_environment
from tests.helpers.options import BASE

THEME = """
from regaug.options.parser import Group, Option, require

TRAIN = Group(
    'Ablation parameters',
    Option('--ablate', int, 0, 'layers to leave out', low=0),
    Option('--ablate-rate', float, None, 'how often', above=0, high=1),
    switch='--ablate',
)


def resolve(args, chosen):
    if args.ablate and 'ablate_rate' not in chosen:
        args.ablate_rate = 1 / args.ablate


def check(args):
    require(args, '--ablate', args.ablate < args.batch_size, 'needs a larger batch')
"""

PROGRAM = """
import json, logging, sys
from regaug.errors import OptionError
from regaug.options import args_as_yaml, parse_train, train_parser
logging.basicConfig(stream=sys.stdout, format='%(message)s')

def outcome(line):
    try:
        args = parse_train(json.loads(sys.argv[1]) + line.split())
        return [args.ablate, args.ablate_rate]
    except OptionError as error:
        return str(error)

lines = ['', '--ablate 4', '--ablate 4 --ablate-rate 0.5', '--ablate -1', '--ablate 200', '--ablate 4 --torchscript',
         '--ablate 4 --aug-splits 2', '--ablate 4 --naflex-loader', '--ablade 4', '--torchscript', '--ablate-rate 0.5']
print(json.dumps({line: outcome(line) for line in lines} | {'help': train_parser().format_help()}))
"""


@pytest.fixture(scope='module')
def outcomes(tmp_path_factory):
    """What the command line makes of a method whose one file is new in options/."""
    root = tmp_path_factory.mktemp('project')
    (root / 'regaug').mkdir()
    for path in (ROOT / 'regaug').iterdir():
        if path.name == 'options':
            shutil.copytree(path, root / 'regaug' / 'options', ignore=shutil.ignore_patterns('__pycache__'))
        else:
            (root / 'regaug' / path.name).symlink_to(path)
    (root / 'regaug' / 'options' / 'ablation.py').write_text(THEME)
    command = [sys.executable, '-c', PROGRAM, json.dumps(BASE)]
    result = subprocess.run(command, cwd=root, env=process_environment(), capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    *warnings, line = result.stdout.splitlines()
    return json.loads(line) | {'warnings': warnings}


@pytest.mark.slow
def test_its_rows_and_defaults_are_found(outcomes):
    assert outcomes[''] == [0, None]
    assert outcomes['--ablate 4'] == [4, 0.25]
    assert outcomes['--ablate 4 --ablate-rate 0.5'] == [4, 0.5]
    assert 'Ablation parameters' in outcomes['help']
    assert outcomes['--ablade 4'].startswith('unknown argument --ablade; did you mean --ablate')


@pytest.mark.slow
def test_its_bounds_and_checks_hold(outcomes):
    assert outcomes['--ablate -1'] == '--ablate -1: must not be negative'
    assert outcomes['--ablate 200'] == '--ablate 200: needs a larger batch'


@pytest.mark.slow
def test_what_no_method_can_work_with_is_refused_with_it_and_not_without(outcomes):
    for other in ('--torchscript', '--aug-splits 2', '--naflex-loader'):
        assert outcomes[f'--ablate 4 {other}'].startswith(f'--ablate 4: does not go with {other}')
    assert outcomes['--torchscript'] == [0, None]


@pytest.mark.slow
def test_its_options_have_no_effect_without_its_switch(outcomes):
    assert outcomes['--ablate-rate 0.5'] == [0, 0.5]
    assert outcomes['warnings'] == ['--ablate-rate 0.5 has no effect without --ablate.']


def test_every_method_of_ours_names_its_switch():
    switches = ['--gradaug', '--manifold-mixup', '--maxup', '--refine-epochs', '--unlabeled-split', '--uada']
    assert [group.switch for group in OWN_TRAIN if group.switch] == switches
