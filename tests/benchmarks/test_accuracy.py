"""The harness with real runs of train.py: the same numbers again, kills, failures, refusals."""

import csv
import fcntl
import json
import os
import signal
import time

import pytest
import yaml

from benchmarks.accuracy.__main__ import main
from regaug.errors import OptionError
from tests.helpers.training import train_argv

LENGTH = ('--epochs', 4)
PATIENCE = 300  # seconds; on a busy machine a start takes its time


@pytest.fixture
def spec(image_folder, tmp_path):
    """Writes a spec of quick runs on the image folder and returns the arguments of the harness for it."""

    def spec(variants, *, seeds=1, equal_time=(), options=(), out='out'):
        words = train_argv('DATA', 'OUT', '--labels-per-class', 12, '--batch-size', 12, *options)
        common = ' '.join(words[2 : words.index('--output')] + words[words.index('--output') + 2 :])
        values = dict(seeds=seeds, base='plain', variants=variants, options=common, equal_time=list(equal_time))
        path = tmp_path / f'{out}.yaml'
        path.write_text(yaml.safe_dump(values, sort_keys=False))
        return [str(path), '--out', str(tmp_path / out), '--data-dir', str(image_folder)]

    return spec


def read_runs(folder):
    with (folder / 'runs.csv').open(newline='') as file:
        return {(row['variant'], int(row['seed'])): row for row in csv.DictReader(file)}


def curves(folder):
    """Every evaluation of every run that ended."""
    return {
        str(path.parent.relative_to(folder)): json.loads(path.read_text())['curve']
        for path in folder.glob('runs/*/*/result.json')
    }


def test_spec_gives_the_same_numbers_again_and_an_equal_variant_differs_by_nothing(spec, tmp_path, capsys):
    variants = {'plain': '', 'same': ''}
    assert main(spec(variants, seeds=2)) == 0
    first = read_runs(tmp_path / 'out')
    assert all(row['status'] == 'finished' and float(row['processor_seconds']) > 0 for row in first.values())
    losses = [[first[variant, seed]['train_loss'] for seed in (0, 1)] for variant in variants]
    assert losses[0] == losses[1]
    assert losses[0][0] != losses[0][1]  # a seed chooses start and images
    report = (tmp_path / 'out' / 'report.md').read_text()
    assert '| same | 2 | 2 |' in report and '+0.00 (0.00 to 0.00)' in report

    assert main(spec({'plain': ''}, seeds=2, out='again')) == 0
    second = read_runs(tmp_path / 'again')
    assert [second['plain', seed]['train_loss'] for seed in (0, 1)] == losses[0]
    assert curves(tmp_path / 'again').items() <= curves(tmp_path / 'out').items()

    capsys.readouterr()
    assert main(spec(variants, seeds=2)) == 0  # nothing is left to do
    assert '4 of 4 runs are finished already.' in capsys.readouterr().out
    assert not list((tmp_path / 'out').glob('runs/*/*/*.pth.tar'))

    runs = str(tmp_path / 'out' / 'runs.csv')
    assert main([*spec(variants, seeds=2, out='merged'), '--runs', runs]) == 0
    assert '4 of 4 runs are finished already.' in capsys.readouterr().out
    assert (tmp_path / 'merged' / 'runs.csv').read_text() == (tmp_path / 'out' / 'runs.csv').read_text()
    assert main([*spec(variants, seeds=2, out='report'), '--runs', runs, '--report']) == 0
    assert '| same | 2 | 2 |' in (tmp_path / 'report' / 'report.md').read_text()


def test_base_is_trained_for_the_time_that_a_method_took(spec, tmp_path):
    assert main(spec({'plain': '', 'gradaug': '--gradaug 2'}, equal_time=['gradaug'], options=('--epochs', 6))) == 0
    runs = read_runs(tmp_path / 'out')
    cost = float(runs['gradaug', 0]['processor_seconds']) / float(runs['plain', 0]['processor_seconds'])
    assert int(runs['plain-time-of-gradaug', 0]['epochs']) == round(6 * cost) > 6


def test_killed_harness_loses_nothing(spec, start, tmp_path):
    arguments = spec({'plain': '', 'mixup': '--mixup 0.5'}, options=LENGTH)
    program = start('-m', 'benchmarks.accuracy', *arguments)
    program.wait_for('[1/2] plain', PATIENCE)
    finished = tmp_path / 'out' / 'runs' / 'plain' / 'seed0' / 'result.json'
    written = finished.stat().st_mtime_ns
    wait_for_epoch(tmp_path / 'out' / 'runs' / 'mixup' / 'seed0', 2)
    os.kill(program.process.pid, signal.SIGKILL)
    program.process.wait()

    assert main(arguments) == 0
    assert finished.stat().st_mtime_ns == written
    log = (tmp_path / 'out' / 'runs' / 'mixup' / 'seed0' / 'log.txt').read_text()
    assert 'Resuming ' in log
    assert main(spec({'plain': '', 'mixup': '--mixup 0.5'}, options=LENGTH, out='whole')) == 0
    assert curves(tmp_path / 'whole') == curves(tmp_path / 'out')
    whole, gone_on = read_runs(tmp_path / 'whole'), read_runs(tmp_path / 'out')
    assert len({run[variant, 0]['train_loss'] for run in (whole, gone_on) for variant in ('plain', 'mixup')}) == 2


