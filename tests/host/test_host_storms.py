# SPDX-License-Identifier: Apache-2.0
"""What guests can make a host spend: descriptors, lines in a log, memory.  Each has a bound that holds."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import socket

import pytest
from scripted_guest import Guest, RawGuest

from hvring.errors import EndpointError
from hvring.events import EventKind
from hvring.host import NoAnswerError, NotReadyError, Timing, VirtualHost
from hvring.host.reception import MAX_SILENT
from hvring.host.virtual_host import MAX_WAITING
from hvring.news import BURST
from hvring.transport.endpoint import EndpointUnavailableError, OfferReply
from hvring.vmbus import SERVICE_NAMES

CALM = Timing(open_request=3600, heartbeat_interval=3600, timesync_interval=3600)
MANY = 400


def knock(path: str, datagram: bytes | None) -> socket.socket:
    """One more connection that says this, or nothing; the host's queue may have to be waited for."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)
    try:
        connection.connect(path)
        if datagram is not None:
            connection.send(datagram)
    except BaseException:
        connection.close()
        raise
    return connection


async def storm(path: str, datagram: bytes | None, count: int = MANY) -> list[socket.socket]:
    """``count`` connections at the same time, all of them open."""
    held: list[socket.socket] = []
    while len(held) < count:
        try:
            held.append(knock(path, datagram))
        except BlockingIOError:
            await asyncio.sleep(0)
    return held


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("datagram", "most"),
    [
        (None, MAX_SILENT),
        (b"\xff" * 100, 0),
        (b'{"hvring": 1, "open": "kvp", "wait": true}', MAX_WAITING),
        (b'{"hvring": 1, "open": "vss"}', 0),
    ],
    ids=["silent", "rubbish", "waiting", "refused"],
)
async def test_a_storm_of_connections_leaves_room_for_an_honest_guest(path, datagram, most):
    async with VirtualHost(path, timing=CALM) as host, Guest(path, "kvp"), Guest(path, "vss"):
        await host.wait_ready("kvp", "vss")
        before = descriptors()
        held = await storm(path, datagram)
        async with Guest(path, "shutdown"):
            await host.wait_ready("shutdown")
            await host.shutdown.request()
        while host._reception.connections > 2 + most:
            await asyncio.sleep(0)
        while descriptors() > before + len(held) + most:
            gc.collect()  # the memory of the channel that has just ended
            await asyncio.sleep(0)
        for connection in held:
            connection.close()
        assert await host.kvp.get("k") is None


async def test_the_oldest_silent_connection_goes_and_is_told_why(path):
    async with VirtualHost(path, timing=CALM):
        held = await storm(path, None, MAX_SILENT + 1)
        answer = await asyncio.get_running_loop().sock_recv(held[0], 4096)
        with pytest.raises(EndpointUnavailableError, match="more than 64 wait to be heard"):
            OfferReply.decode(answer)
        with pytest.raises(BlockingIOError):
            held[1].recv(4096)
        for connection in held:
            connection.close()


async def test_a_host_without_descriptors_says_so_once_and_goes_on_when_there_are_some(path, monkeypatch):
    monkeypatch.setattr("hvring.host.reception._ACCEPT_AGAIN", 0.001)
    events = []
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with VirtualHost(path, on_event=events.append) as host:
        waiting = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        os.close(free := os.dup(0))
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))
        try:
            for connection in waiting:
                connection.setblocking(False)
                connection.connect(path)
            while not events:
                await asyncio.sleep(0)
            tried = set()
            while len(tried) < 3:  # times that it tried again
                tried.add(host._reception._again)
                await asyncio.sleep(0)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        assert [(e.service, e.kind) for e in events] == [("endpoint", EventKind.FAILED)]
        assert "Too many open files" in events[0].detail
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
        for connection in waiting:
            connection.close()


