# SPDX-License-Identifier: Apache-2.0
"""Backup over a freezer with hooks: what the host is answered, what is told, and when."""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import pytest

from hvring.events import Event, EventKind
from hvring.guest.freezer import RehearsedFreezer
from hvring.guest.hooks.freezer import HookedFreezer
from hvring.guest.hooks.timeouts import Timeouts
from hvring.guest.launch import PLAIN
from hvring.guest.mounts import Plan
from hvring.ic.vss import VssOperation, VssRequest
from hvring.pending import Pending, settle
from hvring.services.base import Response
from hvring.services.vss import BackupState, Vss
from hvring.status import Status

TIMEOUT = 60.0


class Backups:
    """A service with hooks in a directory, and what it told."""

    def __init__(self, directory: Path, answer: float = TIMEOUT) -> None:
        directory.mkdir(mode=0o755, exist_ok=True)
        self.directory = directory
        self.freezer = HookedFreezer(
            RehearsedFreezer(lambda: Plan((), ())),
            [(str(directory), "native")],
            Timeouts(TIMEOUT, 10 * TIMEOUT, 10 * TIMEOUT),
            answer=answer,
            ways=lambda: [PLAIN],
            blocking=False,
        )
        self.service = Vss(self.freezer)
        self.events: list[Event] = []
        self.service.on_event = self.events.append

    def add(self, name: str, body: str) -> None:
        path = self.directory / name
        path.write_text(f"#!/bin/sh\nD={self.directory.parent}\necho {name} $1 >>$D/log\n{body}\n")
        path.chmod(0o755)

    def ask(self, operation: VssOperation) -> int:
        response = settle(self.service.respond(VssRequest(operation)))
        assert isinstance(response, Response)
        return response.status

    def told(self, kind: EventKind) -> list[str]:
        return [event.detail for event in self.events if event.kind is kind]

    def wait(self) -> None:
        """Until the service has something to do, and has done it."""
        left = self.service.deadline()
        descriptor = self.service.watch()
        select.select([descriptor] if descriptor >= 0 else [], [], [], min(TIMEOUT, left or 0.1))
        self.service.tick()


@pytest.fixture
def backups(tmp_path: Path) -> Backups:
    return Backups(tmp_path / "hooks.d")


def test_a_hook_that_fails_is_fail_to_the_host_and_named(backups: Backups) -> None:
    backups.add("10-good", "")
    backups.add("20-bad", '[ "$1" = prepare ] || exit 0; echo no disk >&2; exit 9')
    assert backups.ask(VssOperation.FREEZE) == Status.FAIL
    assert backups.service.state is BackupState.IDLE
    (said,) = backups.told(EventKind.FAILED)
    assert said == "freeze: the hook 20-bad at prepare: exit status 9: no disk"
    (event,) = [event for event in backups.events if event.kind is EventKind.FAILED]
    assert event.facts["reason"] == "hook_failed"
    assert backups.service.counters.failures == {"hook_failed": 1}
    assert backups.service.hooks["20-bad"]["failures"] == 1
    backups.add("20-bad", "")
    assert backups.ask(VssOperation.FREEZE) == Status.OK
    assert backups.told(EventKind.FROZEN) == ["nothing; hooks: 10-good, 20-bad"]
    assert backups.ask(VssOperation.THAW) == Status.OK
    assert backups.service.hooks["20-bad"] == {
        "backups": 2,
        "failures": 1,
        "seconds": backups.service.hooks["20-bad"]["seconds"],
    }


def test_a_file_that_is_no_hook_says_so_before_a_backup(backups: Backups) -> None:
    backups.add("10-open", "")
    (backups.directory / "10-open").chmod(0o666)
    assert backups.ask(VssOperation.HOT_BACKUP) == Status.FAIL
    (said,) = backups.told(EventKind.FAILED)
    assert "preparing a backup: the hook" in said


