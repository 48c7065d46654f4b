# SPDX-License-Identifier: Apache-2.0
"""Neither a host that never stops sending on one channel nor a slow answer keeps the agent from the others."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from hvring.agent import Agent
from hvring.agent.responder import BATCH
from hvring.channel import Channel, EventfdDoorbell
from hvring.errors import RingFullError
from hvring.host import HostError
from hvring.ic import Frame, MessageType
from hvring.ic import Heartbeat as Beat
from hvring.services import Heartbeat, Reply
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_NAME

BEAT = Frame(MessageType.HEARTBEAT, Beat(1).encode()).encode()


@dataclass
class Host:
    """Both ends of the channels that the agent opened; whoever holds the host's end signals each packet."""

    ends: dict[str, Channel] = field(default_factory=dict)
    offers: list[Offer] = field(default_factory=list)

    async def open(self, name: str) -> Channel:
        offer = Offer(BY_NAME["heartbeat"])
        self.offers.append(offer)
        sides = []
        for tx, signal, wake in (
            (1, offer.host_event, offer.guest_event),
            (0, offer.guest_event, offer.host_event),
        ):
            size = offer.ring_size
            doorbell = EventfdDoorbell(os.dup(signal), os.dup(wake))
            sides.append(
                Channel(
                    offer.memory,
                    ring_size=size,
                    tx_offset=tx * size,
                    rx_offset=(1 - tx) * size,
                    doorbell=doorbell,
                )
            )
        self.ends[name] = sides[0]
        return sides[1]

    def ring_bell(self, number: int) -> None:
        os.eventfd_write(self.offers[number].host_event, 1)


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    for end in host.ends.values():
        end.close()
    for offer in host.offers:
        offer.close()


class Flooded(Heartbeat):
    """Before it has answered one request, the next ones are there, and its doorbell rings."""

    name = "flooded"

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host = host
        self.served = 0

    def receive(self, payload: bytes) -> Reply | None:
        self.served += 1
        end = self.host.ends[self.name]
        while end.recv() is not None:
            pass
        try:
            for _ in range(3):
                end.send(payload)
        except RingFullError:
            pass
        self.host.ring_bell(0)
        return super().receive(payload)


class Beating(Heartbeat):
    """Notes how much of the flood was served between a beat's being sent and its being served."""

    def __init__(self, flooded: Flooded) -> None:
        super().__init__()
        self.flooded = flooded
        self.sent_at = 0
        self.waited: list[int] = []

    def receive(self, payload: bytes) -> Reply | None:
        self.waited.append(self.flooded.served - self.sent_at)
        return super().receive(payload)


def test_a_beat_waits_for_a_bounded_part_of_a_flood_however_long_that_goes_on(host: Host) -> None:
    flooded = Flooded(host)
    beating = Beating(flooded)

    async def main() -> None:
        async with Agent([flooded, beating], host.open) as agent, asyncio.timeout(60):
            for name in ("flooded", "heartbeat"):
                await agent.wait_open(name)
            host.ends["flooded"].send(BEAT)
            while len(beating.waited) < 50:
                before = len(beating.waited)
                beating.sent_at = flooded.served
                host.ends["heartbeat"].send(BEAT)
                while len(beating.waited) == before:
                    await asyncio.sleep(0)
                while host.ends["heartbeat"].recv() is None:
                    await asyncio.sleep(0)

    asyncio.run(main())
    assert flooded.served > 50
    assert max(beating.waited) <= 2 * BATCH, beating.waited


class Meanwhile(Flooded):
    """A flood that counts its turns; a beat is sent in the middle of one."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.turns = 0
        self.sent_in: int | None = None  # that turn, until the beat is served
        self.turns_after: list[int] = []

    def tick(self) -> None:
        self.turns += 1
        super().tick()

    def receive(self, payload: bytes) -> Reply | None:
        if self.served > BATCH and self.sent_in is None:
            while self.host.ends["heartbeat"].recv() is not None:
                pass
            self.sent_in = self.turns
            self.host.ends["heartbeat"].send(BEAT)
        return super().receive(payload)


class Served(Heartbeat):
    """Notes how many turns the flood had between."""

    def __init__(self, flood: Meanwhile) -> None:
        super().__init__()
        self.flood = flood

    def receive(self, payload: bytes) -> Reply | None:
        assert self.flood.sent_in is not None
        self.flood.turns_after.append(self.flood.turns - self.flood.sent_in)
        self.flood.sent_in = None
        return super().receive(payload)


def test_who_was_asked_in_another_services_turn_comes_before_its_next_one(host: Host) -> None:
    flood = Meanwhile(host)

    async def main() -> None:
        async with Agent([flood, Served(flood)], host.open) as agent, asyncio.timeout(60):
            for name in ("flooded", "heartbeat"):
                await agent.wait_open(name)
            host.ends["flooded"].send(BEAT)
            while len(flood.turns_after) < 50:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert flood.turns > 50
    assert set(flood.turns_after) == {0}, flood.turns_after


def test_a_pool_that_another_program_keeps_locked_holds_up_nobody_else(both) -> None:
    async def main() -> None:
        async with both("kvp", "timesync") as pair, asyncio.timeout(60):
            await pair.host.kvp.set("k", "before")
            with open(pair.pools / ".kvp_pool_0", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                change = asyncio.create_task(pair.host.kvp.set("k", "after"))
                for _ in range(5):
                    await pair.host.timesync.sample()
                    assert not change.done()
                fcntl.flock(file, fcntl.LOCK_UN)
            await change
            assert await pair.host.kvp.get("k") == "after"
            assert not pair.host.violations

    asyncio.run(main())


def test_a_channel_may_end_while_an_answer_is_waited_for(both) -> None:
    async def main() -> None:
        async with both("kvp") as pair, asyncio.timeout(60):
            await pair.host.kvp.set("k", "before")
            with open(pair.pools / ".kvp_pool_0", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                change = asyncio.create_task(pair.host.kvp.set("k", "after"))
                kvp = pair.agent.services["kvp"]
                while kvp.counters.requests < 3:  # negotiation, a change, and this one
                    await asyncio.sleep(0)
                await pair.host.set_offered("kvp", False)
                with pytest.raises(HostError):
                    await change
                await pair.host.set_offered("kvp", True)
                await pair.host.wait_ready("kvp")
            assert await pair.host.kvp.get("k") == "before"

    asyncio.run(main())
