# SPDX-License-Identifier: Apache-2.0
"""Attaching, leaving, dying, toggling, renegotiating, ending; and the hooks for faults."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import socket
import struct
import sys
import threading

import pytest
from scripted_guest import Book, Guest, RawGuest

from hvring.errors import ChannelRescindedError, EndpointError, RingFullError
from hvring.events import EventKind
from hvring.host import HostError, NoAnswerError, NotReadyError, Timing, VirtualHost
from hvring.ic import Frame, Heartbeat, MessageType, Request, Version
from hvring.transport.endpoint import EndpointUnavailableError, OfferReply
from hvring.transport.virtual import connect, connect_async
from hvring.vmbus import SERVICE_NAMES


async def test_a_second_guest_is_refused_until_the_first_leaves(path):
    async with VirtualHost(path) as host:
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
            with pytest.raises(EndpointUnavailableError, match="busy"):
                await connect_async(path, "kvp")
        await host.wait_detached("kvp")
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
            await host.kvp.set("k", "v")
        assert host.violations == []


async def test_a_guest_that_waits_gets_the_service_when_it_is_free(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as first:
        second = asyncio.create_task(connect_async(path, "kvp", wait=True))
        await host.wait_ready("kvp")
        assert not second.done()
        first.leave()
        (await second).close()


async def test_a_guest_that_stops_waiting_is_forgotten(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as first:
        await host.wait_ready("kvp")
        waiting = asyncio.create_task(connect_async(path, "kvp", wait=True))
        while host._reception.connections < 2:
            await asyncio.sleep(0)
        waiting.cancel()
        while host._reception.connections > 1:
            await asyncio.sleep(0)
        first.leave()
        async with Guest(path, "kvp", wait=True):
            await host.wait_ready("kvp")


async def test_unticking_a_service_rescinds_it_and_ticking_offers_it_again(path):
    async with VirtualHost(path) as host:
        async with Guest(path, "kvp") as guest:
            await host.wait_ready("kvp")
            await host.set_offered("kvp", False)
            assert host.status()["services"]["kvp"]["state"] == "off"
            await guest.ended.wait()
            with pytest.raises(EndpointUnavailableError, match="not offered"):
                await connect_async(path, "kvp")
        again = asyncio.create_task(connect_async(path, "kvp", wait=True))
        await asyncio.sleep(0)
        await host.set_offered("kvp", True)
        (await again).close()


async def test_unticking_during_a_request_ends_the_request(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.hold = []
        asked = asyncio.create_task(host.kvp.get("k"))
        await guest.held.wait()
        await host.set_offered("kvp", False)
        with pytest.raises(NotReadyError, match="took the channel back during GET 'k'"):
            await asked


async def test_only_the_chosen_services_are_offered(path):
    async with VirtualHost(path, ["vss"]) as host:
        with pytest.raises(EndpointUnavailableError, match="not offered"):
            await connect_async(path, "kvp")
        async with Guest(path, "vss"):
            await host.wait_ready()
    with pytest.raises(ValueError, match="no such service: floppy"):
        VirtualHost(path, ["floppy"])


async def test_an_unknown_service_is_refused_for_good(path):
    async with VirtualHost(path):
        with pytest.raises(EndpointError, match="no such service"):
            await connect_async(path, "floppy", wait=True, timeout=None)


@pytest.mark.parametrize(
    ("datagram", "complaint"),
    [
        (b"hello", "not a JSON datagram"),
        (b'{"hvring": 3, "open": "kvp"}', "version of the endpoint is 3"),
        (b"x" * 5000, "longer than"),
    ],
)
async def test_a_bad_request_is_refused_in_words(path, datagram, complaint):
    loop = asyncio.get_running_loop()
    async with VirtualHost(path):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
            guest.setblocking(False)
            guest.connect(path)
            guest.send(datagram)
            with pytest.raises(EndpointError, match=complaint):
                OfferReply.decode(await loop.sock_recv(guest, 4096))
            assert await loop.sock_recv(guest, 4096) == b""


async def test_a_connection_without_a_request_is_closed_in_time(path):
    loop = asyncio.get_running_loop()
    async with VirtualHost(path, timing=Timing(open_request=0.05)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as guest:
            guest.setblocking(False)
            guest.connect(path)
            with pytest.raises(EndpointError, match="no request came"):
                OfferReply.decode(await loop.sock_recv(guest, 4096))


async def test_datagrams_after_the_request_are_listed(path):
    async with VirtualHost(path) as host, RawGuest(path, "kvp") as guest:
        await guest.negotiate()
        guest.connection.send(b"hello?")
        while not host.violations:
            await asyncio.sleep(0)
        assert host.violations == ["kvp: connection: a datagram of 6 bytes after the request"]
        await host.wait_ready("kvp")


async def test_the_last_answer_of_a_guest_that_leaves_counts(path):
    async with VirtualHost(path) as host, Guest(path, "shutdown") as guest:
        await host.wait_ready("shutdown")

        def answer_and_go(packet, payload):
            guest.channel.send(payload, transaction_id=packet.transaction_id)
            guest.leave()

        guest.reply = answer_and_go
        await host.shutdown.request()
        await host.wait_detached("shutdown")
        assert host.violations == []


@pytest.mark.parametrize("packets", [0, 1, 2])
async def test_a_guest_that_leaves_in_the_middle_ends_only_its_request(path, packets):
    async with VirtualHost(path) as host:
        guest = RawGuest(path, "kvp")
        await guest.attach_async()
        asked = None
        if packets:
            await guest.negotiate()
            await host.wait_ready("kvp")
            asked = asyncio.create_task(host.kvp.get("k"))
            if packets == 2:
                await guest.next()
        guest.leave()
        if asked is not None:
            with pytest.raises(NotReadyError):
                await asked
        await host.wait_detached("kvp")
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
            assert await host.kvp.get("k") is None
        assert host.violations == []


VICTIM = """
import sys
from hvring.ic import MessageType, Request, Version, negotiate
from hvring.transport.virtual import connect
channel = connect(sys.argv[1], "kvp", wait=True)
print("attached", flush=True)
while True:
    channel.wait()
    while (packet := channel.recv()) is not None:
        request = Request.parse(packet.payload)
        if request.type == MessageType.NEGOTIATE:
            answer = negotiate.answer(request, [Version(3, 0)], [Version(4, 0)])[0]
        else:
            answer = request.answer()
        channel.send(answer, transaction_id=packet.transaction_id)
