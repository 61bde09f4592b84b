import csv
import statistics
from argparse import Namespace
from dataclasses import replace

import pytest
import yaml

from benchmarks.accuracy import results
from benchmarks.accuracy.report import markdown, table, write_all, write_runs
from benchmarks.accuracy.results import Result, seconds_left
from benchmarks.accuracy.spec import Spec
from regaug.errors import OptionError
from regaug.options import parse_train
from tests.helpers.accuracy import OPTIONS, add, make_harness

FINALS = {'plain': (90.0, 92.0, 94.0), 'same': (90.0, 92.0, 94.0), 'method': (91.0, 94.0, 97.0)}


@pytest.fixture
def harness(tmp_path):
    harness = make_harness(tmp_path)
    for variant, finals in FINALS.items():
        for seed, final in enumerate(finals):
            add(harness, variant, seed, final, seconds=(20.0 + seed if variant == 'method' else 10.0))
    add(harness, 'plain-time-of-method', 0, 95.0, seconds=21.0, epochs=84)
    harness.results['broken', 0] = Result('broken', 0, status='failed', reason='Epoch 3: the loss was not finite.')
    harness.results['method', 2].wall_seconds = 1.0
    return harness


def cells_of(text, name):
    line = next(line for line in text.splitlines() if line.startswith(f'| {name} |'))
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_variant_equal_to_the_base_differs_by_nothing(harness):
    row = next(row for row in table(harness) if row.name == 'same')
    assert row.to_base == (0.0, 0.0, 0.0, 3)
    assert cells_of(markdown(harness), 'same')[6] == '+0.00 (0.00 to 0.00)'


def test_row_has_mean_deviation_cost_and_paired_difference(harness):
    # Differences 1, 2, 3: mean 2, deviation 1, t(2) = 4.303, half width 4.303 / sqrt(3).
    cells = cells_of(markdown(harness), 'method')
    assert cells == [
        'method',
        '3',
        '40',
        '2.10',
        '94.00 (3.00)',
        '93.00',
        '+2.00 (-0.48 to 4.48)',
        '-4.00 (no interval)',
        '95.00',
    ]
    assert cells_of(markdown(harness), 'plain') == [
        'plain', '3', '40', '1.00', '92.00 (2.00)', '91.00', '-', '-', '93.00'
    ]  # fmt: skip


def test_interval_that_excludes_nothing_stands_in_bold(harness):
    for seed, final in enumerate((91.0, 93.1, 95.0)):
        add(harness, 'method', seed, final)
    assert cells_of(markdown(harness), 'method')[6] == '**+1.03 (0.89 to 1.18)**'


def test_longer_base_has_a_row_and_is_compared_at_equal_time_by_seed(harness):
    cells = cells_of(markdown(harness), 'plain-time-of-method')
    assert cells[1:4] == ['1', '84', '2.10']
    assert cells[6] == '+5.00 (no interval)'
    for seed, final in ((1, 94.5), (2, 96.0)):
        add(harness, 'plain-time-of-method', seed, final, seconds=20.0, epochs=84)
    assert cells_of(markdown(harness), 'plain-time-of-method')[2] == '84'
    harness.results['plain-time-of-method', 1].epochs = 120
    assert cells_of(markdown(harness), 'plain-time-of-method')[2] == '84 to 120'
    row = next(row for row in table(harness) if row.name == 'method')
    assert row.equal_time.mean == pytest.approx(statistics.fmean([-4.0, -0.5, 1.0]))


def test_number_of_comparisons_and_the_choice_of_the_best_epoch_are_told(harness):
    text = ' '.join(markdown(harness).split())
    assert 'There are 4 comparisons here' in text  # same, method (updates, time), plain-time-of-method
    assert 'best epoch*' in text and 'chosen on the test images' in text


def test_failed_run_says_why_and_is_in_no_mean(harness):
    text = markdown(harness)
    assert '- broken, seed 0: Epoch 3: the loss was not finite.' in text
    assert '| broken |' not in text
    with write_runs(harness).open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    failed = next(row for row in rows if row['variant'] == 'broken')
    assert (failed['status'], failed['reason'], failed['final']) == ('failed', 'Epoch 3: the loss was not finite.', '')
    assert [float(row['final']) for row in rows if row['variant'] == 'method'] == [91.0, 94.0, 97.0]


