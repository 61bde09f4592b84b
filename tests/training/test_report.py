"""The console: timm's lines, the time left, and a warning when training waits for data."""

import logging
import re
import time

import pytest
import torch
from PIL import Image
from timm.utils import AverageMeter

from regaug.data.samples import Samples
from regaug.training.averages import UpdateRecord
from regaug.training.phases import Phase, phase_at
from regaug.training.report import Report
from tests.helpers.training import train_args

NUMBER = r'-?\d\S*'
TIMM_LINE = (
    rf'^Train: (?P<epoch>\d+) \[ *(?P<update>\d+)/(?P<updates>\d+) \( *(?P<percent>\d+)%\)\]  '
    rf'Loss: (?P<loss>{NUMBER}) \((?P<loss_avg>{NUMBER})\)  '
    rf'Time: (?P<time>{NUMBER})s, +(?P<rate>{NUMBER})/s  \((?P<time_avg>{NUMBER})s, +(?P<rate_avg>{NUMBER})/s\)  '
    rf'LR: (?P<lr>{NUMBER})  Data: (?P<data>{NUMBER}) \((?P<data_avg>{NUMBER})\)'
)
OURS = r'  Left: (?:\d+ days?, )?\d+:\d\d:\d\d(?:  Mem: \d+\.\d\d GiB)?$'


def meter(*values):
    result = AverageMeter()
    for value in values:
        result.update(value)
    return result


def make_record(**changes):
    values = dict(
        epoch=0,
        update_idx=4,
        updates_per_epoch=10,
        num_updates=5,
        loss=meter(2.0, 1.0),
        terms={},
        lr=0.0125,
        samples=64,
        epoch_samples=128,
        update_time=meter(0.75, 0.25),
        data_time=meter(0.01, 0.02),
        grad_norm=None,
    )
    return UpdateRecord(**{**values, **changes})


def make_report(*options, num_epochs=3, **kwargs):
    return Report(train_args(*options), num_epochs=num_epochs, **{'primary': True, **kwargs})


@pytest.fixture
def lines(caplog):
    """What `report` logs for some records, as a list of messages."""
    caplog.set_level(logging.INFO)

    def lines(report, *records):
        caplog.clear()
        for record in records:
            report.on_update(record)
        return [record.getMessage() for record in caplog.records]

    return lines


# --- the training line --------------------------------------------------------------------------------------------


def test_line_is_timms_and_then_the_time_left(lines):
    [line] = lines(make_report(), make_record())
    found = re.match(TIMM_LINE, line)
    assert found, line
    assert found.groupdict() == {
        'epoch': '0',
        'update': '4',
        'updates': '10',
        'percent': '50',
        'loss': '1.00',
        'loss_avg': '1.50',
        'time': '0.250',
        'rate': '256.00',
        'time_avg': '0.500',
        'rate_avg': '128.00',
        'lr': '1.250e-02',
        'data': '0.020',
        'data_avg': '0.015',
    }
    assert re.fullmatch(OURS, line[found.end() :]), line


@pytest.mark.parametrize(('loss', 'text'), [(123.4, '123.'), (0.001234, '0.00123'), (float('nan'), 'nan')])
def test_loss_has_three_significant_digits_as_in_timm(lines, loss, text):
    [line] = lines(make_report(), make_record(loss=meter(loss)))
    assert f'Loss: {text} ({text})  Time: ' in line


def test_metrics_of_further_terms_leave_timms_part_of_the_line_as_it_is(lines):
    terms = {
        ('sub1', 'loss'): 0.0125,
        ('sub1', 'width'): 0.75,
        ('sub2', 'loss'): 0.5,
        ('sub2', 'width'): 0.5,
    }
    [line] = lines(make_report(), make_record(terms=terms))
    found = re.match(TIMM_LINE, line)
    assert found, line
    assert '  Sub loss: 0.0125 0.5' in line[found.end() :]
    assert '  Sub width: 0.75 0.5' in line[found.end() :]


@pytest.mark.skipif(torch.cuda.is_available(), reason='needs a machine without CUDA')
def test_memory_is_reported_on_cuda_only(lines):
    assert 'Mem:' not in lines(make_report(), make_record())[0]


@pytest.mark.gpu
def test_peak_memory_is_reported_on_cuda(lines):
    torch.cuda.reset_peak_memory_stats()
    kept = torch.empty(2**28, dtype=torch.uint8, device='cuda')
    [line] = lines(make_report(), make_record())
    assert float(re.search(r'  Mem: (\S+) GiB$', line)[1]) >= 0.25
    assert kept.is_cuda


def test_other_ranks_are_silent(lines):
    report = make_report(primary=False)
    assert lines(report, make_record(data_time=meter(1.0), update_time=meter(1.0), update_idx=20)) == []
    assert report.last_record is not None


# --- the time left ------------------------------------------------------------------------------------------------


