"""README says what is so: its commands parse, the first one runs, and its options are those that exist."""

import json
import re
import resource
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch.distributed.run import get_args_parser as torchrun_parser

from regaug.detection import detection_parser
from regaug.detection import parse as parse_detection
from regaug.options import parse_train, parse_validate, train_parser, validate_parser
from tests.conftest import process_environment
from tests.helpers.commands import ROOT, commands, our_commands, script_of, shell_blocks, with_existing_files
from tests.helpers.training import read_summary, run_argv

OPTION = re.compile(r'(?<![\w-])--[a-z][a-z0-9-]*')


def text():
    return (ROOT / 'README.md').read_text()


def all_commands():
    return our_commands(shell_blocks(text()))


def digits_arguments():
    """Arguments of the first training command, which trains the embedded digits."""
    script, _, arguments = all_commands()[0]
    assert script == 'train.py'
    assert any('digits' in argument for argument in arguments)
    return arguments


def flags(parser):
    return {flag for action in parser._actions for flag in action.option_strings}


# --- commands -----------------------------------------------------------------------------------------------------


def test_all_commands_parse(image_folder, tmp_path, monkeypatch):
    (tmp_path / 'file.pth').touch()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    found = all_commands()
    for script, launcher, arguments in found:
        with monkeypatch.context() as patch:
            if 'torchrun' in launcher:
                patch.setenv('WORLD_SIZE', '8')
            parse = {'train.py': parse_train, 'validate.py': parse_validate}.get(script, parse_detection)
            args = parse(with_existing_files(arguments, image_folder, tmp_path / 'file.pth'))
            assert args.data_dir == (None if args.dataset == 'regaug/digits' else str(image_folder))
    assert len(found) >= 8


def test_launchers_are_python_or_torchrun_with_options_of_theirs():
    for script, launcher, arguments in all_commands():
        words = [word for word in launcher if not re.fullmatch(r'\w+=.*', word)]  # without FOO=bar in front
        if 'torchrun' in words:
            parsed = torchrun_parser().parse_args([*words[words.index('torchrun') + 1 :], script, *arguments])
            assert parsed.training_script == script
            assert parsed.training_script_args == arguments
        else:
            assert re.fullmatch(r'(.*/)?python3?( -m)?', ' '.join(words)), words