def test_all_files_are_written_and_the_picture_is_one(harness):
    pytest.importorskip('matplotlib')
    written = write_all(harness)
    assert [path.name for path in written] == ['runs.csv', 'report.md', 'report.png']
    assert written[2].read_bytes().startswith(b'\x89PNG')
    assert sorted(path.name for path in harness.out.iterdir()) == ['report.md', 'report.png', 'runs.csv']


def test_runs_of_mixed_lengths_have_no_common_curve_and_a_picture_all_the_same(harness):
    pytest.importorskip('matplotlib')
    add(harness, 'plain-time-of-method', 1, 94.0, epochs=120)
    for result in (harness.results['plain-time-of-method', seed] for seed in (0, 1)):
        result.curve = [[result.epochs, result.final]]
    assert next(row for row in table(harness) if row.name == 'plain-time-of-method').curve == []
    assert write_all(harness)[2].read_bytes().startswith(b'\x89PNG')


def test_report_of_nothing_is_possible(tmp_path):
    text = markdown(make_harness(tmp_path))
    assert text.startswith('# Demo\n') and '| n |' not in text


def test_equal_time_follows_the_median_cost_of_the_first_seeds(tmp_path):
    harness = make_harness(tmp_path, seeds=5)
    assert harness.cost('method') is None
    for seed, seconds in enumerate((20.0, 23.0, 90.0, 50.0)):
        assert harness.cost('method') is None or seed > 2
        add(harness, 'plain', seed, 90.0)
        add(harness, 'method', seed, 90.0, seconds=seconds)
    assert harness.cost('method') == 2.3
    words = harness.argv('plain-time-of-method', 4)
    assert words[words.index('--seed') + 1] == '4'
    args = read_back(words)
    assert (args.epochs, args.val_interval, args.mixup) == (92, 23, 0.0)


def test_cost_is_wall_time_where_the_device_is_no_cpu(tmp_path, monkeypatch):
    harness = make_harness(tmp_path, seeds=1)
    monkeypatch.setattr(Spec, 'args', lambda spec, variant: Namespace(device='cuda'))
    add(harness, 'plain', 0, 90.0)
    add(harness, 'method', 0, 90.0)
    harness.results['method', 0].seconds = 35.0
    assert harness.cost('method') == 0.5
    assert 'Cost: time of training' in markdown(harness)


def test_cost_that_cannot_be_measured_is_a_failed_run_that_says_so(tmp_path):
    harness = make_harness(tmp_path, seeds=1)
    add(harness, 'plain', 0, 90.0)
    harness.results['method', 0] = Result('method', 0, status='failed', reason='no')
    assert harness.start('plain-time-of-method', 0) is None
    result = harness.results['plain-time-of-method', 0]
    assert not result.finished and 'the cost of method could not be measured' in result.reason
    assert results.load(harness.folder('plain-time-of-method', 0)) == result


@pytest.mark.parametrize('options, split', [(OPTIONS, 0), (f'{OPTIONS} --labels-per-class 5', 7)])
def test_seed_chooses_start_and_training_images(tmp_path, options, split):
    args = read_back(make_harness(tmp_path, options=options).argv('method', 7))
    assert (args.seed, args.label_split, args.data_dir, args.mixup) == (7, split, str(tmp_path), 0.5)
    assert args.resume == 'auto' and args.exact_resume


def test_seed_chooses_the_digits_to_train_on(tmp_path, monkeypatch):
    def write(folder, per_class, split):
        folder.mkdir(parents=True)
        return folder / f'{per_class}-{split}'

    monkeypatch.setattr('benchmarks.accuracy.harness.write_digits', write)
    words = make_harness(tmp_path, digits=10).argv('plain', 3)
    assert words[words.index('--data-dir') + 1] == str(tmp_path / 'out' / 'data' / 'split3' / '10-3')
    assert words[words.index('--seed') + 1] == '3' and '--label-split' not in words


def read_back(words):
    return parse_train(words)


