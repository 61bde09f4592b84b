"""Every recipe is a valid configuration, and its header says where it comes from, how to run it and what to expect."""

import re

import pytest
import torch
import yaml

from regaug.detection import parse as parse_detection
from regaug.options import parse_train
from tests.helpers.commands import ROOT, commands, our_commands, with_existing_files

FOLDER = ROOT / 'regaug' / 'recipes'
BASES = sorted((FOLDER / 'base').glob('*.yaml'))
RECIPES = sorted(path for path in FOLDER.rglob('*.yaml') if path not in BASES)
FIELD = re.compile(r'^# (\w+):? {1,}(\S.*)$')
by_recipe = pytest.mark.parametrize('recipe', RECIPES, ids=[str(path.relative_to(FOLDER)) for path in RECIPES])


def parse_for(recipe):
    """What parses the options of a recipe, and the name of its program."""
    detects = recipe.parent.name == 'detection'
    return (parse_detection, 'regaug.detection') if detects else (parse_train, 'train.py')


def read_values(path):
    """What a recipe sets, in its base or itself."""
    values = yaml.safe_load(path.read_text())
    if 'base' in values:
        values = {**yaml.safe_load((path.parent / values.pop('base')).read_text()), **values}
    return values


def read_header(path):
    """Fields of the comment that a recipe begins with: {name: text}; the first line is the field `title`."""
    first, *lines = path.read_text().split('\n\n')[0].splitlines()
    fields, name = {'title': first.removeprefix('# ')}, 'title'
    for line in lines:
        assert line.startswith('#'), f'the header ends without an empty line: {line!r}'
        found = FIELD.match(line)
        if found and found[1] in ('paper', 'command', 'cost', 'expected'):
            name = found[1]
            fields[name] = found[2]
        else:
            fields[name] += '\n' + line.removeprefix('#').strip()
    return fields


def test_there_are_recipes_and_no_other_configurations():
    assert 'digits.yaml' in [path.name for path in RECIPES]
    assert list(FOLDER.rglob('*.yml')) == []
    folders = {str(path.parent.relative_to(FOLDER)) for path in RECIPES}
    assert folders == {'.', 'detection', 'gradaug', 'maxup', 'refinement', 'uada'}


def test_every_base_has_recipes_and_no_base_itself():
    used = {
        (path.parent / base).resolve() for path in RECIPES if (base := yaml.safe_load(path.read_text()).get('base'))
    }
    assert sorted(used) == BASES
    assert not any('base' in yaml.safe_load(path.read_text()) for path in BASES)


@by_recipe
def test_recipe_is_a_valid_configuration(recipe, image_folder, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '8')  # some need several processes
    values = read_values(recipe)
    folder = [] if values.get('dataset') == 'regaug/digits' else ['--data-dir', str(image_folder)]
    args = parse_for(recipe)[0](['-c', str(recipe), '--device', 'cpu', *folder])
    for name, value in values.items():
        if name not in ('device', 'data_dir'):
            assert getattr(args, name) == (float(value) if isinstance(getattr(args, name), float) else value), name


@by_recipe
def test_recipe_leaves_places_and_names_to_the_reader(recipe):
    keys = {key.replace('-', '_') for key in read_values(recipe)}
    assert not keys & {'data', 'data_dir', 'output', 'experiment', 'resume', 'log_wandb', 'local_rank'}


@by_recipe
def test_header_names_the_paper_by_its_number(recipe):
    if recipe.name != 'digits.yaml':  # plain training
        assert re.search(r'arXiv \d{4}\.\d{4,5}', read_header(recipe)['title'])


@by_recipe
def test_header_has_the_command_that_runs_this_very_file(recipe, image_folder, tmp_path, monkeypatch):
    (tmp_path / 'file.pth').touch()
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 8)
    command = read_header(recipe)['command']
    assert len(commands(command)) == 1
    [(script, launcher, arguments)] = our_commands([command])
    parse, program = parse_for(recipe)
    assert script == program
    assert launcher[0] in ('python', 'torchrun')
    if launcher[0] == 'torchrun':
        monkeypatch.setenv('WORLD_SIZE', '8')
    assert arguments[arguments.index('-c') + 1] == str(recipe.relative_to(ROOT))
    args = parse(with_existing_files(arguments, image_folder, tmp_path / 'file.pth'))
    values = read_values(recipe)
    assert args.model == values.get('model', values.get('backbone'))


@by_recipe
def test_header_tells_the_cost_in_epochs_of_plain_training(recipe):
    cost = read_header(recipe)['cost']
    assert re.search(r'\d+ epochs', cost)
    if recipe.name != 'digits.yaml':
        assert re.search(r'\d times plain training|as plain training', cost)


@by_recipe
def test_header_tells_the_expected_result_in_figures(recipe):
    assert re.search(r'\d ?%|\d points', read_header(recipe)['expected'])


def test_the_table_of_recipes_lists_all_of_them_and_no_others():
    listed = re.findall(r'\]\(([\w./]+\.yaml)\)', (FOLDER / 'README.md').read_text())
    assert sorted(listed) == sorted(str(recipe.relative_to(FOLDER)) for recipe in RECIPES)
