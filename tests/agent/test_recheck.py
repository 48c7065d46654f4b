# SPDX-License-Identifier: Apache-2.0
"""A kernel that loses a wake-up costs an agent a moment, not the service (PROTOCOL §1.4, §1.8)."""

from __future__ import annotations

import asyncio
import mmap
import os

from hvring import Channel
from hvring.agent import Agent
from hvring.channel import EventfdDoorbell
from hvring.ic import Frame, NegotiateRequest, Version
from hvring.services import Heartbeat

RING = 16384


def test_an_agent_looks_unasked_where_wake_ups_may_get_lost() -> None:
    memory = mmap.mmap(-1, 2 * RING)
    to_host, to_guest = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0)
    guest = Channel(
        memory,
        ring_size=RING,
        tx_offset=0,
        rx_offset=RING,
        doorbell=EventfdDoorbell(os.dup(to_host), to_guest),
        recheck_every=0.02,
    )
    host = Channel(
        memory,
        ring_size=RING,
        tx_offset=RING,
        rx_offset=0,
        doorbell=EventfdDoorbell(os.eventfd(0), to_host),  # its signals go nowhere
    )
    opened = iter([guest])

    async def open_channel(name: str) -> Channel:
        try:
            return next(opened)
        except StopIteration:
            await asyncio.Event().wait()
            raise AssertionError from None

    async def main() -> None:
        loop = asyncio.get_running_loop()
        answered = asyncio.Event()
        loop.add_reader(host.fileno(), answered.set)
        async with Agent([Heartbeat(None)], open_channel) as agent:
            await agent.wait_open("heartbeat")
            request = NegotiateRequest((Version(3, 0),), (Version(3, 0),))
            host.send(Frame(0, request.encode(), Version(0, 0), Version(0, 0)).encode())
            async with asyncio.timeout(30):
                await answered.wait()
            assert agent.stats()["heartbeat"]["channel"]["rechecks_needed"] == 1
        loop.remove_reader(host.fileno())

    asyncio.run(main())
    assert host.recv() is not None
    host.close()
