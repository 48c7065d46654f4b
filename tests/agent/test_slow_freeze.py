# SPDX-License-Identifier: Apache-2.0
"""A freezer that takes its time, in an agent: what the host hears, and when; and that every end thaws."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from hvring.agent import Agent
from hvring.host import HostError, VirtualHost
from hvring.ic import Frame, MessageType, Status, Version, VssOperation, VssRequest
from hvring.pending import Pending
from hvring.services import Heartbeat, Vss
from hvring.transport.virtual import connect_async


class SlowFreezer:
    """Freezes once ``freezes`` is set, thaws once ``thaws`` is."""

    ready = True

    def __init__(self) -> None:
        self.frozen = False
        self.freezes = asyncio.Event()
        self.thaws = asyncio.Event()
        self.asked = asyncio.Event()
        self.calls: list[str] = []

    def freeze(self) -> Pending[None] | None:
        return self._begin("freeze", self.freezes, True)

    def thaw(self) -> Pending[None] | None:
        return self._begin("thaw", self.thaws, False)

    def _begin(self, what: str, done: asyncio.Event, frozen: bool) -> Pending[None] | None:
        self.calls.append(what)
        self.asked.set()

        def go_on() -> Pending[None] | None:
            if not done.is_set():
                return Pending(go_on, time.monotonic() + 0.01)
            self.frozen = frozen
            return None

        return go_on()


@asynccontextmanager
async def scene(path: Path) -> AsyncIterator[tuple[VirtualHost, Agent, SlowFreezer]]:
    freezer = SlowFreezer()
    opener = partial(connect_async, path, timeout=None, wait=True)
    async with (
        asyncio.timeout(60),
        VirtualHost(path, ["vss", "heartbeat"]) as host,
        Agent([Vss(freezer), Heartbeat()], opener) as agent,
    ):
        await host.wait_ready("vss", "heartbeat")
        try:
            yield host, agent, freezer
        finally:
            freezer.thaws.set()


def request(operation: VssOperation) -> bytes:
    return Frame(MessageType.VSS, VssRequest(operation).encode(), version=Version(5, 0)).encode()


def test_beats_are_answered_while_a_freeze_and_a_thaw_are_under_way(tmp_path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "host.sock") as (host, agent, freezer):
            freeze = asyncio.create_task(host.vss.freeze())
            await freezer.asked.wait()
            await host.heartbeat.beat()
            await host.heartbeat.beat()
            assert not freeze.done()
            freezer.freezes.set()
            await freeze
            freezer.asked.clear()
            thaw = asyncio.create_task(host.vss.thaw())
            await freezer.asked.wait()
            await host.heartbeat.beat()
            assert not thaw.done()
            freezer.thaws.set()
            await thaw
            assert freezer.calls == ["freeze", "thaw"]
            counters = agent.stats()["vss"]["counters"]
            assert (counters["effect_errors"], counters["failed"]) == (0, 0)

    asyncio.run(main())


def test_a_thaw_behind_a_freeze_in_the_ring_is_answered_behind_it_and_ends_thawed(tmp_path) -> None:
    async def main() -> None:
        async with scene(tmp_path / "host.sock") as (host, agent, freezer), host.faults("vss") as raw:
            raw.send(request(VssOperation.FREEZE), transaction_id=1)
            raw.send(request(VssOperation.THAW), transaction_id=2)
            await freezer.asked.wait()
            await host.heartbeat.beat()
            assert agent.stats()["vss"]["counters"]["replies"] == 1  # to the negotiation
            freezer.freezes.set()
            freezer.thaws.set()
            answers = [await raw.receive(), await raw.receive()]
            assert [answer.transaction_id for answer in answers] == [1, 2]
            assert [Frame.decode(answer.payload).status for answer in answers] == [Status.OK, Status.OK]
            assert not freezer.frozen

    asyncio.run(main())


@pytest.mark.parametrize("by", ["the host", "the agent"])
def test_a_freeze_under_way_is_broken_off_and_seen_to_its_end(tmp_path, by: str) -> None:
    """By nobody's request any more: while the service is off, and while the agent stops."""

    async def main() -> None:
        async with scene(tmp_path / "host.sock") as (host, agent, freezer):
            freeze = asyncio.create_task(host.vss.freeze())
            await freezer.asked.wait()
            freezer.frozen = True  # some mounts are, when it is broken off
            stop = asyncio.create_task(host.set_offered("vss", False) if by == "the host" else agent.stop())
            while freezer.calls != ["freeze", "thaw"]:
                await asyncio.sleep(0)
            with pytest.raises(HostError):
                await freeze
            assert freezer.frozen
            if by == "the agent":
                assert not stop.done()  # an embedder may rely on it that all is over then
            freezer.thaws.set()
            await stop
            while freezer.frozen:
                await asyncio.sleep(0.001)
            while agent.services["vss"].deadline() is not None:
                await asyncio.sleep(0.001)

    asyncio.run(main())


def test_a_thaw_that_hangs_does_not_keep_an_agent_from_stopping(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("hvring.agent.agent._UNDOING", 0.05)

    async def main() -> None:
        async with scene(tmp_path / "host.sock") as (host, agent, freezer):
            freezer.freezes.set()
            await host.vss.freeze()
            await agent.stop()
            assert freezer.calls == ["freeze", "thaw"]
            assert freezer.frozen

    asyncio.run(main())