async def flood_of_violations(path, host) -> None:
    async with RawGuest(path, "kvp") as guest:
        await guest.negotiate()
        await host.wait_ready("kvp")
        while host.violation_count < 2000:
            for _ in range(50):
                guest.send(b"\x1b[2J nonsense")
            await asyncio.sleep(0)


async def flood_of_datagrams(path, host) -> None:
    async with RawGuest(path, "kvp") as guest:
        while host.violation_count < 1000:
            try:
                guest.connection.send(b"x", socket.MSG_DONTWAIT)
            except BlockingIOError:
                await asyncio.sleep(0)


async def flood_of_refusals(path, host) -> None:
    for _ in range(300):
        connection = knock(path, b'{"hvring": 1, "open": "\\u001b[2J"}')
        with pytest.raises(EndpointError):
            OfferReply.decode(await asyncio.get_running_loop().sock_recv(connection, 4096))
        connection.close()


async def flood_of_guests(path, host) -> None:
    for _ in range(100):
        async with RawGuest(path, "kvp"):
            pass
        await host.wait_detached("kvp")


@pytest.mark.parametrize(
    ("flood", "kind"),
    [
        (flood_of_violations, EventKind.VIOLATION),
        (flood_of_datagrams, EventKind.VIOLATION),
        (flood_of_refusals, EventKind.REFUSED),
        (flood_of_guests, EventKind.ATTACHED),
    ],
)
async def test_no_guest_can_fill_the_log(path, flood, kind):
    events = []
    async with VirtualHost(path, timing=CALM, on_event=events.append) as host:
        await flood(path, host)
        assert host.reports.suppressed > 0
    count = sum(event.kind is kind for event in events)
    assert BURST <= count <= BURST + 1
    assert all(str(event).isprintable() for event in events)
    assert all(event.service in (*SERVICE_NAMES, "endpoint") for event in events)


async def test_what_was_held_back_is_counted_in_the_next_event(path, monkeypatch):
    monkeypatch.setattr("hvring.news.REFILL", 0.1)
    events = []
    async with VirtualHost(path, timing=CALM, on_event=events.append) as host:
        await flood_of_violations(path, host)
        before = len(events)
        while not any("more" in event.detail for event in events[before:]):
            await asyncio.sleep(0.01)


async def test_packets_that_nobody_fetches_are_kept_only_up_to_a_bound(path, monkeypatch):
    monkeypatch.setattr("hvring.host.faults._MAX_HEARD", 10 * (4096 + 256))
    async with VirtualHost(path, timing=CALM) as host, RawGuest(path, "kvp") as guest:
        await guest.negotiate()
        await host.wait_ready("kvp")
        async with host.faults("kvp") as faults:
            for _ in range(15):
                guest.send(bytes(4096))
            while host.violation_count < 5:
                await asyncio.sleep(0)
            for _ in range(10):
                await faults.receive()
            with pytest.raises(NoAnswerError):
                await faults.receive(timeout=0)
            guest.send(b"again")
            assert (await faults.receive()).payload.startswith(b"again")


@pytest.mark.parametrize("service", ["kvp", "timesync", "vss"])
async def test_guests_that_leave_during_a_request_cost_nothing_until_the_next_collection(path, service):
    """A channel's memory and its descriptor go with the guest, not some time after it."""
    async with VirtualHost(path, timing=CALM) as host:
        ask = {"kvp": lambda: host.kvp.get("k"), "timesync": host.timesync.sync, "vss": host.vss.backup}[
            service
        ]
        gc.collect()
        gc.disable()
        try:
            before = descriptors()
            for _ in range(30):
                async with RawGuest(path, service) as guest:
                    await guest.negotiate()
                    await host.wait_ready(service)
                    asked = asyncio.ensure_future(ask())
                    await guest.next()
                await asyncio.wait([asked])
                assert isinstance(asked.exception(), NotReadyError)
                del asked, guest
                await host.wait_detached(service)
            while host._reception.connections:
                await asyncio.sleep(0)
            assert descriptors() <= before + 1
        finally:
            gc.enable()
