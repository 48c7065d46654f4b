# SPDX-License-Identifier: Apache-2.0
"""What is done before the machine goes down: in its order, with its words, and never longer than there is time."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.drain import Drain
from hvring.guest.power import PowerAction, ShutdownOrder
from hvring.pending import Pending, settle, steps
from hvring.reasons import Reason

ORDER = ShutdownOrder(PowerAction.RESTART, True, 0x80020003, 30, "good\0night\n$(reboot)\ud800")
Program = Callable[[str, str], list[str]]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    def make(name: str, body: str) -> list[str]:
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        return [str(path)]

    return make


def test_commands_come_one_after_the_other_and_know_what_is_ordered(program: Program, tmp_path: Path) -> None:
    told = "".join(
        f'printf "%s\\n" "{name}=$HVRING_SHUTDOWN_{name}" >> {tmp_path}/out\n'
        for name in ("ACTION", "REASON", "FORCE", "TEXT", "DEADLINE")
    )
    heard = []
    first = [*program("first", f'echo "$1" >> {tmp_path}/out'), "--with words"]
    drain = Drain(
        [first, program("second", told)], [lambda order: heard.append((order, (tmp_path / "out").exists()))]
    )
    settle(steps(drain(ORDER, time.monotonic() + 500)))
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[:4] == ["--with words", "ACTION=restart", "REASON=0x80020003", "FORCE=1"]
    assert lines[4:6] == ["TEXT=good night", "$(reboot)?"]
    assert 400 < float(lines[6].removeprefix("DEADLINE=")) <= 500
    assert heard == [(ORDER, True)]


def test_one_that_fails_is_told_and_the_next_ones_run(program: Program, tmp_path: Path) -> None:
    def broken(order: ShutdownOrder) -> None:
        raise RuntimeError("no load balancer")

    bad = program("bad", "echo not today >&2; exit 3")
    drain = Drain([["/nowhere/at/all"], bad, program("good", f": > {tmp_path}/done")], [broken])
    with pytest.raises(EffectError) as caught:
        settle(steps(drain(ORDER, time.monotonic() + 500)))
    assert caught.value.reason is Reason.DRAIN_FAILED
    assert str(caught.value) == (
        f"/nowhere/at/all: not found; {bad[0]}: exit status 3 not today; no load balancer"
    )
    assert (tmp_path / "done").exists()


def test_when_the_time_is_up_a_command_is_ended_with_all_that_it_started(
    program: Program, tmp_path: Path
) -> None:
    slow = program(
        "slow", f"sleep 600 & echo $! > {tmp_path}/written; mv {tmp_path}/written {tmp_path}/child; wait"
    )
    late = program("late", f": > {tmp_path}/was_late")
    for seconds in (0.5, 5, 60):  # a busy machine may need more to start it at all
        with pytest.raises(EffectError, match=r"did not end in time; .*late: not run, the time was up"):
            settle(steps(Drain([slow, late])(ORDER, time.monotonic() + seconds)))
        if (tmp_path / "child").exists():
            break
    assert not (tmp_path / "was_late").exists()
    child = (tmp_path / "child").read_text().strip()
    end = time.monotonic() + 60
    while os.path.exists(f"/proc/{child}") and "\nState:\tZ" not in Path(f"/proc/{child}/status").read_text():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_embedder_s_own_may_take_its_time_up_to_the_deadline() -> None:
    cancelled = []

    def for_ever() -> Pending[None]:
        return Pending(for_ever, time.monotonic() + 0.01, -1, lambda: cancelled.append(True))

    def soon(order: ShutdownOrder) -> Pending[None]:
        return Pending(lambda: None, time.monotonic() + 0.01)

    settle(steps(Drain([], [soon])(ORDER, time.monotonic() + 60)))
    with pytest.raises(EffectError, match="was not ready in time"):
        settle(steps(Drain([], [lambda order: for_ever(), soon])(ORDER, time.monotonic() + 0.1)))
    assert cancelled == [True]


def test_a_word_that_no_program_can_be_given_does_not_end_the_rest(tmp_path: Path) -> None:
    drain = Drain([["/bin/echo", "a\0b"], ["/bin/sh", "-c", f"echo here > {tmp_path}/ran"]])
    with pytest.raises(EffectError, match="null"):
        settle(steps(drain(ShutdownOrder(PowerAction.OFF), time.monotonic() + 60)))
    assert (tmp_path / "ran").read_text() == "here\n"


def test_who_was_left_is_reaped_by_the_next_order() -> None:
    drain = Drain([["/bin/true"]])
    child = os.posix_spawn("/bin/true", ["true"], os.environ)
    drain._left.append(child)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    settle(steps(drain(ShutdownOrder(PowerAction.OFF), time.monotonic() + 60)))
    assert drain._left == []
    with pytest.raises(ChildProcessError):
        os.waitpid(child, os.WNOHANG)
