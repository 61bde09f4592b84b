import json

import pytest

from benchmarks.accuracy import results
from benchmarks.accuracy.job import read_times
from benchmarks.accuracy.results import Result, collect

SUMMARY = """epoch,train_loss,eval_loss,eval_top1,eval_top5,lr,phase
9,1.5,1.0,60.0,90.0,0.1,main
19,0.5,0.9,72.0,91.0,0.05,main
29,0.25,0.8,70.0,92.0,0.0,refine
"""
# The second epoch was interrupted and repeated; the kill of another one cut the last line short.
TIMES = '0,1.5,1.0\n1,9.0,8.0\n1,2.5,2.0\n2,4'


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'summary.csv').write_text(SUMMARY)
    (tmp_path / 'times.csv').write_text(TIMES)
    (tmp_path / 'log.txt').write_text('Train: 0\nTraceback\nRuntimeError: out of\n memory\n\n')
    return tmp_path


def test_result_takes_the_last_epoch_and_sets_the_best_one_apart(folder):
    result = collect(folder, 'plain', 3, exit_status=0, wall_seconds=12.34567)
    assert result == Result(
        'plain',
        3,
        epochs=30,
        final=70.0,
        last_median=70.0,
        best=72.0,
        best_at=20,
        train_loss=0.25,
        seconds=4.0,
        processor_seconds=3.0,
        wall_seconds=12.346,
        curve=[[10, 60.0], [20, 72.0], [30, 70.0]],
    )


def test_time_of_a_repeated_epoch_counts_once(folder):
    assert read_times(folder) == (4.0, 3.0)


@pytest.mark.parametrize(
    'exit_status, log, reason',
    [
        (1, 'a\nRuntimeError: out of memory\n\n', 'RuntimeError: out of memory'),
        (2, 'train.py: error: --lr -1: must be above 0\n', '--lr -1: must be above 0'),
        (-9, 'Train: 7\n', 'ended by SIGKILL'),
        (1, '', 'exit status 1'),
    ],
)
def test_failed_run_says_why(folder, exit_status, log, reason):
    (folder / 'log.txt').write_text(log)
    result = collect(folder, 'plain', 0, exit_status=exit_status, wall_seconds=1.0)
    assert (result.status, result.reason, result.final, result.finished) == ('failed', reason, None, False)


@pytest.mark.parametrize('summary, reason', [(None, 'no run of train.py'), ('epoch,train_loss\n0,1.0\n', 'eval_top1')])
def test_run_without_evaluations_is_a_failed_one(folder, summary, reason):
    (folder / 'summary.csv').unlink()
    if summary:
        (folder / 'summary.csv').write_text(summary)
    result = collect(folder, 'plain', 0, exit_status=0, wall_seconds=1.0)
    assert result.status == 'failed' and reason in result.reason


def test_result_is_read_back_as_it_was_written(folder):
    assert results.load(folder) is None
    result = collect(folder, 'plain', 3, exit_status=0, wall_seconds=12.0)
    results.save(result, folder)
    assert results.load(folder) == result
    assert json.loads((folder / 'result.json').read_text())['final'] == 70.0
