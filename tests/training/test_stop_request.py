"""Signals as the main process and the workers of its loaders take them."""

import os
import signal
import time

import pytest

from regaug.data.workers import start_worker
from regaug.training.interrupt import StopRequest


@pytest.fixture
def stop():
    """An installed `StopRequest`; the handlers of before come back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins with Ctrl-C ignored
    stop = StopRequest()
    stop.install()
    yield stop
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_the_second_ctrl_c_ends_at_once(stop):
    assert stop.agree() == (False, False)
    signal.raise_signal(signal.SIGINT)
    assert stop.agree() == (True, False)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
        time.sleep(1)


def test_under_nohup_a_hangup_is_ignored(stop):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    other = StopRequest()
    other.install()
    signal.raise_signal(signal.SIGHUP)
    assert other.signum is None
    signal.raise_signal(signal.SIGTERM)
    assert other.signum == signal.SIGTERM


def test_a_signal_after_another_does_not_change_the_first_ones_meaning(stop):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
    assert (stop.signum, stop.agree()) == (signal.SIGTERM, (True, False))


def test_only_a_ctrl_c_makes_the_next_one_the_second(stop):
    os.kill(os.getpid(), signal.SIGTERM)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pytest.fail('the first Ctrl-C ended at once')
    assert stop.agree() == (True, False)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)


def test_worker_processes_leave_ctrl_c_to_the_main_process_and_end_on_sigterm(stop):
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, b'ready')
        time.sleep(60)
        os._exit(1)
    try:
        assert os.read(reader, 5) == b'ready'
        os.kill(child, signal.SIGINT)
        time.sleep(0.1)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        os.kill(child, signal.SIGTERM)
        assert os.WTERMSIG(ended(child)) == signal.SIGTERM
    finally:
        os.close(reader)
        os.close(writer)
    assert stop.signum is None


def ended(child, seconds=10):
    """Status of a child process, which must end in time; it is killed otherwise."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        process, status = os.waitpid(child, os.WNOHANG)
        if process:
            return status
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f'the process did not end within {seconds} s')


def test_a_worker_ends_some_time_after_the_signal_if_nobody_ends_it(monkeypatch):
    monkeypatch.setattr('regaug.data.workers._GRACE', 1)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # not pytest's own
        start_worker(None, 0)
        os.kill(os.getpid(), signal.SIGTERM)  # which is for the main process; it is gone, say
        while True:
            time.sleep(0.1)
    assert os.WTERMSIG(ended(child)) == signal.SIGALRM
