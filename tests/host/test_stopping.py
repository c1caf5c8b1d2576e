"""The first signal asks, the second ends; nothing lingers."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from trpo_brax.host.stopping import StopRequest


@pytest.fixture(autouse=True)
def hang_ups_are_heard() -> Iterator[None]:
    """Under nohup they are not, and these tests are run there, too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_sets_the_flag_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    with StopRequest() as stop:
        assert not stop and stop.signal is None
        os.kill(os.getpid(), number)
        assert stop and stop.signal == number
    assert {each: signal.getsignal(each) for each in before} == before
    assert stop.signal == number


def test_a_terminal_that_goes_stops_nothing_that_nohup_started() -> None:
    """While a job in the background, which a shell starts without SIGINT, is still stopped by it."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGHUP, signal.SIGINT)}
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop
            os.kill(os.getpid(), signal.SIGINT)
            assert stop.signal == signal.SIGINT
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    assert signal.getsignal(signal.SIGTERM) is before


def test_outside_the_main_thread_it_does_nothing() -> None:
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((bool(stop), signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_a_terminal_that_goes_may_say_so_twice_and_ends_nothing_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interactive shell tells its jobs, and so does the kernel; after that one signal of another kind ends it."""
    ended: list[int] = []
    done = threading.Event()
    monkeypatch.setattr(os, "_exit", lambda status: (ended.append(status), done.set()))
    with StopRequest() as stop:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM):
            assert not ended
            os.kill(os.getpid(), number)
        assert done.wait(10.0) and ended == [128 + signal.SIGTERM]
        assert stop.signal == signal.SIGHUP


def test_the_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import os, signal, time\nfrom trpo_brax.host.stopping import StopRequest\n"
        "with StopRequest():\n    os.kill(os.getpid(), signal.SIGINT)\n    print('asked', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n    time.sleep(60)\nprint('survived')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "asked\n")


def test_a_second_signal_does_not_wait_for_what_python_waits_for() -> None:
    """A call of C code that takes half a minute, as a compilation may: Python's handlers run only after it."""
    code = (
        "import hashlib\nfrom trpo_brax.host.stopping import StopRequest\n"
        "with StopRequest():\n    print('ready', flush=True)\n"
        "    hashlib.pbkdf2_hmac('sha256', b'', b'', 100_000_000)\n    print('returned', flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    started = time.monotonic()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (143, "")
    assert time.monotonic() - started < 5.0