def brute_force_seconds_left(num_epochs, val_interval, epoch, update_idx, updates, per_update, per_evaluation):
    """Counts what follows, update by update and epoch by epoch."""
    seconds = 0.0
    for later in range(epoch, num_epochs):
        first = update_idx + 1 if later == epoch else 0
        seconds += per_update * len(range(first, updates))
        if (later + 1) % val_interval == 0 or later == num_epochs - 1:
            seconds += per_evaluation
    return seconds


@pytest.mark.parametrize('val_interval', [1, 2, 3, 5, 1000])
@pytest.mark.parametrize('options', [(), ('--model-ema',), ('--model-ema', '--model-ema-force-cpu')])
def test_time_left_counts_the_updates_and_evaluations_that_follow(val_interval, options):
    report = make_report('--val-interval', val_interval, *options, num_epochs=7)
    for seconds in (1.0, 3.0):
        report.on_eval_batch(4, 4, meter(*[seconds / 4] * 4), {}, ema=False)
    passes = 2 if options == ('--model-ema',) else 1
    for epoch in range(7):
        for update_idx in (0, 4, 9):
            record = make_record(epoch=epoch, update_idx=update_idx)
            expected = brute_force_seconds_left(7, val_interval, epoch, update_idx, 10, 0.5, 2.0 * passes)
            assert report.seconds_left(record, epoch=record.epoch, updates_done=record.update_idx + 1) == pytest.approx(
                expected
            ), (epoch, update_idx)


def test_time_left_is_reported_in_hours_minutes_and_days(lines):
    slow = dict(update_time=meter(3600.0), data_time=meter(0.0))
    assert lines(make_report(num_epochs=1), make_record(**slow))[0].endswith('Left: 5:00:00')
    assert lines(make_report(num_epochs=5), make_record(**slow))[0].endswith('Left: 1 day, 21:00:00')


def test_time_left_is_zero_after_the_last_update_but_for_its_evaluation():
    report = make_report(num_epochs=3)
    last = make_record(epoch=2, update_idx=9)
    assert report.seconds_left(last, epoch=last.epoch, updates_done=last.update_idx + 1) == 0
    report.on_eval_batch(0, 0, meter(2.5), {}, ema=False)
    assert report.seconds_left(last, epoch=last.epoch, updates_done=last.update_idx + 1) == 2.5


def test_time_left_of_a_real_run_falls_to_the_last_evaluation(train, caplog):
    caplog.set_level(logging.INFO)
    train('--log-interval', 1, '--epochs', 2)
    matches = [re.search(TIMM_LINE + OURS, record.getMessage()) for record in caplog.records]
    found = [match.groupdict() for match in matches if match]
    assert [(int(one['epoch']), int(one['update'])) for one in found] == [(e, u) for e in (0, 1) for u in range(4)]
    assert [float(one['lr']) for one in found] == [0.05] * 4 + [0.025] * 4


# --- waiting for data ---------------------------------------------------------------------------------------------


def waiting(share, **changes):
    return make_record(
        **{'update_idx': 20, 'num_updates': 21, 'updates_per_epoch': 100, **changes},
        update_time=meter(*[1.0] * 20),
        data_time=meter(*[share] * 20),
    )


def warnings_in(messages):
    return [message for message in messages if 'waiting for data' in message]


@pytest.mark.parametrize(('share', 'warned'), [(0.0, 0), (0.19, 0), (0.21, 1), (0.9, 1)])
def test_waiting_is_warned_of_above_20_per_cent(lines, share, warned):
    found = warnings_in(lines(make_report('--workers', 3), waiting(share)))
    assert len(found) == warned
    if warned:
        assert f'{100 * share:.0f} %' in found[0]
        assert '--workers (now 3)' in found[0]


def test_waiting_is_warned_of_once_in_a_run(lines):
    records = [waiting(0.5, epoch=epoch, update_idx=update) for epoch in range(3) for update in (20, 40, 99)]
    assert len(warnings_in(lines(make_report(), *records))) == 1


def test_start_up_is_not_taken_for_slow_data(lines):
    first = waiting(0.9, update_idx=0, num_updates=1)
    assert warnings_in(lines(make_report(), first)) == []


def test_waiting_is_warned_of_in_short_epochs_too(lines):
    records = [
        waiting(0.5, epoch=epoch, update_idx=4, updates_per_epoch=5, num_updates=5 * (epoch + 1)) for epoch in range(10)
    ]
    assert len(warnings_in(lines(make_report(num_epochs=10), *records))) == 1


def test_a_run_on_slow_data_is_warned_once(train, caplog, monkeypatch):
    read = Samples.__getitem__

    def read_slowly(samples, position):
        time.sleep(0.05)
        return read(samples, position)

    monkeypatch.setattr(Samples, '__getitem__', read_slowly)
    train('--batch-size', 2, '--epochs', 2, '--log-interval', 1, '--val-split', '', '--labels-per-class', 6)
    assert len(warnings_in([record.getMessage() for record in caplog.records])) == 1


