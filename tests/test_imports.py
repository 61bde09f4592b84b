"""Rooms import each other in one direction, and only methods and options name a method."""

import ast

import pytest

from tests.helpers.commands import ROOT

FREE = {'errors', 'seeds', 'files', 'device', 'cli'}  # for all
ALLOWED = {
    'train.py': {'training', 'options'},
    'validate.py': {'validation', 'evaluators', 'options', 'data.splits'},
    'options': set(),
    'training': {'methods', 'data', 'evaluators', 'slimmable.shapes', 'slimmable.structure'},
    'methods': {'augment', 'slimmable', 'data'},
    'validation': {'data', 'slimmable', 'evaluators'},
    'evaluators': {'augment'},
    'detection': {'slimmable', 'training', 'methods.gradaug', 'methods.subnetworks', 'data.workers'},
    'augment': set(),
    'data': set(),
    'models': set(),
    'slimmable': set(),
    **{name: set() for name in FREE},
}
# What single files need: rows of options and their text; for `--risk` the options and phases of a run.
HELPERS = {
    ('detection', 'options'),
    ('detection.model', 'options.parser'),
    ('training.run', 'options'),
    ('validation.bulk', 'options.parser'),
    ('evaluators.corrupt', 'options.parser'),
    ('validation.training_images', 'options'),
    ('validation.training_images', 'training.phases'),
}


def sources():
    return [ROOT / 'train.py', ROOT / 'validate.py', *sorted((ROOT / 'regaug').rglob('*.py'))]


def name_of(path):
    """Dotted name inside regaug, or the name of a script."""
    if path.parent == ROOT:
        return path.name
    return '.'.join(path.relative_to(ROOT / 'regaug').with_suffix('').parts).removesuffix('.__init__')


def imports_of(path):
    """Dotted names that a file imports, wherever the statement stands."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f'{path}: relative imports hide where they lead'
            found |= {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def is_allowed(importer, imported):
    """Whether a module of regaug may import a name in it, both without the `regaug.` in front."""
    room, target = importer.partition('.')[0], imported.partition('.')[0]
    if target in {room, *FREE} or any(
        importer == helped and f'{imported}.'.startswith(f'{helper}.') for helped, helper in HELPERS
    ):
        return True
    return any(f'{imported}.'.startswith(f'{allowed}.') for allowed in ALLOWED[room if room in ALLOWED else importer])


def test_every_room_has_its_directions():
    rooms = {name_of(path).partition('.')[0] for path in sources()} - {'train', 'validate', '__init__'}
    assert rooms - set(ALLOWED) == set()


@pytest.mark.parametrize('path', sources(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    importer = name_of(path)
    if importer == '__init__':
        assert imports_of(path) <= {'regaug.models'}  # which registers networks with timm
        return
    ours = {name.removeprefix('regaug.') for name in imports_of(path) if name.partition('.')[0] == 'regaug'}
    assert {name for name in ours if not is_allowed(importer, name)} == set()
    assert not {name for name in imports_of(path) if name.partition('.')[0] in ('tests', 'benchmarks')}


def test_benchmarks_and_helpers_stand_on_their_own():
    for path in (ROOT / 'benchmarks').rglob('*.py'):
        assert not {name for name in imports_of(path) if name.partition('.')[0] == 'tests'}, path


def test_what_would_be_a_wrong_direction_is_found():
    assert is_allowed('training.run', 'methods.create_methods')
    assert is_allowed('training.model', 'slimmable.shapes.shape_error')
    assert is_allowed('slimmable.plan', 'errors.OptionError')
    assert is_allowed('detection.model', 'methods.gradaug.GradAug')
    for importer, imported in (
        ('training.run', 'methods_of_others.gradaug'),
        ('training.engine', 'slimmable.Twin'),
        ('methods.gradaug', 'training.phases.phase_at'),
        ('data.loaders', 'training.phases'),
        ('training.engine', 'detection.model'),
        ('detection.model', 'methods.uada'),
        ('detection.data', 'options.parser'),
        ('slimmable.plan', 'methods.gradaug'),
        ('options.parser', 'data.loaders'),
        ('files', 'training.checkpoints'),
        ('train.py', 'methods'),
    ):
        assert not is_allowed(importer, imported), (importer, imported)


# What refinement switches off stands in `phases`; the paper that freezes batch-norm is named in `model`.
NAMES = {ROOT / 'regaug' / 'training' / 'phases.py', ROOT / 'regaug' / 'training' / 'model.py'}


def test_nothing_but_methods_and_options_names_a_method():
    files = {path for room in ('training', 'data') for path in (ROOT / 'regaug' / room).rglob('*.py')} - NAMES
    assert len(files) > 10
    for path in files | {ROOT / 'train.py'}:
        words = [word for word in ('gradaug', 'maxup', 'uada', 'manifold') if word in path.read_text().lower()]
        assert words == [], path
