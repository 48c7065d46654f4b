# SPDX-License-Identifier: Apache-2.0
"""What the settings have looked at for the heartbeat: files, addresses, units, and those that hang."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from hvring.agent.verify import SettingsError
from hvring.daemon.checks import AgeCheck, HttpCheck, UnitCheck, WordCheck, checks, pace
from hvring.daemon.health import Finding, HealthRegister
from hvring.daemon.settings import HealthSettings
from hvring.daemon.watched import Pace
from hvring.errors import EffectError
from hvring.ic import ApplicationState

T = TypeVar("T")
HEALTHY, CRITICAL = ApplicationState.HEALTHY, ApplicationState.CRITICAL
UNKNOWN, STOPPED = ApplicationState.UNKNOWN, ApplicationState.STOPPED


def done(work: Callable[[], Awaitable[T]]) -> T:
    async def limited() -> T:
        async with asyncio.timeout(60):
            return await work()

    return asyncio.run(limited())


# ------------------------------------------------------------------------- files


@pytest.mark.parametrize("text", ["critical", "CRITICAL\n", " Critical \n"])
def test_case_and_blanks_do_not_matter(text: str, tmp_path: Path) -> None:
    (tmp_path / "health").write_text(text)
    assert done(WordCheck(str(tmp_path / "health")).find).state is CRITICAL


@pytest.mark.parametrize("text", ["", "fine", "critical" * 100, "\x1b[2J", "kritisch é"])
def test_other_words_are_critical_and_those_that_there_are_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "health").write_text(text)
    found = done(WordCheck(str(tmp_path / "health")).find)
    assert found.state is CRITICAL
    assert "there are unknown, healthy, critical, stopped" in found.why


@pytest.mark.parametrize(
    ("name", "says"), [("pipe", "not a regular"), (".", "not a regular"), ("missing", "No such file")]
)
def test_what_is_no_file_is_an_error_and_nobody_waits_for_it(name: str, says: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for check in (WordCheck(str(tmp_path / name)), AgeCheck(str(tmp_path / name), 10)):
        with pytest.raises(EffectError, match=says):
            done(check.find)


def test_a_file_that_was_written_long_ago_is_critical(tmp_path: Path) -> None:
    path = tmp_path / "alive"
    path.write_text("anything at all, also nothing")
    assert done(AgeCheck(str(path), 3600).find).state is HEALTHY
    os.utime(path, (0, time.time() - 4000))
    found = done(AgeCheck(str(path), 3600).find)
    assert found.state is CRITICAL
    assert "at most 3600 s are allowed" in found.why
    os.utime(path, (0, time.time() + 4000))  # by a clock that was set meanwhile
    assert done(AgeCheck(str(path), 3600).find).state is HEALTHY


def test_a_file_that_does_not_answer_is_critical_after_its_time_and_no_more_than_two_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stops stands for one that hangs in the kernel."""
    hung = tmp_path / "python"
    hung.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/started\nkill -STOP $$\n")
    hung.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(hung))
    killed = []
    monkeypatch.setattr("hvring.guest.command.Command.kill", lambda self: killed.append(self.pid))

    async def test() -> None:
        check = WordCheck("/somewhere")
        register = HealthRegister([check], Pace(interval=0, timeout=0.3, bad=1))
        for looks in (1, 2, 3, 4):
            assert (register(), looks)[1] == looks
            (task,) = [watched._task for watched in register._watched]
            assert task is not None
            await task
            assert register.state is CRITICAL
        assert register.why == "file /somewhere: those who looked before hang there"

    try:
        done(test)
        for pid in killed:  # it may not have come far in its time
            assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
        assert len((tmp_path / "started").read_text().split()) == len(killed) == 2
    finally:
        for pid in killed:
            os.kill(pid, 9)
            os.waitpid(pid, 0)


# ------------------------------------------------------------------------- addresses


async def served(answer: bytes, path: str = "/health?deep=1") -> tuple[Finding, bytes]:
    asked = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked = await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        return await HttpCheck(f"http://127.0.0.1:{port}{path}").find(), asked


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", HEALTHY),
        (b"HTTP/1.0 204\r\n\r\n", HEALTHY),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n" + b"x" * 1_000_000, CRITICAL),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", CRITICAL),
        (b"", CRITICAL),
        (b"SSH-2.0-OpenSSH_9.2\r\n", CRITICAL),
        (b"HTTP/1.1 \xff\xfe\r\n", CRITICAL),
        (b"x" * 100_000, CRITICAL),
    ],
)
def test_a_server_is_healthy_if_it_says_so(answer: bytes, state: ApplicationState) -> None:
    found, asked = done(lambda: served(answer))
    assert found.state is state
    assert asked.startswith(b"GET /health?deep=1 HTTP/1.0\r\nHost: 127.0.0.1:")


