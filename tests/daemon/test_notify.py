# SPDX-License-Identifier: Apache-2.0
"""What a service manager is told, over sockets as systemd's; a real one is in tests/systemd."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvring.agent import Agent
from hvring.daemon.notify import ServiceManager
from hvring.events import Event, EventKind

LONG = 60.0


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A manager's socket, and its name as it stands in the environment."""
    name = os.fspath(tmp_path / "notify") if request.param == "path" else f"@hvring-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind(f"\0{name[1:]}" if name.startswith("@") else name)
        one.settimeout(LONG)
        yield one, name


def hear(manager: socket.socket) -> list[str]:
    return manager.recv(4096).decode().splitlines()


async def no_channel(name: str) -> None:
    await asyncio.Event().wait()


def test_ready_status_reloading_and_stopping_in_the_words_of_sd_notify(
    manager: tuple[socket.socket, str],
) -> None:
    heard, name = manager
    environment = {"NOTIFY_SOCKET": name, "HOME": "/"}
    service = ServiceManager(environment)
    assert environment == {"HOME": "/"}  # what is started here is told nothing of it
    assert service.watchdog == 0
    agent = Agent([], no_channel)  # type: ignore[arg-type]

    async def live() -> None:
        with service.told_of(agent, asyncio.get_running_loop()):
            await asyncio.sleep(0)
            assert hear(heard) == ["READY=1", "STATUS=serving nothing"]
            service.heard(Event("agent", EventKind.CHANGED))  # which changes nothing that is said
            await asyncio.sleep(0)
            before = time.monotonic_ns() // 1000
            service.reloading()
            first, second = hear(heard)
            assert first == "RELOADING=1"
            assert before <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
            service.ready(agent)
            assert hear(heard) == ["READY=1", "STATUS=serving nothing"]
            service.stopping()
            assert hear(heard)[0] == "STOPPING=1"

    asyncio.run(live())


def test_signs_of_life_come_twice_an_interval_while_the_loop_turns(
    manager: tuple[socket.socket, str],
) -> None:
    heard, name = manager
    service = ServiceManager(
        {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "40000", "WATCHDOG_PID": str(os.getpid())}
    )
    assert service.watchdog == 0.02
    heard.setblocking(False)

    async def live() -> list[str]:
        loop = asyncio.get_running_loop()
        said: list[str] = []
        with service.told_of(Agent([], no_channel), loop):  # type: ignore[arg-type]
            while said.count("WATCHDOG=1") < 5:
                said += (await loop.sock_recv(heard, 4096)).decode().splitlines()
        return said

    assert asyncio.run(live())[0] == "WATCHDOG=1"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "relative"},
        {"NOTIFY_SOCKET": "vsock:2:1"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"},
        {"NOTIFY_SOCKET": "/nowhere/" + "n" * 200, "WATCHDOG_USEC": "-1"},
        {"NOTIFY_SOCKET": "/nowhere/notify", "WATCHDOG_USEC": "often"},
        {"WATCHDOG_USEC": "1000"},
    ],
    ids=str,
)
def test_without_a_manager_or_with_nonsense_nothing_happens(environment: dict[str, str]) -> None:
    service = ServiceManager(dict(environment))
    assert service.watchdog == 0

    async def live() -> None:
        agent = Agent([], no_channel)  # type: ignore[arg-type]
        with service.told_of(agent, asyncio.get_running_loop()):
            await asyncio.sleep(0)
            service.reloading()
            service.stopping()

    asyncio.run(live())


def test_a_manager_that_does_not_read_holds_nothing_up(manager: tuple[socket.socket, str]) -> None:
    _, name = manager
    service = ServiceManager({"NOTIFY_SOCKET": name})

    async def live() -> None:
        with service.told_of(Agent([], no_channel), asyncio.get_running_loop()):  # type: ignore[arg-type]
            for _ in range(10_000):  # more than any socket takes
                service.reloading()

    asyncio.run(live())


def test_hvring_run_tells_its_manager(manager: tuple[socket.socket, str], tmp_path: Path) -> None:
    heard, name = manager
    process = subprocess.Popen(
        [sys.executable, "-m", "hvring", "run", "--virtual", os.fspath(tmp_path / "host"), "heartbeat"],
        env={**os.environ, "NOTIFY_SOCKET": name, "WATCHDOG_USEC": "60000000"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert hear(heard) == ["WATCHDOG=1"]
        assert hear(heard) == ["READY=1", "STATUS=waiting for heartbeat"]
        process.send_signal(signal.SIGHUP)
        assert hear(heard)[0] == "RELOADING=1"
        assert hear(heard)[0] == "READY=1"
        process.send_signal(signal.SIGTERM)
        assert hear(heard)[0] == "STOPPING=1"
        assert process.wait(LONG) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_watchdog_that_no_number_can_say_is_none(digits: int) -> None:
    environment = {"NOTIFY_SOCKET": "/nobody", "WATCHDOG_USEC": "9" * digits}
    assert ServiceManager(environment).watchdog == 0
