import pytest

from benchmarks.accuracy.results import Result, write_csv
from benchmarks.overview import main
from regaug.errors import OptionError


def write_runs(path, finals, *, device='CPU EPYC'):
    """Finished runs with these top-1 by variant, and a failed one."""
    runs = [
        Result(
            variant,
            seed,
            epochs=4,
            final=final,
            seconds=10.0 if variant == 'plain' else 30.0,
            processor_seconds=10.0 if variant == 'plain' else 20.0,
            device=device,
        )
        for variant, values in finals.items()
        for seed, final in enumerate(values)
    ]
    write_csv([*runs, Result('gradaug', 9, status='failed', reason='no')], path)
    return path


@pytest.fixture
def comparisons(tmp_path):
    """Words for two files: a method that both have, one that the first has with the base for its time."""
    first = {
        'plain': (90.0, 92.0),
        'gradaug': (91.0, 95.0),
        'plain-time-of-gradaug': (93.0, 93.0),
        'mixup': (92.0, 94.0),
        'cutmix': (93.0,),
    }
    paths = [write_runs(tmp_path / 'one.csv', first)]
    paths.append(write_runs(tmp_path / 'two.csv', {'plain': (80.0,), 'mixup': (79.0,)}, device='GPU'))
    return [f'{name}={path}' for name, path in zip(('one', 'two'), paths, strict=True)]


def test_methods_stand_beside_the_base_in_every_comparison(comparisons, tmp_path, capsys):
    pytest.importorskip('matplotlib')
    out = tmp_path / 'both.md'
    main([*comparisons, '--out', str(out)])
    rows = [line.strip('| ').split(' | ') for line in out.read_text().splitlines() if line.startswith('|')]
    assert rows[0] == ['training', 'one', 'two']
    assert rows[2:] == [
        ['plain', '91.00 (1.41), n = 2', '80.00, n = 1'],
        ['gradaug', '+2.00 (-10.71 to 14.71), 2.00 x', '-'],
        ['plain-time-of-gradaug', '+2.00 (-10.71 to 14.71), 2.00 x', '-'],
        ['mixup', '**+2.00 (2.00 to 2.00)**, 2.00 x', '-1.00 (no interval), 3.00 x'],  # wall time, on a GPU
        ['cutmix', '+3.00 (no interval), 2.00 x, n = 1', '-'],
        ['gradaug beside plain-time-of-gradaug', '+0.00 (-25.41 to 25.41), 1.00 x', '-'],
    ]
    assert out.read_text().endswith('\nFailed runs, in no mean: one: gradaug (1), two: gradaug (1).\n')
    assert (tmp_path / 'both.png').read_bytes().startswith(b'\x89PNG')
    assert capsys.readouterr().out.split() == ['Written:', str(out), 'Written:', str(tmp_path / 'both.png')]


def test_another_base_may_be_named(comparisons, tmp_path):
    pytest.importorskip('matplotlib')
    main([comparisons[0], '--base', 'mixup', '--out', str(tmp_path / 'both.md')])
    assert '| plain | **-2.00 (-2.00 to -2.00)**, 0.50 x |' in (tmp_path / 'both.md').read_text()


def test_two_methods_are_compared_seed_by_seed_where_both_are(comparisons, tmp_path):
    pytest.importorskip('matplotlib')
    main([*comparisons, '--out', str(tmp_path / 'both.md'), '--pairs', 'gradaug:mixup', 'mixup:plain', 'cutmix:mixup'])
    written = (tmp_path / 'both.md').read_text()
    rows = [line for line in written.partition('| pair |')[2].splitlines() if line.startswith('|')]
    assert rows[1:] == [
        '| gradaug beside mixup | +0.00 (-12.71 to 12.71), 1.00 x, n = 2 | - |',
        '| mixup beside plain | **+2.00 (2.00 to 2.00)**, 2.00 x, n = 2 | -1.00 (no interval), 3.00 x, n = 1 |',
        '| cutmix beside mixup | +1.00 (no interval), 1.00 x, n = 1 | - |',
    ]
    assert 'difference of the first to the second' in written


@pytest.mark.parametrize(
    'words, message',
    [
        (['FILE'], r'expected NAME=CSV, each name once'),
        (['=FILE'], r'expected NAME=CSV'),
        (['a='], r'expected NAME=CSV'),
        (['a=FILE', 'a=FILE'], r'each name once'),
        (['a=FILE', '--base', 'other'], r'no finished run of other \(there are plain, mixup\)'),
        (['a=/no/where.csv'], r'/no/where.csv: no runs.csv of this benchmark'),
        (['a=FILE', '--pairs', 'mixup'], r'--pairs mixup: expected A:B, two methods'),
        (['a=FILE', '--pairs', ':plain'], r'--pairs :plain: expected A:B'),
        (['a=FILE', '--pairs', 'plain:'], r'--pairs plain:: expected A:B'),
        (['a=FILE', '--pairs', 'plain:plain'], r'--pairs plain:plain: expected A:B, two methods'),
        (['a=FILE', '--pairs', 'mixup:plain', 'mixup:uada'], r'--pairs mixup:uada: no comparison has both'),
        (['a=FILE', '--out', '/no/where/x.md'], r'--out /no/where/x.md: there is no folder'),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path, words, message):
    file = write_runs(tmp_path / 'runs.csv', {'plain': (1.0,), 'mixup': (2.0,)})
    with pytest.raises(OptionError, match=message) as caught:
        main([word.replace('FILE', str(file)) for word in words])
    assert '\n' not in str(caught.value)