def test_nobody_listens() -> None:
    async def nobody() -> Finding:
        with socket.socket() as held:  # nobody else gets the port meanwhile
            held.bind(("127.0.0.1", 0))
            return await HttpCheck(f"http://127.0.0.1:{held.getsockname()[1]}").find()

    with pytest.raises(ConnectionRefusedError):
        done(nobody)


# ------------------------------------------------------------------------- units, with a systemctl of the test's


@pytest.mark.parametrize(
    ("said", "state", "why"),
    [
        ("LoadState=loaded\\nActiveState=active", HEALTHY, "active"),
        ("LoadState=loaded\\nActiveState=failed", CRITICAL, "failed"),
        ("LoadState=loaded\\nActiveState=inactive", STOPPED, "inactive"),
        ("LoadState=loaded\\nActiveState=activating", UNKNOWN, "activating"),
        ("LoadState=not-found\\nActiveState=inactive", CRITICAL, "not-found"),
    ],
)
def test_a_unit_is_as_systemctl_says(
    said: str, state: ApplicationState, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemctl"
    program.write_text(f'#!/bin/sh\n[ "$4" = db.service ] && printf "{said}\\n"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert done(UnitCheck("db.service", "/nowhere").find) == Finding(state, why)


def test_a_systemctl_that_fails_is_an_error_with_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "systemctl"
    program.write_text("#!/bin/sh\necho no bus today >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(EffectError, match="no bus today"):
        done(UnitCheck("db.service", "/nowhere").find)


# ------------------------------------------------------------------------- settings


def test_each_setting_is_a_check() -> None:
    settings = HealthSettings(
        file="/run/health",
        units=["db.service"],
        urls=["http://127.0.0.1:80/x", "http://localhost", "http://[::1]:8080/"],
        fresh=["/run/a=b=1.5"],
        bad=7,
    )
    assert [check.name for check in checks(settings)] == [
        "unit db.service",
        "url http://127.0.0.1:80/x",
        "url http://localhost",
        "url http://[::1]:8080/",
        "file /run/health",
        "age of /run/a=b",
    ]
    assert pace(settings) == Pace(10.0, 5.0, 7, 2)


@pytest.mark.parametrize(
    ("knob", "value", "says"),
    [
        ("urls", "https://127.0.0.1/", "no http://"),
        ("urls", "http://example.org/", "not on this machine"),
        ("urls", "http://127.0.0.1.example.org/", "not on this machine"),
        ("urls", "http://10.0.0.1/", "not on this machine"),
        ("urls", "http://user@127.0.0.1/", "not on this machine"),
        ("urls", "http://127.0.0.1:99999/", "no port"),
        ("urls", "http://127.0.0.1/a b", "no http://"),
        ("urls", "http://127.0.0.1/\r\nX: y", "no http://"),
        ("fresh", "/run/alive", "no /PATH=SECONDS"),
        ("fresh", "alive=5", "no /PATH=SECONDS"),
        ("fresh", "/run/alive=soon", "no /PATH=SECONDS"),
        ("units", "nginx", "no unit's name"),
        ("units", "--version.service", "no unit's name"),
    ],
)
def test_what_cannot_be_meant_is_refused(knob: str, value: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        HealthSettings(**{knob: [value]})


def test_settings_that_change_change_what_is_said() -> None:
    register = HealthRegister()
    register.adopt(HealthSettings(state="healthy"))
    assert register() is HEALTHY
    register.set(CRITICAL, "by hand")
    register.adopt(HealthSettings(state="healthy"))
    assert register() is CRITICAL, "the file says nothing new"
    register.adopt(HealthSettings(state="stopped"))
    assert register() is STOPPED
    register.adopt(HealthSettings())
    assert register() is None


def test_who_was_given_up_by_a_reload_is_reaped_by_a_later_beat(tmp_path: Path) -> None:
    (tmp_path / "health").write_text("healthy")

    async def main() -> None:
        register = HealthRegister()
        register.adopt(HealthSettings(file=tmp_path / "health"))
        before = _children()  # of other tests
        register()
        (watched,) = register._watched
        while watched._task is None or not (children := _children() - before):
            await asyncio.sleep(0)
        register.adopt(HealthSettings())  # while its process is at work
        while _children() & children:
            await asyncio.sleep(0.01)
            register()

    done(main)


def _children() -> set[int]:
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return {int(number) for number in text.split()}