def test_commands_of_one_recipe_have_one_batch_whatever_the_number_of_processes(image_folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    batches = {}
    for script, launcher, arguments in all_commands():
        if script == 'train.py' and '-c' in arguments:
            args = parse_train(with_existing_files(arguments, image_folder, image_folder))
            processes = 1
            if 'torchrun' in launcher:
                parsed = torchrun_parser().parse_args([*launcher[launcher.index('torchrun') + 1 :], script])
                processes = int(parsed.nnodes.rpartition(':')[2]) * int(parsed.nproc_per_node)
            batch = args.batch_size * args.grad_accum_steps * processes
            batches.setdefault(arguments[arguments.index('-c') + 1], []).append(batch)
    assert max(map(len, batches.values())) >= 3
    assert all(len(set(found)) == 1 for found in batches.values()), batches


def test_the_uses_that_a_reader_looks_for_have_a_command():
    lines = [(script, ' '.join(launcher), ' '.join(arguments)) for script, launcher, arguments in all_commands()]

    def has(script, *, launcher='', arguments=''):
        return any(
            name == script and re.search(launcher, before) and re.search(arguments, after)
            for name, before, after in lines
        )

    assert has('train.py', arguments='digits')
    assert has('train.py', launcher=r'python3?$', arguments='(?i)imagenet')
    assert has('train.py', launcher=r'torchrun.*--nproc[-_]per[-_]node[ =]8')
    assert has('train.py', launcher=r'torchrun.*--nnodes[ =]')
    assert has('train.py', arguments='--grad-accum-steps')
    assert has('train.py', arguments='--pretrained')
    assert has('train.py', arguments='--gradaug')
    assert has('train.py', arguments='--refine-epochs')
    assert has('validate.py', arguments='--checkpoint')
    assert re.search(r'`[^`]*--resume auto', text())
    assert re.search(r'`[^`]*--log-wandb', text())


def test_first_command_sets_up_and_trains_the_second_sets_up_and_tests():
    first, second = [commands(block) for block in shell_blocks(text())][:2]
    for block in (first, second):
        words = [word for command in block for word in command]
        assert 'venv' in words
        assert 'install' in words
    assert any(script_of(words) is not None for words in first)
    assert any(any(word.endswith('pytest') for word in words) for words in second)


def test_files_that_commands_name_are_there():
    named = []
    for block in shell_blocks(text()):
        for words in commands(block):
            named += [value for option, value in pairwise(words) if option == '-r']
            named += [word for word in words if word.endswith('.py')]
            if script_of(words) is not None:
                named += [value for option, value in pairwise(words) if option in ('-c', '--config')]
    assert {'requirements.txt', 'tests/requirements.txt', 'train.py', 'validate.py'} <= set(named)
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_links_lead_to_files_that_are_there():
    targets = re.findall(r'\]\(([^)#\s]+)', text())
    local = [target for target in targets if '://' not in target and not target.startswith('mailto:')]
    assert [target for target in local if not (ROOT / target).exists()] == []


def digits_from_anywhere():
    """Arguments of the first training command, to be given in another folder."""
    return [str(ROOT / word) if (ROOT / word).is_file() else word for word in digits_arguments()]


def test_first_training_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_argv([*digits_from_anywhere(), '--epochs', '1', '--warmup-epochs', '0'])
    [summary] = tmp_path.rglob('summary.csv')
    [row] = read_summary(summary.parent)
    assert float(row['eval_top1']) > 30  # by chance: 10


@pytest.mark.slow
def test_first_training_command_reaches_the_promised_accuracy_in_two_minutes_of_one_core(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(ROOT / 'train.py'), *digits_from_anywhere()]
    subprocess.run(command, cwd=tmp_path, env=process_environment(), timeout=900, check=True)
    [summary] = tmp_path.rglob('summary.csv')
    rows = read_summary(summary.parent)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 120
    assert float(rows[-1]['eval_top1']) >= 97


def test_the_accuracy_to_expect_is_reported_near_the_first_command():
    before_imagenet = text()[: text().lower().index('imagenet', text().index('digits'))]
    assert re.search(r'\b9[789](\.\d)? ?%', before_imagenet)


def test_continuous_integration_starts_clean_and_ends_with_the_command_of_the_text():
    lines = (ROOT / '.ci' / 'run').read_text().splitlines()
    first, second = [block.strip() for block in shell_blocks(text())][:2]
    assert lines[-1] == second
    assert 'pytest' in second and 'pytest' not in first
    steps = [line for line in lines if not line.startswith('#')]
    cleaned = steps.index('rm -rf .venv')
    assert cleaned < min(index for index, line in enumerate(steps) if 'pip install' in line or '-m venv' in line)
    assert any('ruff check' in line for line in steps) and any('ruff format --check' in line for line in steps)
    assert steps[0] == 'set -eu'  # which makes a failing step the end


# --- options ------------------------------------------------------------------------------------------------------


def mentioned_options():
    """Options in the text, but for those of other programs."""
    readme = text()
    others = set()
    spans = re.findall(r'(?<!`)`([^`\n]+)`(?!`)', readme)
    for block in [*shell_blocks(readme), *(span for span in spans if not span.lstrip().startswith('--'))]:
        for words in commands(block):
            index = script_of(words)
            others.update(OPTION.findall(' '.join(words if index is None else words[:index])))
    return set(OPTION.findall(readme)) - others


def test_every_option_of_the_text_exists():
    known = flags(train_parser()) | flags(validate_parser()) | flags(detection_parser())
    mentioned = mentioned_options()
    # A name that ends in a dash stands for all that begin so.
    unknown = {
        option
        for option in mentioned - known
        if not (option.endswith('-') and any(flag.startswith(option) for flag in known))
    }
    assert unknown == set()
    assert len(mentioned) > 30


def test_every_option_of_our_own_is_explained():
    timms = json.loads((ROOT / 'tests/data/cli.json').read_text())
    own = set()
    for script, parser in (('train', train_parser()), ('validate', validate_parser()), ('train', detection_parser())):
        own |= flags(parser) - {flag for option in timms[script] for flag in option['flags']}
    assert {flag for flag in own if len(flag) > 2} - {'--help', '--config'} - set(OPTION.findall(text())) == set()


def test_a_mistyped_option_would_be_found(monkeypatch):
    readme = 'Use `--gradaug` or `--gradaugg`, not `pip --upgrade`.\n```bash\ngit clone --depth 1 x\n```\n'
    monkeypatch.setattr(sys.modules[__name__], 'text', lambda: readme)
    assert mentioned_options() == {'--gradaug', '--gradaugg'}
