# SPDX-License-Identifier: Apache-2.0
"""The worst of all that is known of the applications, and when a check is believed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from hvring.daemon.health import Finding, HealthRegister
from hvring.daemon.watched import Pace
from hvring.ic import ApplicationState

UNKNOWN, HEALTHY = ApplicationState.UNKNOWN, ApplicationState.HEALTHY
CRITICAL, STOPPED = ApplicationState.CRITICAL, ApplicationState.STOPPED


class Told:
    """A check that finds what the test says, when the test lets it."""

    def __init__(self, name: str = "unit db.service") -> None:
        self.name = name
        self.looks = 0
        self.found: Finding | Exception = Finding(HEALTHY)
        self.gate = asyncio.Event()
        self.gate.set()

    async def find(self) -> Finding:
        self.looks += 1
        await self.gate.wait()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def on_a_loop(test: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(60):
            await test()

    asyncio.run(limited())


async def looked(register: HealthRegister, clock: Clock) -> ApplicationState | None:
    """What is said after one more look."""
    clock.now += 1000
    register()
    await settled(register)
    return register.state


async def settled(register: HealthRegister) -> None:
    while any(watched._task is not None for watched in register._watched):
        await asyncio.sleep(0)


def test_where_nobody_says_anything_nothing_is_said() -> None:
    register = HealthRegister()
    assert (register(), register.why) == (None, "")
    assert register.show() == {"state": None, "why": "", "sources": []}


def test_what_somebody_says_holds_until_it_is_taken_back() -> None:
    register = HealthRegister()
    register.set(CRITICAL, "the disk is loud")
    assert (register(), register.why) == (CRITICAL, "said: the disk is loud")
    register.set(None)
    assert register() is None


@pytest.mark.parametrize(
    ("states", "worst"),
    [
        ((HEALTHY, HEALTHY), HEALTHY),
        ((HEALTHY, UNKNOWN), UNKNOWN),
        ((STOPPED, UNKNOWN), STOPPED),
        ((STOPPED, CRITICAL), CRITICAL),
    ],
)
def test_the_worst_of_all_is_said(states: tuple[ApplicationState, ApplicationState], worst) -> None:
    async def test() -> None:
        check, clock = Told(), Clock()
        check.found = Finding(states[0], "it says so")
        register = HealthRegister([check], Pace(bad=1), monotonic=clock)
        register.set(states[1])
        assert await looked(register, clock) is worst

    on_a_loop(test)


def test_some_findings_in_a_row_are_needed_for_a_change() -> None:
    async def test() -> None:
        check, clock = Told(), Clock()
        register = HealthRegister([check], Pace(bad=3, good=2), monotonic=clock)
        assert register.state is UNKNOWN
        assert await looked(register, clock) is HEALTHY  # contradicts nothing
        check.found = Finding(CRITICAL, "failed")
        assert [await looked(register, clock) for _ in range(2)] == [HEALTHY, HEALTHY]
        check.found = Finding(HEALTHY)
        assert await looked(register, clock) is HEALTHY
        check.found = ConnectionRefusedError(111, "Connection refused")
        assert [await looked(register, clock) for _ in range(3)] == [HEALTHY, HEALTHY, CRITICAL]
        assert register.why == "unit db.service: [Errno 111] Connection refused"
        check.found = Finding(HEALTHY, "active")
        assert [await looked(register, clock) for _ in range(2)] == [CRITICAL, HEALTHY]

    on_a_loop(test)


def test_a_check_runs_only_when_a_heartbeat_comes_and_its_time_has() -> None:
    async def test() -> None:
        check, clock = Told(), Clock()
        register = HealthRegister([check], Pace(interval=10), monotonic=clock)
        assert check.looks == 0
        await looked(register, clock)
        since = clock.now
        for moment, looks in ((1, 1), (5, 1), (9, 1), (10, 2)):
            clock.now = since + moment
            register()
            await settled(register)
            assert check.looks == looks, moment

    on_a_loop(test)


def test_a_check_that_hangs_delays_no_heartbeat_and_is_critical_after_its_time() -> None:
    async def test() -> None:
        check, clock = Told(), Clock()
        check.gate.clear()
        register = HealthRegister([check], Pace(timeout=0.05, bad=1), monotonic=clock)
        assert register() is UNKNOWN
        clock.now += 1000
        assert register() is UNKNOWN  # and starts no second one beside the first
        while register.state is UNKNOWN:
            await asyncio.sleep(0.01)
        assert (register.state, check.looks) == (CRITICAL, 1)
        assert register.why == "unit db.service: no answer within 0.05 s"

    on_a_loop(test)


def test_new_checks_know_what_the_old_ones_of_their_name_knew() -> None:
    async def test() -> None:
        clock = Clock()
        register = HealthRegister([Told("a"), Told("b")], monotonic=clock)
        await looked(register, clock)
        register.use([Told("b")])
        assert register.state is HEALTHY
        register.use([Told("b"), Told("c")])
        assert [source["state"] for source in register.show()["sources"]] == ["healthy", "unknown"]
        check = Told("c")
        check.gate.clear()
        register.use([check])
        register()
        await asyncio.sleep(0)
        register.close()
        await asyncio.sleep(0)
        assert register.state is UNKNOWN

    on_a_loop(test)


def test_a_stranger_s_words_are_escaped_and_short() -> None:
    async def test() -> None:
        check, clock = Told(), Clock()
        check.found = Finding(CRITICAL, "\x1b[2J\n" + "x" * 1000)
        register = HealthRegister([check], Pace(bad=1), monotonic=clock)
        await looked(register, clock)
        assert register.why.isprintable()
        assert len(register.why) < 300

    on_a_loop(test)
