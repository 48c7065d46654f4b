# SPDX-License-Identifier: Apache-2.0
"""Applications that hold the freeze over a socket, and hooks that are objects of the agent."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hook_scripts import TIMEOUT, Scripts, Still

from hvring.errors import EffectError
from hvring.guest.hooks.applications import MOST, Applications
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.objects import Backup
from hvring.guest.hooks.timeouts import Timeouts
from hvring.pending import Pending, settle
from hvring.reasons import Reason


class Application:
    """One that answers as it is told to, by a thread of its own; ``heard`` is what it was told."""

    def __init__(self, path: str, answers: Callable[[str], str | None]) -> None:
        self.heard: list[str] = []
        self._answers = answers
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(TIMEOUT)
        self._socket.connect(path)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with self._socket, self._socket.makefile("r") as lines, contextlib.suppress(ConnectionError):
            for line in lines:
                self.heard.append(line.strip())
                answer = self._answers(line.strip())
                if answer is None:
                    return
                self._socket.sendall(answer.encode())

    def join(self) -> list[str]:
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        return self.heard


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "hooks.sock")


@pytest.fixture
def freezer(scripts: Scripts, path: str) -> Iterator[HookedFreezer]:
    made = HookedFreezer(
        Still(scripts),
        [],
        Timeouts(TIMEOUT, TIMEOUT, TIMEOUT),
        applications=Applications(path, timeout=TIMEOUT),
    )
    made.look()
    yield made
    made.close()
    assert not os.path.exists(path)


def ok(_: str) -> str:
    return "ok\n"


def test_applications_hold_and_are_told_the_end(freezer: HookedFreezer, path: str, scripts: Scripts) -> None:
    found = os.stat(path)
    assert (stat.S_ISSOCK(found.st_mode), stat.S_IMODE(found.st_mode)) == (True, 0o660)
    both = [Application(path, ok), Application(path, ok)]
    for _ in range(2):
        freezer.freeze()
        assert f"application {os.getpid()} of user {os.geteuid()}" in freezer.summary
        assert freezer.frozen
        freezer.thaw()
        assert not freezer.frozen
    freezer.close()
    assert [one.join() for one in both] == 2 * [["freeze", "thaw", "freeze", "thaw"]]
    assert freezer.complaints() == []
    assert scripts.lines() == 2 * ["- frozen", "- thawed"]


def test_an_application_that_cannot_freeze_refuses_the_backup(
    freezer: HookedFreezer, path: str, scripts: Scripts
) -> None:
    good = Application(path, ok)
    bad = Application(path, lambda word: "failed: no disk\n" if word == "freeze" else "ok\n")
    with pytest.raises(EffectError, match=r"application \d+ of user \d+ at freeze: no disk") as failed:
        freezer.freeze()
    assert failed.value.reason is Reason.HOOK_FAILED
    assert not freezer.frozen
    freezer.close()
    assert good.join() == bad.join() == ["freeze", "abort"]
    assert scripts.lines() == []


def test_an_application_that_hangs_up_instead_refuses_the_backup(freezer: HookedFreezer, path: str) -> None:
    bad = Application(path, lambda word: None)
    with pytest.raises(EffectError, match="hung up instead of freezing"):
        freezer.freeze()
    bad.join()
    freezer.freeze()
    freezer.thaw()


def test_an_application_that_does_not_answer_refuses_the_backup(scripts: Scripts, path: str) -> None:
    applications = Applications(path, timeout=0.2)
    freezer = HookedFreezer(Still(scripts), [], applications=applications)
    freezer.look()
    silent = Application(path, lambda word: "")
    with pytest.raises(EffectError, match=r"did not answer within 0\.2 s") as failed:
        freezer.freeze()
    assert failed.value.reason is Reason.HOOK_TIMEOUT
    freezer.close()
    assert silent.join() == ["freeze", "abort"]


def test_one_that_hangs_up_while_it_holds_is_noted(freezer: HookedFreezer, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as early:
        early.settimeout(TIMEOUT)
        early.connect(path)
        early.sendall(b"ok\nok\n")  # said before it was asked counts for nothing
        freezer.look()
        waiting = freezer._applications
        assert waiting is not None
        steps = waiting.freeze()
        next(steps)
        early.sendall(b"ok\n")
        assert select.select([waiting.fileno()], [], [], TIMEOUT)[0]
        with pytest.raises(StopIteration):
            next(steps)
    waiting.end("thaw")
    ((what, error),) = freezer.complaints()
    assert what == "application"
    assert "hung up while it held" in str(error)


def test_what_an_application_says_at_its_end_is_told(freezer: HookedFreezer, path: str) -> None:
    sad = Application(path, lambda word: "ok\n" if word == "freeze" else "failed lost my place\n")
    freezer.freeze()
    freezer.thaw()
    ending = freezer.ending
    assert ending is not None
    assert select.select([ending.descriptor], [], [], TIMEOUT)[0]
    freezer.look()
    ((_, error),) = freezer.complaints()
    assert str(error).endswith("at its end: lost my place")
    freezer.close()
    sad.join()


def test_who_says_too_much_or_is_one_too_many_is_hung_up_on(freezer: HookedFreezer, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as chatty:
        chatty.settimeout(TIMEOUT)
        chatty.connect(path)
        chatty.sendall(b"x" * 8192)
        freezer.look()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while chatty.recv(1):
                pass
            raise BrokenPipeError
    many = [socket.socket(socket.AF_UNIX) for _ in range(MOST + 1)]
    for one in many:
        one.connect(path)
        freezer.look()
    many[-1].settimeout(TIMEOUT)
    assert many[-1].recv(1) == b""
    for one in many:
        one.close()
    freezer.look()
    freezer.freeze()
    freezer.thaw()


def test_a_socket_that_was_left_is_made_anew_and_another_file_stays(scripts: Scripts, path: str) -> None:
    left = socket.socket(socket.AF_UNIX)
    left.bind(path)
    left.close()
    freezer = HookedFreezer(Still(scripts), [], applications=Applications(path))
    freezer.look()
    assert freezer.complaints() == []
    second = HookedFreezer(Still(scripts), [], applications=Applications(path))
    for _ in range(3):  # somebody listens there
        second.look()
    ((what, error),) = second.complaints()
    assert (what, "Address already in use" in str(error)) == ("applications", True)
    freezer.close()
    Path(path).write_text("precious")
    third = HookedFreezer(Still(scripts), [], applications=Applications(path))
    third.look()
    assert len(third.complaints()) == 1
    assert Path(path).read_text() == "precious"


def test_applications_stay_connected_over_a_reload(
    freezer: HookedFreezer, path: str, scripts: Scripts
) -> None:
    one = Application(path, ok)
    freezer.freeze()
    freezer.thaw()
    fresh = HookedFreezer(Still(scripts), [], applications=Applications(path, timeout=TIMEOUT))
    fresh.inherit(freezer)
    freezer.close()
    fresh.freeze()
    fresh.thaw()
    fresh.close()
    assert one.join() == ["freeze", "thaw", "freeze", "thaw"]


class Own:
    """A hook of an embedder; ``pends``: it takes its time, until its pipe says so."""

    def __init__(self, name: str, told: list[str], **does: Any) -> None:
        self.name = name
        self._told = told
        self._does = does

    def prepare(self, backup: Backup) -> Pending[None] | None:
        return self._do("prepare", backup)

    def freeze(self, backup: Backup) -> Pending[None] | None:
        return self._do("freeze", backup)

    def thaw(self, backup: Backup) -> Pending[None] | None:
        return self._do("thaw", backup)

    def abort(self, backup: Backup) -> Pending[None] | None:
        return self._do("abort", backup)

    def _do(self, phase: str, backup: Backup) -> Pending[None] | None:
        assert len(backup.name) == 16
        self._told.append(f"{self.name} {phase}")
        what = self._does.get(phase)
        if isinstance(what, Exception):
            raise what
        return what


def test_objects_are_called_in_order_and_in_reverse(scripts: Scripts) -> None:
    told: list[str] = []
    ready, wake = os.pipe()
    slow: Pending[None] = Pending(lambda: told.append("slow is over"), float("inf"), ready)
    freezer = HookedFreezer(
        Still(scripts), [], objects=[Own("a", told, freeze=slow), Own("b", told)], blocking=False
    )
    work = freezer.freeze()
    assert isinstance(work, Pending)
    assert told[-1] == "a freeze"
    os.write(wake, b"x")
    settle(work)
    assert freezer.summary == "all; hooks: a, b"
    settle(freezer.thaw())
    assert told == [
        *("a prepare", "b prepare", "a freeze", "slow is over", "b freeze"),
        *("b thaw", "a thaw"),
    ]
    os.close(ready)
    os.close(wake)


@pytest.mark.parametrize("phase", ["prepare", "freeze"])
def test_an_object_that_raises_refuses_the_backup(scripts: Scripts, phase: str) -> None:
    told: list[str] = []
    objects = [Own("a", told), Own("b", told, **{phase: ValueError("no")}), Own("c", told)]
    freezer = HookedFreezer(Still(scripts), [], objects=objects)
    with pytest.raises(EffectError, match=f"^the hook b at {phase}: no$") as failed:
        freezer.freeze()
    assert failed.value.reason is Reason.HOOK_FAILED
    started = sorted({word.split()[0] for word in told})
    assert [word for word in told if word.endswith("abort")] == [
        f"{name} abort" for name in reversed(started)
    ]
    assert ("c prepare" in told) is (phase == "freeze")
    assert scripts.lines() == []


def test_an_object_that_takes_too_long_is_broken_off(scripts: Scripts) -> None:
    told: list[str] = []
    never: Pending[None] = Pending(lambda: None, float("inf"), -1, lambda: told.append("cancelled"))
    freezer = HookedFreezer(Still(scripts), [], Timeouts(0.1), objects=[Own("a", told, prepare=never)])
    with pytest.raises(EffectError, match=r"the hook a at prepare: did not end within 0\.1 s") as failed:
        freezer.freeze()
    assert failed.value.reason is Reason.HOOK_TIMEOUT
    assert told == ["a prepare", "cancelled", "a abort"]


def test_an_object_that_fails_at_its_end_is_told_and_stops_nothing(scripts: Scripts) -> None:
    told: list[str] = []
    freezer = HookedFreezer(
        Still(scripts), [], objects=[Own("a", told), Own("b", told, thaw=OSError(5, "sad"))]
    )
    freezer.freeze()
    freezer.thaw()
    assert told[-2:] == ["b thaw", "a thaw"]
    ((what, error),) = freezer.complaints()
    assert what == "hook b"
    assert "sad" in str(error)
