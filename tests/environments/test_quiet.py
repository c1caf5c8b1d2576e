"""Other people's chatter stays off the terminal, and comes out where something fails.

pytest puts objects of its own in place of the standard streams, so most of this looks at a process of its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
import warnings

import pytest

from trpo_brax.environments.quiet import quiet

SCRIPT = """
import logging, sys, warnings
from trpo_brax.environments.quiet import quiet

def chatter():
    print("HIDDEN on standard output")
    print("HIDDEN on standard error", file=sys.stderr)
    warnings.warn("HIDDEN warning")
    logging.getLogger("absl").warning("HIDDEN record")

sys.stdout.write("first ")
with quiet():
    chatter()
sys.stdout.write("second ")
with quiet():
    print("HIDDEN outside")
    with quiet():
        print("HIDDEN inside")
    print("HIDDEN outside again")
sys.stdout.write("third ")
try:
    with quiet():
        print("why it broke")
        print("in some detail", file=sys.stderr)
        raise ValueError
except ValueError:
    print("fourth")
print("fifth", file=sys.stderr)
"""


@pytest.fixture(scope="module")
def script() -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)


def test_nothing_is_shown(script) -> None:
    assert "HIDDEN" not in script.stdout + script.stderr


def test_what_is_said_around_it_is_shown_in_its_order(script) -> None:
    assert script.stdout == "first second third fourth\n"


def test_it_is_shown_after_all_when_the_block_raises(script) -> None:
    assert script.stderr == "why it broke\nin some detail\nfifth\n"


def test_streams_that_were_replaced_are_silenced_too() -> None:
    """As in a notebook, where `sys.stdout` does not lead to file descriptor 1."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        with quiet():
            print("hidden")
            print("hidden", file=sys.stderr)
        print("shown")
    assert (out.getvalue(), err.getvalue()) == ("shown\n", "")


def test_logging_and_warnings_are_as_before_afterwards() -> None:
    absl = logging.getLogger("absl")
    level = absl.level
    with pytest.raises(ValueError, match="broken"), quiet():
        assert not absl.isEnabledFor(logging.WARNING)
        raise ValueError("broken")
    assert absl.level == level
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_brax_trap_loading_a_task_prints_nothing() -> None:
    script = "from trpo_brax.environments import brax_task; brax_task('inverted_pendulum', 'spring')"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (result.stdout, result.stderr) == ("", "")
