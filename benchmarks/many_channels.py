# SPDX-License-Identifier: Apache-2.0
"""One agent with many channels on one event loop, and one host with their other ends; for test_speed_channels.py.

many_channels.py COUNT ROUNDS    prints JSON: KiB per channel, us per packet with one and with all channels busy
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from hvring import Channel
from hvring.agent import Agent
from hvring.channel import EventfdDoorbell
from hvring.ic.frame import Frame, MessageType
from hvring.ic.heartbeat import Heartbeat as Beat
from hvring.services import Heartbeat
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_NAME

BEAT = Frame(MessageType.HEARTBEAT, Beat(1).encode()).encode()
PACKETS = 2000  # of a measurement


class Named(Heartbeat):
    """One of many."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class ManyOffers:
    """The host: hands out the guest's end of a channel by name and keeps the other."""

    def __init__(self) -> None:
        self.ends: list[Channel] = []
        self._offers: list[Offer] = []

    async def open(self, name: str) -> Channel:
        offer = Offer(BY_NAME["heartbeat"])
        self._offers.append(offer)
        size, to_host, to_guest = offer.ring_size, offer.guest_event, offer.host_event
        self.ends.append(
            Channel(
                offer.memory,
                ring_size=size,
                tx_offset=size,
                rx_offset=0,
                doorbell=EventfdDoorbell(os.dup(to_guest), os.dup(to_host)),
            )
        )
        return Channel(
            offer.memory,
            ring_size=size,
            tx_offset=0,
            rx_offset=size,
            doorbell=EventfdDoorbell(os.dup(to_host), os.dup(to_guest)),
            name=name,
        )

    async def exchange(self, busy: list[Channel], packets: int) -> float:
        """us per request and answer, with one request at a time on each of the busy channels."""
        start = time.perf_counter()
        for _ in range(max(1, packets // len(busy))):
            for channel in busy:
                channel.send(BEAT)
            for channel in busy:
                while channel.recv() is None:
                    await asyncio.sleep(0)  # a round of the agent's loop
        return (time.perf_counter() - start) / (max(1, packets // len(busy)) * len(busy)) * 1e6


def resident() -> int:
    """KiB."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


async def main(count: int, rounds: int) -> None:
    host = ManyOffers()
    async with Agent([Named(f"beat.{n}") for n in range(1)], host.open) as first:
        await first.wait_open("beat.0")
        await host.exchange(host.ends[:1], 10)  # what is needed once
    host = ManyOffers()
    before = resident()
    async with Agent([Named(f"beat.{n}") for n in range(count)], host.open) as agent:
        for name in agent.services:
            await agent.wait_open(name)
        await host.exchange(host.ends, count)
        after = resident()
        one = [await host.exchange(host.ends[:1], PACKETS) for _ in range(rounds)]
        every = [await host.exchange(host.ends, PACKETS) for _ in range(rounds)]
    print(json.dumps({"kib": (after - before) / count, "one": one, "every": every}))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