def wait_for_epoch(folder, count):
    """Waits until a run has finished so many epochs."""
    end = time.monotonic() + PATIENCE
    while not ((folder / 'summary.csv').exists() and len((folder / 'summary.csv').read_text().splitlines()) > count):
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_stopped_harness_ends_its_runs_and_reports_what_there_is(spec, start, tmp_path):
    arguments = spec({'plain': '', 'mixup': '--mixup 0.5 --epochs 200'}, options=LENGTH)
    program = start('-m', 'benchmarks.accuracy', *arguments)
    program.wait_for('[1/2] plain', PATIENCE)
    wait_for_epoch(tmp_path / 'out' / 'runs' / 'mixup' / 'seed0', 1)
    program.process.send_signal(signal.SIGTERM)
    status, output = program.finish(PATIENCE)
    assert status == 130 and 'Stopped. The same command goes on' in output
    assert set(read_runs(tmp_path / 'out')) == {('plain', 0)}
    log = (tmp_path / 'out' / 'runs' / 'mixup' / 'seed0' / 'log.txt').read_text()
    assert 'Stopped in epoch' in log
    assert list((tmp_path / 'out' / 'runs' / 'mixup' / 'seed0').glob('recovery-*.pth.tar'))


def test_failed_run_is_a_row_that_says_why_and_the_others_go_on(spec, tmp_path, capsys):
    variants = {'plain': '', 'diverges': '--lr 1e30 --max-bad-updates 3', 'last': '--lr 0.01'}
    arguments = spec(variants, equal_time=['diverges'])
    assert main(arguments) == 1
    runs = read_runs(tmp_path / 'out')
    assert runs['diverges', 0]['status'] == 'failed'
    assert 'not finite' in runs['diverges', 0]['reason']
    assert 'the cost of diverges could not be measured' in runs['plain-time-of-diverges', 0]['reason']
    assert runs['last', 0]['status'] == 'finished'
    assert 'diverges seed 0: failed: ' in capsys.readouterr().out


def test_what_train_py_cannot_build_is_refused_before_any_run(spec, tmp_path):
    with pytest.raises(OptionError, match=r'variant odd: .*--input-size 32x32: .*cannot take such images') as caught:
        main(spec({'plain': '', 'odd': '--model vit_tiny_patch16_224'}))
    assert '\n' not in str(caught.value)
    assert not (tmp_path / 'out').exists()


def test_second_harness_in_a_folder_is_refused(spec, tmp_path):
    arguments = spec({'plain': ''})
    assert main(arguments) == 0
    with (tmp_path / 'out' / 'lock').open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OptionError, match=r'--out .*: another harness is at work'):
            main(arguments)


def test_report_alone_runs_nothing(spec, tmp_path, capsys):
    arguments = spec({'plain': ''})
    with pytest.raises(OptionError, match='no run of this spec has ended there'):
        main([*arguments, '--report'])
    assert main(arguments) == 0
    log = tmp_path / 'out' / 'runs' / 'plain' / 'seed0' / 'log.txt'
    written, report = log.stat().st_mtime_ns, tmp_path / 'out' / 'report.md'
    report.unlink()
    assert main([*arguments, '--report', '--data-dir', '']) == 0
    assert report.exists() and log.stat().st_mtime_ns == written


def test_other_data_needs_another_folder(spec, image_folder, tmp_path):
    arguments = spec({'plain': ''})
    assert main(arguments) == 0
    assert f'Data: {image_folder.name}. Options' in (tmp_path / 'out' / 'report.md').read_text()
    (tmp_path / 'flowers').mkdir()
    other = ['--data-dir', str(tmp_path / 'flowers')]
    message = rf'--out .*: holds runs of another spec \(data: {image_folder.name} differs\)'
    for extra in ([], ['--report']):
        with pytest.raises(OptionError, match=message):
            main([*arguments, *other, *extra])
    runs = ['--runs', str(tmp_path / 'out' / 'runs.csv')]
    with pytest.raises(OptionError, match='plain, seed 0: made with other options or data'):
        main([*spec({'plain': ''}, out='new'), *other, *runs])


@pytest.mark.parametrize(
    'extra, message',
    [
        (['--jobs', '0'], '--jobs 0: must be 1 or more'),
        (['--threads', '-1'], '--threads -1: must be 1 or more'),
        (['--seeds', '0'], 'seeds: 0 must be 1 or more'),
        (['--data-dir', '/no/where'], '--data-dir /no/where: there is no such folder'),
        (['--data-dir', ''], '--data-dir is missing'),
    ],
)
def test_bad_arguments_are_refused(spec, tmp_path, extra, message):
    with pytest.raises(OptionError, match=message):
        main([*spec({'plain': ''}), *extra])
    assert not (tmp_path / 'out').exists()