# --- phases, evaluation, pictures ---------------------------------------------------------------------------------


def test_a_phase_is_reported_once_with_what_it_switches_off(lines, caplog):
    args = train_args('--mixup', 0.2, '--cutmix', 1, '--mixup-off-epoch', 2, '--epochs', 4)
    report = Report(args, num_epochs=4, primary=True)
    caplog.clear()
    for epoch in range(4):
        report.start_phase(phase_at(epoch, args))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert 'unmixed' in messages[0]
    assert '--mixup, --cutmix' in messages[0]


def test_evaluation_has_a_line_with_its_metrics(caplog):
    caplog.set_level(logging.INFO)
    make_report().on_eval_batch(3, 3, meter(0.25), {'loss': 1.5, 'top1': 62.5, 'top5': 100.0}, ema=True)
    [record] = caplog.records
    line = record.getMessage()
    assert re.fullmatch(
        r'Test \(EMA\): \[ +3/3\]  Time: 0\.250 \(0\.250\)  Loss: +1\.500  Top1: +62\.500  Top5: 100\.000', line
    )


def test_patches_of_naflex_are_no_pictures(tmp_path):
    report = make_report('--save-images', output_dir=str(tmp_path))
    report.on_batch({'patches': torch.zeros(2, 3)}, torch.zeros(2), 0)
    assert list(tmp_path.iterdir()) == []


def test_the_last_lines_leave_out_unreadable_images_and_have_the_rate_of_the_epoch(caplog):
    caplog.set_level(logging.INFO)
    report = make_report()
    report.last_record = make_record(samples=10, epoch_samples=310, update_time=meter(1.0, 1.0, 1.0, 0.1))
    metrics = {'loss': 1.0, 'top1': 50.0, 'top5': 90.0}
    results = [
        {'epoch': 0, 'train': {'loss': 2.0}, 'validation': metrics},
        {'epoch': 1, 'train': {'loss': 2.0}, 'validation': {**metrics, 'unreadable': 3}},
    ]
    report.on_end(results, metric='top1', best=(50.0, 0))
    table, rate, *_ = [record.getMessage() for record in caplog.records]
    assert [line.split() for line in table.splitlines()] == [
        ['Epoch', 'Loss', 'Top1', 'Top5'],
        ['best', '0', '1.0000', '50.0000', '90.0000'],
        ['final', '1', '1.0000', '50.0000', '90.0000'],
    ]
    assert rate.endswith('Images: 100.0/s')


def test_the_last_lines_have_the_best_epoch_of_an_earlier_process_and_keep_large_numbers_apart(caplog):
    caplog.set_level(logging.INFO)
    report = make_report()
    report.last_record = make_record()
    metrics = {'loss': 12899843.6667, 'top1': 50.0, 'top5': 90.0}
    report.on_end([{'epoch': 4, 'train': {}, 'validation': metrics}], metric='top1', best=(66.25, 1))
    assert [line.split() for line in caplog.records[0].getMessage().splitlines()[1:]] == [
        ['best', '1', '-', '66.2500', '-'],
        ['final', '4', '12899843.6667', '50.0000', '90.0000'],
    ]


def test_long_names_of_metrics_stand_apart(caplog):
    caplog.set_level(logging.INFO)
    report = make_report()
    report.last_record = make_record()
    train = {'loss': 3.0, 'loss_classifier': 1.25, 'loss_box_reg': 0.5}
    report.on_end([{'epoch': 0, 'train': train}], metric='loss', best=(3.0, 0))
    titles, best, _ = caplog.records[0].getMessage().splitlines()
    assert re.split(r' {2,}', titles.strip()) == ['Epoch', 'Loss', 'Loss classifier', 'Loss box reg']
    assert len(titles) == len(best)


def test_pictures_of_training_batches_are_saved_on_demand(tmp_path):
    batch = torch.rand(16, 3, 8, 8), torch.zeros(16, dtype=torch.long)
    make_report(output_dir=str(tmp_path)).on_batch(*batch, 5)
    assert list(tmp_path.iterdir()) == []
    make_report('--save-images', output_dir=str(tmp_path)).on_batch(*batch, 5)
    with Image.open(tmp_path / 'train-batch-5.jpg') as image:
        assert image.size == (64, 16)


def test_waiting_is_warned_of_again_where_each_image_is_transformed_more_often(lines):
    report = make_report()
    [first] = warnings_in(lines(report, waiting(0.5, epoch=0, update_idx=20)))
    assert 'transformed' not in first
    report.start_phase(Phase('main', report.args, num_views=4))
    [second] = warnings_in(lines(report, *(waiting(0.5, epoch=1, update_idx=update) for update in (20, 40))))
    assert second.endswith('Each image is transformed 4 times.')
