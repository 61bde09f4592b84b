"""Runs of several folders in one report: `--runs`."""

import shlex
from dataclasses import replace

import pytest

from benchmarks.accuracy.report import cells, markdown, table, write_runs
from benchmarks.accuracy.results import Result, read_csv, write_csv
from benchmarks.report import device_kind
from regaug.errors import OptionError
from tests.helpers.accuracy import OPTIONS, add, make_harness

FAILED = Result(
    'method', 1, status='failed', reason='Epoch 3: the loss, "cross entropy",\nwas not finite.', epochs=None
)


@pytest.fixture
def made(tmp_path):
    """A harness whose method has run on seeds 0 and 1, with the base for its time; and the file of its runs."""
    harness = make_harness(tmp_path)
    for seed in (0, 1):
        add(harness, 'plain', seed, 90.0 + seed + 1 / 3)
        add(harness, 'method', seed, 92.0 + seed + 1 / 3, seconds=20.0)
    add(harness, 'plain-time-of-method', 0, 93.0, seconds=20.0, epochs=80)
    for (variant, _), result in harness.results.items():
        more = {'plain': '', 'method': ' --mixup 0.5'}
        result.options = OPTIONS + more.get(variant, ' --epochs 80 --val-interval 20')
        result.device = 'processor A'
    return harness, write_runs(harness)


def reader(folder, path, **options):
    folder.mkdir()
    harness = make_harness(folder, **options)
    harness.runs = [path]
    return harness


def test_results_come_back_from_the_file_as_they_were(made, tmp_path):
    harness, _ = made
    found = [*harness.results.values(), FAILED]
    write_csv(found, tmp_path / 'all.csv')
    assert read_csv(tmp_path / 'all.csv') == found


def test_runs_of_another_folder_count_as_done_and_are_told_with_its_own(made, tmp_path):
    harness, path = made
    other = reader(tmp_path / 'other', path)
    other.read_results()
    assert other.results == harness.results
    assert set(other.pending()) == set(harness.pending()) and len(other.pending()) == 10
    assert [cells(row) for row in table(other)] == [cells(row) for row in table(harness)]
    assert '- runs: 5 on processor A\n' in markdown(other)
    assert read_csv(write_runs(other)) == read_csv(path)


def test_own_finished_run_stays_and_a_failed_one_of_elsewhere_does_not_count(made, tmp_path):
    harness, path = made
    write_csv([*harness.results.values(), replace(FAILED, seed=2)], path)
    other = reader(tmp_path / 'other', path)
    add(other, 'plain', 0, 80.0)
    other.results['plain', 1] = Result('plain', 1, status='failed', reason='no')
    other.read_results()
    assert other.results['plain', 0].final == 80.0
    assert other.results['plain', 1].final == 91.0 + 1 / 3
    assert ('method', 2) not in other.results


def test_seeds_and_variants_that_the_spec_leaves_out_are_left_out(made, tmp_path):
    harness, path = made
    write_csv([*harness.results.values(), Result('unknown', 0, options='--lr 1')], path)
    other = reader(tmp_path / 'other', path, seeds=1)
    other.read_results()
    assert set(other.results) == {('plain', 0), ('method', 0), ('plain-time-of-method', 0)}


@pytest.mark.parametrize(
    'variant, options',
    [
        ('plain', f'{OPTIONS} --lr 1'),
        ('method', OPTIONS),
        ('plain-time-of-method', OPTIONS),  # no number of epochs: not what the harness gives it
        ('plain-time-of-method', '--lr 1 --epochs 80 --val-interval 20'),
        ('plain-time-of-method', f'{OPTIONS} --epochs 80 --val-interval 20 --lr 1'),
        ('plain', ''),
    ],
)
def test_run_with_other_options_is_refused(made, tmp_path, variant, options):
    harness, path = made
    harness.results[variant, 0].options = options
    write_csv(harness.results.values(), path)
    with pytest.raises(OptionError, match=rf'--runs .*: {variant}, seed 0: made with other options or data') as caught:
        reader(tmp_path / 'other', path).read_results()
    assert '\n' not in str(caught.value)


def test_run_on_data_of_another_name_is_refused_and_one_of_an_older_version_is_not(tmp_path):
    here = make_harness(folder(tmp_path, 'here'))
    for name, data in (('one', 'a set'), ('moved', 'a set'), ('other', 'b'), ('unknown', '')):
        specs = replace(here.spec, data=data)
        line = specs.line(specs.argv('method'))
        longer = f'{specs.line(specs.argv("plain"))} --epochs 80 --val-interval 20'
        assert line.startswith({'a set': "'data=a set' ", 'b': 'data=b ', '': '--model'}[data])
        for known in ('a set', ''):
            fits = replace(here.spec, data=known)
            assert fits.matches('method', line) == (name != 'other' or not known)
            assert fits.matches('plain-time-of-method', longer) == (name != 'other' or not known)


def test_run_with_another_number_of_digits_is_refused(tmp_path):
    ten, twenty = (make_harness(folder(tmp_path, name), digits=name) for name in (10, 20))
    ten.folder('plain', 0).mkdir(parents=True)
    (ten.folder('plain', 0) / 'log.txt').write_text('killed')
    ten.finish('plain', 0, 1, 1.0)
    line = ten.results['plain', 0].options
    assert line == f'digits=10 {OPTIONS}'
    assert ten.spec.matches('plain', line) and not twenty.spec.matches('plain', line)
    longer = f'{line} --epochs 80 --val-interval 20'
    name = 'plain-time-of-method'
    assert ten.spec.matches(name, longer) and not twenty.spec.matches(name, longer)


def folder(parent, name):
    path = parent / str(name)
    path.mkdir()
    return path


@pytest.mark.parametrize(
    'text',
    [None, '', 'variant,seed\nplain,0\n', '\xff', 'HEADER\nplain,x' + ',' * 14, 'HEADER\nplain', 'HEADER\n' + ',' * 20],
)
def test_file_that_is_none_of_the_benchmark_is_refused(made, tmp_path, text):
    _, path = made
    header = path.read_text().splitlines()[0]
    path.unlink()
    if text is not None:
        path.write_bytes(text.replace('HEADER', header).encode('latin-1'))
    with pytest.raises(OptionError, match=r'no runs.csv of this benchmark') as caught:
        reader(tmp_path / 'other', path).read_results()
    assert '\n' not in str(caught.value)


def test_times_are_compared_on_one_kind_of_device_only(made):
    harness, _ = made
    assert harness.cost('method') is None  # seed 2 is missing
    harness.results['method', 1].device = 'processor B'
    harness.results['method', 1].processor_seconds = 50.0
    row = next(row for row in table(harness) if row.name == 'method')
    assert row.cost == 2.0 and row.to_base.mean == 2.0 and row.to_base.count == 2
    for variant in ('plain', 'method'):
        add(harness, variant, 2, 90.0, seconds={'plain': 10.0, 'method': 24.0}[variant])
    assert harness.cost('method') == pytest.approx(2.2)  # of 2.0 and 2.4
    assert '- runs: 4 on processor A; 1 on processor B\n' in markdown(harness)


def test_a_run_knows_its_device_and_its_options(tmp_path, monkeypatch):
    harness = make_harness(tmp_path)
    folder = harness.folder('method', 0)
    folder.mkdir(parents=True)
    (folder / 'log.txt').write_text('killed')
    harness.finish('method', 0, 1, 1.0)
    result = harness.results['method', 0]
    assert result.device == device_kind(on_cpu=True)
    assert shlex.split(result.options) == [*OPTIONS.split(), '--mixup', '0.5']