def test_runs_come_seed_by_seed_after_those_that_tell_the_cost(tmp_path):
    harness = make_harness(tmp_path, seeds=4)
    order = harness.pending()
    assert [seed for _, seed in order] == [0] * 4 + [1] * 4 + [2] * 4 + [0, 1, 2] + [3] * 5
    assert order[12:15] == [('plain-time-of-method', seed) for seed in range(3)]
    add(harness, 'same', 1, 90.0)
    harness.results['plain', 0] = Result('plain', 0, status='failed', reason='no')
    assert harness.pending() == [run for run in order if run != ('same', 1)]  # a failed run is tried again


def test_longer_run_waits_for_the_running_ones_that_tell_its_cost(tmp_path):
    harness = make_harness(tmp_path, seeds=4)
    assert not harness.ready(('plain-time-of-method', 0), {1: (None, 'method', 2, 0.0), 2: (None, 'same', 2, 0.0)})
    assert not harness.ready(('plain-time-of-method', 3), {1: (None, 'plain', 0, 0.0)})
    assert harness.ready(('plain-time-of-method', 0), {1: (None, 'same', 2, 0.0), 2: (None, 'method', 3, 0.0)})
    assert harness.ready(('same', 3), {1: (None, 'method', 2, 0.0)})


def test_time_left_is_that_of_what_is_queued_and_running_shared_by_the_jobs(tmp_path, monkeypatch):
    harness = make_harness(tmp_path)
    assert seconds_left({}, [('plain', 0)], {}) == 0.0  # nothing known yet
    add(harness, 'plain', 0, 90.0)
    harness.results['plain', 0].wall_seconds = 10.0
    add(harness, 'method', 0, 90.0)
    harness.results['method', 0].wall_seconds = 30.0
    monkeypatch.setattr('benchmarks.accuracy.results.time.monotonic', lambda: 100.0)
    running = {1: (None, 'method', 1, 88.0)}
    queue = [('plain', 1), ('same', 1)]
    assert seconds_left(harness.results, queue, running) == 10.0 + 20.0 + 18.0
    harness.jobs = 2
    said = []
    harness.say = said.append
    harness.tell('plain', 0, 1, 4, queue, running)
    assert said == ['[1/4] plain seed 0: 90.00 %; about 0:00:24 left']


def test_folder_of_another_spec_or_of_something_else_is_refused(tmp_path):
    harness = make_harness(tmp_path)
    harness.check_folder()
    (harness.out / 'holiday.jpg').touch()
    with pytest.raises(OptionError, match='neither an empty folder nor one of this benchmark'):
        harness.check_folder()
    (harness.out / 'spec.yaml').write_text(yaml.safe_dump({'options': '--lr 1', 'base': 'plain'}))
    with pytest.raises(OptionError, match=r'--out .*: holds runs of another spec \(config differs\)'):
        harness.check_folder()


@pytest.mark.parametrize('exit_status', [1, -9])
def test_a_failed_run_keeps_the_checkpoints_that_it_goes_on_from(tmp_path, exit_status):
    harness = make_harness(tmp_path)
    folder = harness.folder('plain', 0)
    folder.mkdir(parents=True)
    (folder / 'log.txt').write_text('train.py: error: no space left\n')
    (folder / 'checkpoint-3.pth.tar').touch()
    harness.finish('plain', 0, exit_status, 5.0)
    assert not harness.results['plain', 0].finished
    assert (folder / 'checkpoint-3.pth.tar').exists()


def test_a_variant_that_a_spec_left_out_cannot_come_back_with_other_options(tmp_path, monkeypatch):
    monkeypatch.setattr('benchmarks.accuracy.harness.Harness.check_variants', lambda harness: None)
    harness = make_harness(tmp_path)
    variants = {name: text for name, text in harness.spec.variants.items() if name != 'same'}
    for present in (harness.spec.variants, variants):
        harness.spec = replace(harness.spec, variants=present)
        harness.open()
        harness.close()
    harness.spec = replace(harness.spec, variants={**variants, 'same': ''})
    harness.check_folder()
    harness.spec = replace(harness.spec, variants={**variants, 'same': '--mixup 0.9'})
    with pytest.raises(OptionError, match=r'variant same differs'):
        harness.check_folder()