"""


async def test_a_guest_that_is_killed_at_any_moment_leaves_the_host_serving(path):
    random_moment = random.Random(20)
    async with VirtualHost(path) as host:
        for _ in range(8):
            victim = await asyncio.create_subprocess_exec(
                sys.executable, "-c", VICTIM, path, stdout=asyncio.subprocess.PIPE
            )
            try:
                assert await victim.stdout.readline() == b"attached\n"
                await host.wait_ready("kvp")
                for _ in range(random_moment.randrange(1, 60)):
                    await host.kvp.set("k", "v")
                asked = asyncio.create_task(host.kvp.set("k", "v"))
                for _ in range(random_moment.randrange(4)):
                    await asyncio.sleep(0)
                victim.send_signal(signal.SIGKILL)
                try:
                    await asked
                except HostError:
                    pass
            finally:
                if victim.returncode is None:
                    try:
                        victim.kill()
                    except ProcessLookupError:
                        pass
                await victim.wait()
            await host.wait_detached("kvp")
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
            await host.kvp.set("k", "v")
        assert host.violations == []


async def test_a_guest_in_another_thread_is_never_reported_for_needless_signals(path):
    """Neither side's steps wait for the other's: answer as fast as it goes, one by one and in bursts."""
    exchanges, bursts, burst = 1500, 60, 40

    def serve() -> None:
        book = Book("heartbeat")
        with connect(path, "heartbeat") as channel:
            try:
                while channel.wait():
                    while (packet := channel.recv()) is not None:
                        channel.send(book.answer(packet.payload), transaction_id=packet.transaction_id)
            except ChannelRescindedError:
                pass

    timing = Timing(heartbeat_interval=3600, heartbeat_latency=30)
    async with VirtualHost(path, timing=timing) as host:
        thread = threading.Thread(target=serve)
        thread.start()
        await host.heartbeat.wait_contact()
        for _ in range(exchanges):
            await host.heartbeat.beat()
        beat = Frame(MessageType.HEARTBEAT, Heartbeat(1).encode()).encode()
        async with host.faults("heartbeat") as raw:
            for _ in range(bursts):
                for _ in range(burst):
                    raw.send(beat)
                for _ in range(burst):
                    await raw.receive()
        violations = host.violations
    thread.join()
    assert violations == []


async def test_renegotiation_at_any_time(path):
    events = []
    async with VirtualHost(path, on_event=events.append) as host, Guest(path, "timesync") as guest:
        await host.wait_ready("timesync")
        guest.book.versions = (Version(3, 0),)
        while not guest.book.requests:
            await asyncio.sleep(0)
        assert (await host.renegotiate("timesync")).version == Version(3, 0)
        assert host.negotiated("timesync").version == Version(3, 0)
        count = len(guest.book.requests)
        while len(guest.book.requests) == count:
            await asyncio.sleep(0)
        assert guest.book.requests[-1].body[24] == 1, "SYNC again, in the layout of the new version"
        assert guest.book.negotiations == 2
        assert [e.kind for e in events].count(EventKind.NEGOTIATED) == 2
        assert host.violations == []


async def test_raw_payloads_reach_the_guest_and_answers_come_back_unchecked(path):
    async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
        await host.wait_ready("kvp")
        guest.book.answer = lambda payload: payload[::-1]
        async with host.faults("kvp") as raw:
            packet = await raw.exchange(b"abcdefgh", transaction_id=77)
            assert (packet.payload, packet.transaction_id) == (b"hgfedcba", 77)
            guest.hold = []
            assert await raw.exchange(b"x", timeout=0.05) is None
            guest.hold = None
            with pytest.raises(RingFullError):
                raw.send(bytes(10**7))
            raw.signal()
            assert len(raw.memory) == 2 * raw.ring_size
        assert host.violations == []


async def test_raw_needs_a_guest_and_gives_the_channel_back(path):
    async with VirtualHost(path) as host:
        with pytest.raises(NotReadyError):
            async with host.faults("kvp"):
                pass
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
            async with host.faults("kvp"):
                waiting = asyncio.create_task(host.kvp.get("k"))
                await asyncio.sleep(0)
                assert not waiting.done()
            assert await waiting is None


async def test_a_full_ring_is_waited_for_and_the_guests_wake_up_is_no_violation(path):
    async with VirtualHost(path) as host, Guest(path, "fcopy") as guest:
        await host.wait_ready("fcopy")
        asyncio.get_running_loop().remove_reader(guest.channel.fileno())
        obey = guest.book.fcopy
        guest.book.fcopy = lambda request: None if request.body[:4] == b"\xff" * 4 else obey(request)
        async with host.faults("fcopy") as raw:
            for size in (6000, 6000, 4000):
                raw.send(Frame(MessageType.FCOPY, b"\xff" * size).encode())
            memory, pending_send_size = raw.memory, raw.ring_size + 12
        copy = asyncio.create_task(host.fcopy.copy(b"x" * 6144, "/srv", name="f"))
        while not struct.unpack_from("<I", memory, pending_send_size)[0]:
            await asyncio.sleep(0)
        asyncio.get_running_loop().add_reader(guest.channel.fileno(), guest.take)
        await copy
        assert guest.book.files == {"/srv/f": b"x" * 6144}
        assert guest.channel.stats()["room_signals_sent"] == 1
        assert struct.unpack_from("<I", memory, pending_send_size)[0] == 0
        assert host.violations == []


async def test_a_ring_that_stays_full_is_given_up(path):
    async with VirtualHost(path, timing=Timing(answer=0.4)) as host, Guest(path, "fcopy") as guest:
        await host.wait_ready("fcopy")
        asyncio.get_running_loop().remove_reader(guest.channel.fileno())
        async with host.faults("fcopy") as raw:
            for size in (6000, 6000, 4000):
                raw.send(bytes(size))
        with pytest.raises(NoAnswerError, match=r"made no room for START 'f' in 0\.4 s"):
            await host.fcopy.copy(b"", "/srv", name="f")


async def test_ending_rescinds_every_channel_and_removes_the_socket(path):
    host = VirtualHost(path)
    async with host:
        guests = [await Guest(path, name).__aenter__() for name in SERVICE_NAMES]
        await host.wait_ready()
    for guest in guests:
        await guest.ended.wait()
        assert guest.channel.closed
    assert not os.path.exists(path)
    await host.close()


async def test_guests_that_come_and_go_leave_nothing_open(path):
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    async with VirtualHost(path) as host:
        before = descriptors()
        for _ in range(10):
            async with Guest(path, "kvp"), Guest(path, "vss"):
                await host.wait_ready("kvp", "vss")
                await host.kvp.set("k", "v")
            await host.wait_detached("kvp")
            await host.wait_detached("vss")
        while descriptors() > before:  # the connections' own ends come a moment later
            await asyncio.sleep(0)


async def test_a_host_ends_while_a_guest_waits(path):
    async with VirtualHost(path, ["vss"]) as host:
        waiting = asyncio.create_task(connect_async(path, "kvp", wait=True, timeout=None))
        while not host._reception.connections:
            await asyncio.sleep(0)
    async with VirtualHost(path) as host:
        (await waiting).close()


async def test_two_hosts_cannot_share_a_socket(path):
    async with VirtualHost(path):
        with pytest.raises(EndpointError, match="another process listens"):
            async with VirtualHost(path):
                pass
        async with Guest(path, "kvp"):
            pass


async def test_events_tell_the_story_of_a_guest_and_a_bad_listener_harms_nobody(path):
    events = []

    def listen(event):
        events.append((event.kind, str(event)))
        raise RuntimeError("bad listener")

    async with VirtualHost(path, on_event=listen) as host:
        async with Guest(path, "kvp"):
            await host.wait_ready("kvp")
        await host.wait_detached("kvp")
    assert events == [
        (EventKind.ATTACHED, "kvp: attached"),
        (EventKind.NEGOTIATED, "kvp: negotiated framework 3.0, version 4.0"),
        (EventKind.DETACHED, "kvp: detached the guest detached"),
    ]


async def test_waiting_for_a_guest_has_a_limit(path):
    async with VirtualHost(path) as host:
        with pytest.raises(TimeoutError):
            await host.wait_ready("kvp", timeout=0.01)
        with pytest.raises(ValueError, match="no such service"):
            await host.wait_ready("floppy")


def test_requests_have_the_header_of_the_negotiated_versions(path):
    async def scenario() -> Request:
        async with VirtualHost(path) as host, Guest(path, "kvp") as guest:
            await host.wait_ready("kvp")
            await host.kvp.get("k")
            return guest.book.requests[0]

    request = asyncio.run(scenario())
    assert (request.framework, request.version) == (Version(3, 0), Version(4, 0))
    assert (request.flags, request.status, request.anomalies) == (3, 0, ())
