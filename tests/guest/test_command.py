# SPDX-License-Identifier: Apache-2.0
"""Programs that are run: how they end is told, and nobody waits for one that does not."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.command import run
from hvring.pending import Pending, settle, steps
from hvring.reasons import Reason


def shell(text: str, end: float | None = None, *, left: list[int] | None = None, stays: bool = True):
    """``text`` is run by a shell; what is pending, or None."""
    words = ("sh", "-c", text)
    return steps(
        run(words, time.monotonic() + 600 if end is None else end, [] if left is None else left, stays=stays)
    )


def test_one_that_ends_well_says_nothing() -> None:
    assert settle(shell("echo much; exit 0")) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("echo not today >&2; exit 3", "sh: exit status 3 not today"),
        ("kill -9 $$", "sh: killed by signal 9"),
    ],
)
def test_one_that_fails_says_how_and_why(text: str, says: str) -> None:
    with pytest.raises(EffectError, match=says) as raised:
        settle(shell(text))
    assert raised.value.reason is Reason.COMMAND_FAILED


def test_one_that_is_late_is_killed() -> None:
    with pytest.raises(EffectError, match="sh: did not end in time") as raised:
        settle(shell("exec sleep 600", time.monotonic()))
    assert raised.value.reason is Reason.COMMAND_FAILED


def test_one_that_is_not_there_has_a_reason_of_its_own(tmp_path: Path) -> None:
    for words in ((str(tmp_path / "missing"),), (str(tmp_path),)):
        with pytest.raises(EffectError, match="not found") as raised:
            steps(run(words, time.monotonic() + 600, []))
        assert raised.value.reason is Reason.NO_WAY


def test_one_that_cannot_be_started_says_why(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/nowhere/at/all\n")
    program.chmod(0o755)
    with pytest.raises(EffectError, match="No such file") as raised:
        steps(run((str(program),), time.monotonic() + 600, []))
    assert raised.value.reason is Reason.COMMAND_FAILED


@pytest.mark.parametrize("stays", [True, False])
def test_one_that_nobody_waits_for_goes_on_or_is_killed(stays: bool) -> None:
    left: list[int] = []
    ours, theirs = os.pipe()
    try:
        pending = shell(f"read line </proc/{os.getpid()}/fd/{ours}", left=left, stays=stays)
        assert isinstance(pending, Pending)
        pending.cancel()
        (pid,) = left
        if stays:
            assert os.waitpid(pid, os.WNOHANG) == (0, 0)
            os.write(theirs, b"go on\n")
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == (0 if stays else -9)
    finally:
        os.close(ours)
        os.close(theirs)


def test_while_it_runs_its_end_is_what_is_waited_for() -> None:
    pending = shell("exec sleep 0.05")
    assert isinstance(pending, Pending)
    poll = select.poll()
    poll.register(pending.descriptor, select.POLLIN)
    assert poll.poll(60_000)
    assert pending.resume() is None