def test_a_hook_that_fails_at_its_end_spoils_no_backup_and_recovers(backups: Backups) -> None:
    backups.add("10-bad", '[ "$1" != thaw ] || exit 4')
    assert backups.ask(VssOperation.FREEZE) == Status.OK
    assert backups.ask(VssOperation.THAW) == Status.OK
    assert backups.told(EventKind.FAILED) == ["hook 10-bad: the hook 10-bad at thaw: exit status 4"]
    failure = backups.service.last_failure
    assert failure is not None
    assert failure.over_at is None
    backups.add("10-bad", "")
    assert backups.ask(VssOperation.FREEZE) == Status.OK
    assert backups.told(EventKind.RECOVERED) == []
    assert backups.ask(VssOperation.THAW) == Status.OK
    assert len(backups.told(EventKind.RECOVERED)) == 1
    assert failure.over_at is not None


def test_the_host_is_answered_before_a_slow_end_and_the_next_backup_waits_for_it(tmp_path: Path) -> None:
    backups = Backups(tmp_path / "hooks.d", answer=0.0)
    backups.add(
        "10-slow", '[ "$1" != thaw ] || until [ -e $D/go ]; do sleep 0.02; done; echo end of $1 >>$D/log'
    )
    assert backups.ask(VssOperation.FREEZE) == Status.OK
    assert backups.ask(VssOperation.THAW) == Status.OK
    assert backups.service.state is BackupState.IDLE
    assert "end of thaw" not in (tmp_path / "log").read_text()
    # New settings wait for it, too.
    fresh = Backups(tmp_path / "hooks.d").service
    backups.service.adopt(fresh)
    assert backups.service._freezer is backups.freezer
    answer = backups.service.respond(VssRequest(VssOperation.FREEZE))
    assert isinstance(answer, Pending)
    (tmp_path / "go").touch()
    response = settle(answer)
    assert isinstance(response, Response)
    assert response.status == Status.OK
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines.index("end of thaw") < lines.index("10-slow prepare", lines.index("10-slow thaw"))
    assert backups.ask(VssOperation.THAW) == Status.OK
    until = time.monotonic() + TIMEOUT
    while backups.service._freezer is backups.freezer:
        assert time.monotonic() < until
        backups.wait()
    assert backups.service._freezer is fresh._freezer


def test_the_end_of_the_channel_aborts_what_has_begun(backups: Backups, tmp_path: Path) -> None:
    backups.add("10-slow", '[ "$1" != freeze ] || exec sleep 1000')
    answer = backups.service.respond(VssRequest(VssOperation.FREEZE))
    assert isinstance(answer, Pending)
    log = tmp_path / "log"
    until = time.monotonic() + TIMEOUT
    while not log.exists() or "10-slow freeze" not in log.read_text():
        assert time.monotonic() < until
        select.select([answer.descriptor], [], [], 0.05)
        going_on = answer.resume()
        assert isinstance(going_on, Pending)
        answer = going_on
    answer.cancel()
    backups.service.reset()
    while backups.service.quiet:
        assert time.monotonic() < until
        backups.wait()
    assert log.read_text().splitlines() == ["10-slow prepare", "10-slow freeze", "10-slow abort"]


def test_without_hooks_nothing_of_them_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from hvring.agent.settings import Settings, VssSettings\n"
        "from hvring.agent.standard import standard_services\n"
        f"standard_services(Settings(real=True, vss=VssSettings(hooks={str(tmp_path)!r})))\n"
        "print(*sorted(name for name in sys.modules if name.startswith('hvring.guest.hooks')))\n"
    )
    read, write = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-c", program],
        {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
    )
    os.close(write)
    with os.fdopen(read) as said:
        found = said.read().split()
    assert os.waitpid(pid, 0)[1] == 0
    assert found == [
        *("hvring.guest.hooks", "hvring.guest.hooks.found", "hvring.guest.hooks.freezer"),
        "hvring.guest.hooks.timeouts",
    ]
