# SPDX-License-Identifier: Apache-2.0
"""A real chronyd takes the host's time from an agent, and finds the offset that the host was given.

It runs with -x, so that it never touches a clock, and without a network and this machine's own configuration.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from hvring import Agent
from hvring.agent import Effects, Settings, standard_services
from hvring.agent.settings import TimeSyncSettings
from hvring.events import Event, EventKind
from hvring.guest.time_feed import FeedSample, feed
from hvring.host import VirtualHost
from hvring.host.timing import Timing
from hvring.transport.virtual import connect_async

CHRONYD = shutil.which("chronyd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SKEW = 3_712_345_678  # nanoseconds that the host is ahead
FAST = "refid HVRG poll 0 minsamples 4 precision 1e-6"
EXAMPLE = Path(__file__).parents[2] / "examples/chrony-hvring.conf"
BOUND = 100e-6  # seconds: what chrony's own arithmetic may add to the stated uncertainty
PATIENCE = 90.0  # seconds; it takes five

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="chronyd is started as root"),
    pytest.mark.skipif(CHRONYD is None, reason="there is no chronyd (Debian: chrony)"),
]


class GuestClock:
    """The machine's own, which nobody sets, with the counter that the virtual host has."""

    def now(self) -> int:
        return time.time_ns()

    def reference(self) -> int:
        return time.monotonic_ns() // 100

    def set(self, unix_ns: int) -> None:
        pytest.fail("it set the clock")


class Remembered:
    """A feed that remembers what it gave."""

    def __init__(self, to: str) -> None:
        self.samples: list[FeedSample] = []
        self._feed = feed(to)

    def give(self, sample: FeedSample) -> None:
        self._feed.give(sample)
        self.samples.append(sample)


class Chrony:
    """One chronyd with ``refclock``; asked over its own socket."""

    def __init__(self, directory: Path, refclock: str) -> None:
        self._directory = directory
        self._configuration = directory / "chrony.conf"
        self._configuration.write_text(
            f"port 0\ncmdport 0\nuser root\nbindcmdaddress {directory}/command\npidfile {directory}/pid\n"
            f"refclock {refclock}\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert CHRONYD is not None
        with open(self._directory / "log", "ab") as log:
            self._process = subprocess.Popen(
                [CHRONYD, "-x", "-d", "-f", str(self._configuration)], stdout=log, stderr=log
            )

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)

    def asked(self, what: str) -> list[list[str]]:
        """The rows of a report; empty while it does not answer."""
        command = ["chronyc", "-h", f"{self._directory}/command", "-c", what]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return [] if done.returncode else [row.split(",") for row in done.stdout.splitlines()]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Asked again and again, beside the agent."""
        give_up_at = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(holds):
            if time.monotonic() > give_up_at:
                log = (self._directory / "log").read_text(errors="replace")
                pytest.fail(f"chronyd: {self.asked('sources')} {self.asked('tracking')}\n{log}")
            await asyncio.sleep(0.2)

    def selected(self) -> bool:
        return any(row[:3] == ["#", "*", "HVRG"] for row in self.asked("sources"))

    def behind(self) -> float:
        """Seconds that this machine is behind what chrony holds for the true time."""
        ((*_, behind),) = [row[:5] for row in self.asked("tracking")] or [["nan"]]
        return float(behind)


@pytest.fixture
def directory() -> Iterator[Path]:
    """Nobody else's, as chronyd insists, and with a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="hvring-") as name:
        yield Path(name)


@pytest.fixture(params=["SOCK", "SHM"])
def ways(request, directory: Path) -> tuple[str, str]:
    """Words for chrony's configuration and for ours."""
    if request.param == "SOCK":
        return f"SOCK {directory}/sock {FAST}", f"sock:{directory}/sock"
    unit = request.getfixturevalue("shm_unit")
    return f"SHM {unit} dpoll -2 {FAST}", f"shm:{unit}"


def agent(directory: Path, given: Remembered, heard: list[Event]) -> Agent:
    settings = Settings(timesync=TimeSyncSettings(mode="feed", feed_to="shm:0"))
    services = standard_services(settings, ["timesync"], effects=Effects(clock=GuestClock(), feed=given))
    opener = partial(connect_async, str(directory / "host"), timeout=None, wait=True)
    return Agent(services, opener, on_event=heard.append)


def test_chronyd_selects_the_host_and_agrees_with_it(directory: Path, ways: tuple[str, str]) -> None:
    refclock, to = ways
    chrony = Chrony(directory, refclock)
    given = Remembered(to)

    async def run() -> None:
        timing = Timing(timesync_interval=0.1)
        async with (
            VirtualHost(str(directory / "host"), ["timesync"], timing=timing) as host,
            agent(directory, given, []),
        ):
            host.timesync.skew_ns = SKEW
            await chrony.until(chrony.selected)
            await chrony.until(lambda: agrees(chrony.behind(), given.samples))

    chrony.start()
    try:
        asyncio.run(run())
    finally:
        chrony.stop()


def agrees(behind: float, given: list[FeedSample]) -> bool:
    """Within the middle one of the uncertainties that came with the samples: chrony takes the middle sample, too."""
    stated = sorted(sample.uncertainty_ns for sample in given)[len(given) // 2] / 1e9
    return abs(behind - SKEW / 1e9) <= stated + BOUND


def test_chronyd_that_comes_later_is_found_and_both_are_told_once(directory: Path) -> None:
    chrony = Chrony(directory, f"SOCK {directory}/sock {FAST}")
    given = Remembered(f"sock:{directory}/sock")
    heard: list[Event] = []

    def told() -> list[Event]:
        return [event for event in heard if event.kind in (EventKind.FAILED, EventKind.RECOVERED)]

    async def run() -> None:
        timing = Timing(timesync_interval=0.02)
        async with (
            VirtualHost(str(directory / "host"), ["timesync"], timing=timing) as host,
            agent(directory, given, heard),
        ):
            while host.timesync.exchanges < 20:
                await asyncio.sleep(0.02)
            assert given.samples == []
            assert [event.kind for event in told()] == [EventKind.FAILED]
            chrony.start()
            await chrony.until(lambda: len(given.samples) > 3)

    try:
        asyncio.run(run())
    finally:
        chrony.stop()
    first, second, *more = told()
    assert [first.kind, second.kind] == [EventKind.FAILED, EventKind.RECOVERED]
    assert first.facts["reason"] == "feed_unreachable"
    assert "chronyd does not listen on" in first.detail
    # One that has no processor for a moment does not read, and its socket takes few.
    assert all(event.kind is EventKind.RECOVERED or "does not read" in event.detail for event in more)


def test_chronyd_selects_the_host_by_the_example_too(directory: Path) -> None:
    """As it is, but for the directory; a host that tells the time more often makes up for its slow polls."""
    (line,) = [line for line in EXAMPLE.read_text().splitlines() if line and not line.startswith("#")]
    usual = TimeSyncSettings().feed_to.removeprefix("sock:")
    assert usual in line
    chrony = Chrony(directory, line.removeprefix("refclock ").replace(usual, f"{directory}/sock"))
    given = Remembered(f"sock:{directory}/sock")

    async def run() -> None:
        timing = Timing(timesync_interval=0.2)
        async with (
            VirtualHost(str(directory / "host"), ["timesync"], timing=timing),
            agent(directory, given, []),
        ):
            await chrony.until(chrony.selected)

    chrony.start()
    try:
        asyncio.run(run())
    finally:
        chrony.stop()
