"""summary.csv: timm's columns first, the same columns in every row, whole at any moment."""

import csv
import json
import os
from pathlib import Path

import pytest
from timm.utils.summary import update_summary

from regaug.errors import OptionError
from regaug.training.engine import Engine
from regaug.training.summary import Summary, epoch_row, read_rows
from tests.helpers.checkpoints import no_space
from tests.helpers.training import read_summary

TRAIN = {'loss': 1.5}
EVAL = {'loss': 0.75, 'top1': 80.0, 'top5': 95.0}
TIMM_COLUMNS = ['epoch', 'train_loss', 'eval_loss', 'eval_top1', 'eval_top5', 'lr']


def read(path):
    with path.open(newline='') as file:
        return list(csv.reader(file))


def write_epochs(path, epochs, start_epoch=0, **terms):
    summary = Summary(path, start_epoch)
    for epoch in epochs:
        summary.add(epoch_row(epoch, {**TRAIN, **terms}, EVAL, 0.1, 'main'))


# --- columns ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('eval_metrics', [EVAL, None])
def test_timms_columns_come_first_with_timms_values(tmp_path, eval_metrics):
    summary = Summary(tmp_path / 'ours.csv', 0)
    for epoch in range(3):
        train = {'loss': 1.0 / (epoch + 1)}
        summary.add(epoch_row(epoch, {**train, 'sub1_loss': 0.5}, eval_metrics, 0.1, 'main'))
        update_summary(epoch, train, eval_metrics, str(tmp_path / 'timms.csv'), lr=0.1)
    ours, timms = read(tmp_path / 'ours.csv'), read(tmp_path / 'timms.csv')
    assert timms[0] == (TIMM_COLUMNS if eval_metrics else ['epoch', 'train_loss', 'lr'])
    assert [row[: len(timms[0])] for row in ours] == timms
    assert ours[0][len(timms[0]) :] == ['phase', 'train_sub1_loss']
    assert ours[1][len(timms[0]) :] == ['main', '0.5']


def test_a_term_that_appears_later_has_a_column_in_every_row(tmp_path):
    path = tmp_path / 'summary.csv'
    summary = Summary(path, 0)
    summary.add(epoch_row(0, TRAIN, EVAL, 0.1, 'main'))
    summary.add(epoch_row(1, {**TRAIN, 'sub1_loss': 0.25}, EVAL, 0.1, 'main'))
    summary.add(epoch_row(2, TRAIN, EVAL, 0.1, 'refine'))
    header, *rows = read(path)
    assert header == [*TIMM_COLUMNS, 'phase', 'train_sub1_loss']
    assert [len(row) for row in rows] == [8, 8, 8]
    assert [row[-1] for row in rows] == ['', '0.25', '']


def test_evaluation_that_appears_later_keeps_every_value_under_its_name(tmp_path):
    path = tmp_path / 'summary.csv'
    summary = Summary(path, 0)
    summary.add(epoch_row(0, TRAIN, None, 0.1, 'main'))
    summary.add(epoch_row(1, TRAIN, EVAL, 0.05, 'main'))
    with path.open(newline='') as file:
        first, second = csv.DictReader(file)
    assert (first['lr'], first['phase'], first['eval_top1']) == ('0.1', 'main', '')
    assert (second['lr'], second['phase'], second['eval_top1']) == ('0.05', 'main', '80.0')


def test_lines_end_as_on_unix(tmp_path):
    write_epochs(tmp_path / 'summary.csv', range(2))
    assert b'\r' not in (tmp_path / 'summary.csv').read_bytes()


# --- resuming -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(('start_epoch', 'kept'), [(0, []), (1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (9, [0, 1, 2])])
def test_rows_from_the_first_new_epoch_on_are_dropped(tmp_path, start_epoch, kept):
    path = tmp_path / 'summary.csv'
    write_epochs(path, range(3))
    write_epochs(path, [start_epoch], start_epoch)
    header, *rows = read(path)
    assert header == [*TIMM_COLUMNS, 'phase']
    assert [int(row[0]) for row in rows] == [*kept, start_epoch]


def test_a_resumed_table_is_the_table_of_an_uninterrupted_run(tmp_path):
    write_epochs(tmp_path / 'whole.csv', range(5), sub1_loss=0.25)
    write_epochs(tmp_path / 'parts.csv', range(4), sub1_loss=0.25)
    write_epochs(tmp_path / 'parts.csv', range(2, 5), 2, sub1_loss=0.25)
    assert (tmp_path / 'parts.csv').read_text() == (tmp_path / 'whole.csv').read_text()


