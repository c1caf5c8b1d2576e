"""Other people's chatter stays off the terminal, and comes out where something fails."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings

import pytest

from trpo_brax.environments.quiet import quiet


def chatter() -> None:
    print("Python, standard output")
    print("Python, standard error", file=sys.stderr)
    os.write(1, b"the C library, standard output\n")
    os.write(2, b"the C library, standard error\n")
    subprocess.run([sys.executable, "-S", "-c", "print('a child')"], check=True)
    warnings.warn("a warning", UserWarning, stacklevel=1)
    logging.getLogger("absl").warning("a log record")


def test_nothing_is_shown(capfd) -> None:
    with quiet():
        chatter()
    assert tuple(capfd.readouterr()) == ("", "")


def test_everything_is_as_before_afterwards(capfd) -> None:
    absl = logging.getLogger("absl")
    level = absl.level
    with quiet():
        assert not absl.isEnabledFor(logging.WARNING)
    assert absl.level == level
    print("shown")
    os.write(2, b"shown too\n")
    assert tuple(capfd.readouterr()) == ("shown\n", "shown too\n")
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_what_was_said_before_stays_before(capfd) -> None:
    sys.stdout.write("first ")
    with quiet():
        print("hidden")
    sys.stdout.write("second")
    assert capfd.readouterr().out == "first second"


def test_it_is_shown_after_all_when_the_block_raises(capfd) -> None:
    level = logging.getLogger("absl").level
    with pytest.raises(ValueError, match="broken"), quiet():
        os.write(1, b"why it broke\n")
        print("and more")
        raise ValueError("broken")
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "why it broke\n" in shown.err
    assert "and more\n" in shown.err
    assert logging.getLogger("absl").level == level


def test_blocks_may_be_nested(capfd) -> None:
    with quiet():
        print("outer")
        with quiet():
            print("inner")
        print("outer again")
    print("after")
    assert tuple(capfd.readouterr()) == ("after\n", "")


def test_no_file_descriptor_is_left_open() -> None:
    before = os.listdir("/dev/fd")
    for _ in range(5):
        with quiet():
            pass
    assert len(os.listdir("/dev/fd")) == len(before)


def test_brax_trap_loading_a_task_prints_nothing() -> None:
    script = "from trpo_brax.environments import brax_task; brax_task('inverted_pendulum', 'spring')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
