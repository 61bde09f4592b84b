"""Weights & Biases out of reach, at the start or in the middle: training goes on, with one warning."""

import warnings

import pytest
import wandb

from regaug.errors import OptionError
from regaug.training.wandb_log import WandbLog
from tests.helpers.training import read_summary, train_args


class Service:
    """Stands for wandb.init: fails online, and gives a run that fails when told."""

    def __init__(self, monkeypatch, *, online=False, breaks=False):
        self.calls, self.online, self.breaks = [], online, breaks
        self.settings = type('Settings', (), {'sync_dir': '/logs/offline-run-1'})
        monkeypatch.setattr(wandb, 'init', self.init)

    def init(self, **kwargs):
        self.calls.append(kwargs)
        if not self.online and kwargs.get('mode') != 'offline':
            raise wandb.errors.CommError('Timed out while retrying\nmore')
        return self

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, values):
        if self.breaks:
            raise BrokenPipeError('the service is gone')

    def finish(self):
        self.log({})


def test_a_service_out_of_reach_is_waited_for_half_a_minute_at_most_then_logged_offline(monkeypatch, train, caplog):
    service = Service(monkeypatch)
    folder = train('--epochs', 1, '--log-wandb', '--wandb-resume-id', 'abc')
    first, second = service.calls
    assert first['settings'].init_timeout <= 12 and first['settings'].finish_timeout <= 30
    assert (first['resume'], second['mode'], second['resume']) == ('must', 'offline', None)
    warnings_given = [record for record in caplog.records if 'Weights & Biases' in record.message]
    [warning] = warnings_given
    assert warning.message == (
        'Weights & Biases cannot be reached (Timed out while retrying). Upload later: wandb sync /logs/offline-run-1'
    )
    assert len(read_summary(folder)) == 1


def test_a_run_id_that_the_service_does_not_know_is_refused(monkeypatch, train):
    folder = train('--epochs', 1)
    before = sorted(path.name for path in folder.iterdir())
    error = wandb.errors.UsageError('Unable to resume: abd does not exist')
    monkeypatch.setattr(wandb, 'init', lambda **kwargs: (_ for _ in ()).throw(error))
    with pytest.raises(OptionError, match=r'^--wandb-resume-id abd: Unable to resume: abd does not exist$'):
        train('--epochs', 1, '--overwrite', '--log-wandb', '--wandb-resume-id', 'abd')
    assert sorted(path.name for path in folder.iterdir() if path.name != '.lock') == before


@pytest.mark.parametrize(
    ('options', 'complaint'),
    [
        (['--wandb-project', 'a/b'], "Invalid project name 'a/b'"),
        (['--wandb-tags', 'x' * 65], '65 characters'),
        (['--wandb-resume-id', 'a/b'], 'Run ID cannot contain'),
    ],
)
def test_what_the_package_itself_refuses_is_one_line(monkeypatch, tmp_path, options, complaint):
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    with pytest.raises(OptionError, match=r'^--log-wandb: ') as refusal:
        WandbLog(train_args('--log-wandb', *options), name='x', mean=(0.5,) * 3, std=(0.5,) * 3)
    message = str(refusal.value)
    assert complaint in message and '\n' not in message


def test_a_service_that_breaks_in_the_middle_costs_one_warning(monkeypatch, train, caplog):
    Service(monkeypatch, online=True, breaks=True)
    folder = train('--epochs', 2, '--log-wandb', '--log-interval', 1)
    given = [record.message for record in caplog.records if 'Weights & Biases' in record.message]
    assert given == ['Weights & Biases has failed (the service is gone). Upload later: wandb sync /logs/offline-run-1']
    assert len(read_summary(folder)) == 2


@pytest.mark.slow
def test_a_dead_address_delays_the_start_by_half_a_minute_at_most(monkeypatch, tmp_path):
    import time

    monkeypatch.setenv('WANDB_BASE_URL', 'http://127.0.0.1:9')
    monkeypatch.setenv('WANDB_API_KEY', '0' * 40)
    monkeypatch.setenv('WANDB_DIR', str(tmp_path))
    start = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        log = WandbLog(train_args('--log-wandb'), name='x', mean=(0.5,) * 3, std=(0.5,) * 3)
    assert time.monotonic() - start < 30
    assert log.run.settings.mode == 'offline'
    log.finish()