def test_columns_that_only_the_resumed_part_has_are_added_to_earlier_rows(tmp_path):
    path = tmp_path / 'summary.csv'
    write_epochs(path, range(2))
    write_epochs(path, [2], 2, sub1_loss=0.25)
    assert [row[-1] for row in read(path)] == ['train_sub1_loss', '', '', '0.25']
    assert {len(row) for row in read(path)} == {8}


def test_a_table_of_timms_script_is_continued(tmp_path):
    path = tmp_path / 'summary.csv'
    for epoch in range(2):
        update_summary(epoch, TRAIN, EVAL, str(path), lr=0.1)
    write_epochs(path, [2], 2)
    header, *rows = read(path)
    assert header == [*TIMM_COLUMNS, 'phase']
    assert [row[:6] for row in rows] == [[str(epoch), '1.5', '0.75', '80.0', '95.0', '0.1'] for epoch in range(3)]


def test_an_empty_file_left_by_a_full_disk_is_no_obstacle(tmp_path):
    path = tmp_path / 'summary.csv'
    path.touch()
    write_epochs(path, range(2))
    assert len(read(path)) == 3


# --- whole files --------------------------------------------------------------------------------------------------


def test_an_existing_table_is_never_written_into_not_even_to_drop_rows(tmp_path):
    path, other_name = tmp_path / 'summary.csv', tmp_path / 'same file'
    write_epochs(path, range(3))
    os.link(path, other_name)
    before = other_name.read_text()
    write_epochs(path, [1], 1)
    assert other_name.read_text() == before
    assert [row[0] for row in read(path)] == ['epoch', '0', '1']


@pytest.mark.parametrize('moment', ['writing', 'renaming'])
def test_a_full_disk_leaves_the_earlier_table_as_it_was(tmp_path, monkeypatch, moment):
    path = tmp_path / 'summary.csv'
    write_epochs(path, range(2))
    before, write_text = path.read_text(), Path.write_text

    def write_half(path, text):
        write_text(path, text[: len(text) // 2])
        no_space()

    patch = (Path, 'write_text', write_half) if moment == 'writing' else (os, 'replace', no_space)
    monkeypatch.setattr(*patch)
    with pytest.raises(OptionError, match=r'--output .*summary\.csv cannot be written .*No space left'):
        write_epochs(path, range(2, 3), 2)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ['summary.csv']


# --- of a real run ------------------------------------------------------------------------------------------------


def test_a_run_writes_one_row_for_each_evaluated_epoch(train):
    folder = train('--epochs', 5, '--val-interval', 2)
    assert not list(folder.glob('recovery*'))  # those between are kept for `--exact-resume` alone
    rows = read_summary(folder)
    assert [int(row['epoch']) for row in rows] == [1, 3, 4]
    assert list(rows[0]) == [*TIMM_COLUMNS, 'phase']


@pytest.mark.parametrize('metric', ['top1', 'loss'])
def test_the_ten_best_epochs_are_printed_for_other_programs_the_best_one_last(train, capsys, monkeypatch, metric):
    values = [7.0, 3.0, 9.0, 1.0, 12.0, 5.0, 2.0, 11.0, 4.0, 8.0, 6.0, 10.0]
    given = iter(values)
    monkeypatch.setattr(Engine, 'evaluate', lambda *args, **kwargs: dict.fromkeys(('loss', 'top1'), next(given)))
    train('--epochs', len(values), '--labels-per-class', 4, '--eval-metric', metric)
    found = json.loads(capsys.readouterr().out.partition('--result\n')[2])
    best_last = sorted(values, reverse=metric == 'loss')[-10:]
    assert [result['validation'][metric] for result in found] == best_last


def test_a_table_that_a_spreadsheet_saved_is_read_or_refused_but_never_emptied(tmp_path):
    path = tmp_path / 'summary.csv'
    path.write_text('\ufeffepoch,train_loss\n0,1.5\n1,1.25\n', encoding='utf-8')
    assert read_rows(path, 1) == [{'epoch': '0', 'train_loss': '1.5'}]
    path.write_text('epoch;train_loss\n0;1.5\n')
    with pytest.raises(OptionError, match='no column epoch, but epoch;train_loss'):
        read_rows(path, 1)
