# SPDX-License-Identifier: Apache-2.0
"""Both ends of the virtual endpoint, each against a hand-written other end."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import gc
import json
import os
import resource
import select
import socket
import struct
import tempfile
import threading

import pytest

from hvring.channel import EventfdDoorbell
from hvring.errors import ChannelRescindedError, EndpointError, RingCorruptError
from hvring.ring import DoubleMapping, RingConsumer, RingProducer
from hvring.transport import virtual
from hvring.transport.endpoint import EndpointUnavailableError, OfferReply, OpenRequest
from hvring.transport.virtual import Handshake, Offer, connect, connect_async
from hvring.vmbus import BY_NAME

KVP = BY_NAME["kvp"]
RING = 0x4000


def good_reply(**changes: object) -> bytes:
    fields = {
        "hvring": 1,
        "class": KVP.class_guid,
        "instance": KVP.instance_guid,
        "ring_size": RING,
    } | changes
    return json.dumps({k: v for k, v in fields.items() if v is not None}).encode()


def send(connection: socket.socket, data: bytes, descriptors: list[int]) -> None:
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    connection.sendmsg([data], ancillary)


class HandHost:
    """Accepts one connection after the other and lets the test's functions answer them."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.requests: list[bytes] = []
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listening.bind(path)
        self.listening.listen(8)
        self.offer = Offer(KVP, RING)
        self.thread: threading.Thread | None = None
        self.connections: list[socket.socket] = []

    def answer(self, *answers) -> None:
        def serve() -> None:
            for function in answers:
                connection, _ = self.listening.accept()
                self.connections.append(connection)
                self.requests.append(connection.recv(4096))
                function(connection)

        self.thread = threading.Thread(target=serve)
        self.thread.start()

    def close(self) -> None:
        if self.thread is not None:
            self.thread.join(10)
            assert not self.thread.is_alive()
        for one in [self.listening, *self.connections]:
            one.close()
        self.offer.close()

    # what it may answer

    def grant(self, connection: socket.socket) -> None:
        self.offer.answer(connection)

    def descriptors(self) -> list[int]:
        return list(self.offer._descriptors)


@pytest.fixture
def host(tmp_path):
    open_before = set(os.listdir("/proc/self/fd"))
    one = HandHost(str(tmp_path / "sock"))
    yield one
    one.close()
    del one.offer  # its memory holds a descriptor, too
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) <= open_before, "a descriptor was left open"


def refuse(reason: str, **more: object):
    def answer(connection: socket.socket) -> None:
        connection.send(json.dumps({"hvring": 1, "error": reason} | more).encode())
        connection.close()

    return answer


def test_packets_cross_in_both_directions(host):
    host.answer(host.grant)
    with connect(host.path, "kvp", timeout=10) as channel:
        assert json.loads(host.requests[0]) == {"hvring": 1, "open": "kvp"}
        from_guest = RingConsumer(host.offer.memory, 0, RING)
        to_guest = RingProducer(host.offer.memory, RING, RING)
        from_guest.arm()
        assert channel.send(b"from guest", transaction_id=7)
        packet = from_guest.recv()
        assert (packet.payload[:10], packet.transaction_id) == (b"from guest", 7)
        assert os.eventfd_read(host.offer.guest_event) == 1
        to_guest.send(b"from host")
        os.eventfd_write(host.offer.host_event, 1)
        assert channel.wait(10)
        assert channel.recv().payload[:9] == b"from host"


def test_a_mirrored_channel_shows_what_wraps_in_one_piece(host):
    host.answer(host.grant)
    with connect(host.path, "kvp", timeout=10, mirrored=True) as channel:
        from_guest = RingConsumer(host.offer.memory, 0, RING)
        to_guest = RingProducer(host.offer.memory, RING, RING)
        for n in range(40):  # 1,024 bytes each: the rings' 12 KiB are gone round three times
            payload = bytes([n]) * 1000
            with channel.claim(1000) as claim:
                claim.buffer[:] = payload
            assert from_guest.recv().payload == payload
            to_guest.send(payload)
            assert [bytes(view) for view in channel.views()] == [payload]


def test_where_rings_cannot_be_mapped_twice_they_are_mapped_once(host, monkeypatch):
    def larger_pages(fd: int, ring_size: int) -> DoubleMapping:
        return DoubleMapping(fd, ring_size, control_size=512)  # what 4096 is to pages of 64 KiB

    monkeypatch.setattr("hvring.transport.virtual.DoubleMapping", larger_pages)
    host.answer(host.grant)
    with connect(host.path, "kvp", timeout=10, mirrored=True) as channel:
        from_guest = RingConsumer(host.offer.memory, 0, RING)
        with channel.claim(8) as claim:
            claim.buffer[:] = b"all same"
        assert from_guest.recv().payload == b"all same"


def test_a_service_can_be_asked_for_by_class_guid(host):
    host.answer(host.grant)
    with connect(host.path, "{" + KVP.class_guid.upper() + "}", timeout=10) as channel:
        assert channel.name == "kvp"


def test_an_offer_is_prepared_as_a_kernel_prepares_rings(host):
    control = [struct.unpack_from("<16xI", host.offer.memory, ring + 48)[0] for ring in (0, RING)]
    assert control == [1, 1]
    assert struct.unpack_from("<III", host.offer.memory, 0) == (0, 0, 1)
    assert struct.unpack_from("<III", host.offer.memory, RING) == (0, 0, 0)


def test_an_offers_memory_cannot_be_resized(host):
    for size in (0, 4 * RING):
        with pytest.raises(PermissionError):
            os.ftruncate(host.descriptors()[0], size)


def test_the_host_closing_the_connection_rescinds_the_channel(host):
    host.answer(host.grant)
    with connect(host.path, "kvp", timeout=10) as channel:
        host.connections[0].close()
        with pytest.raises(ChannelRescindedError):
            channel.wait(10)
        with pytest.raises(ChannelRescindedError):
            channel.send(b"x")


def test_the_guest_closing_the_channel_ends_the_connection(host):
    host.answer(host.grant)
    connect(host.path, "kvp", timeout=10).close()
    host.connections[0].settimeout(10)
    assert host.connections[0].recv(10) == b""


@pytest.mark.parametrize(
    ("reply", "complaint"),
    [
        (b"hello", "not a JSON datagram"),
        (b"[" * 4000, "not a JSON"),
        (b"[1]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON"),
        (b"{}", "version of the endpoint"),
        (good_reply(hvring=2), "version of the endpoint is 2"),
        (good_reply(hvring=True), "version of the endpoint is True"),
        (good_reply(ring_size=None), "'ring_size' is missing"),
        (good_reply(ring_size="16384"), "'ring_size' is missing or not an integer"),
        (good_reply(ring_size=True), "'ring_size' is missing or not an integer"),
        (good_reply(ring_size=0), "ring_size 0 "),
        (good_reply(ring_size=4096), "ring_size 4096 "),
        (good_reply(ring_size=-16384), "ring_size -16384 "),
        (good_reply(ring_size=RING + 8), "not a multiple of 4096"),
        (good_reply(ring_size=1 << 40), "ring_size 1099511627776"),
        (good_reply(ring_size=2 * RING), "memory has 32768 bytes, two rings need 65536"),
        (good_reply(instance=None), "'instance' is missing"),
        (good_reply(**{"class": 5}), "'class' is missing or not a text"),
        (good_reply(**{"class": BY_NAME["vss"].class_guid}), "asked for kvp, the host offers the class"),
    ],
)
def test_a_bad_datagram_is_named_and_its_descriptors_closed(host, reply, complaint):
    host.answer(lambda connection: send(connection, reply, host.descriptors()))
    with pytest.raises(EndpointError, match=complaint):
        connect(host.path, "kvp", timeout=10)


@pytest.mark.parametrize(
    ("pick", "complaint"),
    [
        ([], "sent 0 descriptors"),
        ([0, 1], "sent 2 descriptors"),
        ([0, 1, 2, 2], "sent 4 descriptors"),
        ([0, 1, 2, 2, 2, 2], "too many descriptors"),
        ([1, 0, 2], "is not memory"),
        ([0, 0, 2], "not an eventfd"),
        ([0, 1, 0], "not an eventfd"),
    ],
)
def test_wrong_descriptors_are_named_and_closed(host, pick, complaint):
    all_three = host.descriptors()
    host.answer(lambda connection: send(connection, good_reply(), [all_three[i] for i in pick]))
    with pytest.raises(EndpointError, match=complaint):
        connect(host.path, "kvp", timeout=10)


def test_a_datagram_that_is_too_long_is_refused(host):
    host.answer(lambda connection: send(connection, good_reply(more="x" * 5000), host.descriptors()))
    with pytest.raises(EndpointError, match="longer than"):
        connect(host.path, "kvp", timeout=10)


def test_rings_that_are_broken_from_the_start_leave_nothing_open(host):
    struct.pack_into("<I", host.offer.memory, 0, 3)
    host.answer(host.grant)
    with pytest.raises(RingCorruptError, match="multiple of 8"):
        connect(host.path, "kvp", timeout=10)


def test_memory_without_seals_is_sealed_by_the_guest(host):
    memory = os.memfd_create("plain", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(memory, 2 * RING)
    host.answer(lambda connection: send(connection, good_reply(), [memory, *host.descriptors()[1:]]))
    with connect(host.path, "kvp", timeout=10):
        assert fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    os.close(memory)


@pytest.mark.parametrize(
    ("flags", "seals"),
    [(os.MFD_CLOEXEC, 0), (os.MFD_ALLOW_SEALING, fcntl.F_SEAL_SEAL), (os.MFD_ALLOW_SEALING, 0x8 | 0x4 | 0x1)],
    ids=["made without sealing", "sealed against seals", "sealed against writing, growing and seals"],
)
def test_memory_that_could_be_taken_away_is_refused_and_it_is_said_how_to_seal(flags, seals, host):
    memory = os.memfd_create("plain", flags)
    os.ftruncate(memory, 2 * RING)
    if seals:
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
    host.answer(lambda connection: send(connection, good_reply(), [memory, *host.descriptors()[1:]]))
    with pytest.raises(EndpointError, match=r"MFD_ALLOW_SEALING.*F_ADD_SEALS.*F_SEAL_SHRINK"):
        connect(host.path, "kvp", timeout=10)
    os.ftruncate(memory, 0)  # as it could have done later
    os.close(memory)


def test_a_file_on_tmpfs_is_refused_as_any_other(host):
    """It takes seals from nobody, and whoever has it open can cut it."""
    try:
        file = tempfile.TemporaryFile(dir="/dev/shm")  # noqa: SIM115
    except OSError:
        pytest.skip("no /dev/shm")
    with file:
        file.truncate(2 * RING)
        host.answer(
            lambda connection: send(connection, good_reply(), [file.fileno(), *host.descriptors()[1:]])
        )
        with pytest.raises(EndpointError, match=r"not memory but a file|F_SEAL_SHRINK"):
            connect(host.path, "kvp", timeout=10)


def test_memory_that_is_sealed_by_the_host_cannot_be_taken_away_once_it_is_used(host):
    host.answer(host.grant)
    with connect(host.path, "kvp", timeout=10) as channel:
        with pytest.raises(PermissionError):
            os.ftruncate(host.descriptors()[0], 0)
        assert channel.send(b"x") is not None


def test_huge_pages_are_refused(host):
    huge = 2 << 20
    try:
        memory = os.memfd_create("huge", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("no huge pages here")
    os.ftruncate(memory, huge)
    host.answer(
        lambda connection: send(connection, good_reply(ring_size=RING), [memory, *host.descriptors()[1:]])
    )
    with pytest.raises(EndpointError, match="huge pages"):
        connect(host.path, "kvp", timeout=10)
    os.close(memory)


@pytest.mark.parametrize("count", [0, 1, 2, 1 << 40])
def test_an_eventfd_that_never_gets_quiet_is_refused(count, host):
    bell = os.eventfd(0, os.EFD_SEMAPHORE)
    os.eventfd_write(bell, count)
    host.answer(lambda connection: send(connection, good_reply(), [*host.descriptors()[:2], bell]))
    with pytest.raises(EndpointError, match="EFD_SEMAPHORE"):
        connect(host.path, "kvp", timeout=10)
    os.close(bell)


def test_a_host_that_takes_counts_away_while_they_are_looked_at_is_not_taken_for_another(host, monkeypatch):
    """Found by the hostile host, once in tens of thousands of openings."""
    stolen = iter([0, 1, 2])

    class Robbed:
        def __init__(self, *args, **named):
            self.bell = EventfdDoorbell(*args, **named)

        def signal(self):
            self.bell.signal()

        def take(self):
            return next(stolen)

    host.answer(host.grant)
    monkeypatch.setattr(
        virtual, "EventfdDoorbell", lambda *a, **n: Robbed(*a, **n) if n else EventfdDoorbell(*a)
    )
    with connect(host.path, "kvp", timeout=10) as channel:
        assert channel.recv() is None
    assert next(stolen, None) is None


@pytest.mark.parametrize("count", [0, 1, 2, (1 << 64) - 2])
def test_what_the_host_rang_before_the_guest_looked_is_not_lost(count, host):
    os.eventfd_write(host.descriptors()[2], count)
    host.answer(host.grant)
    with connect(host.path, "kvp", timeout=10) as channel:
        assert select.select([channel], [], [], 0)[0]
        assert channel.arm() == 0
        assert not select.select([channel], [], [], 0)[0]


def test_a_file_is_no_memory(host, tmp_path):
    """Reading it could wait for a server, or end the process when the disk is full."""
    with open(tmp_path / "file", "w+b") as file:
        file.truncate(2 * RING)
        host.answer(
            lambda connection: send(connection, good_reply(), [file.fileno(), *host.descriptors()[1:]])
        )
        with pytest.raises(EndpointError, match="not memory but a file"):
            connect(host.path, "kvp", timeout=10)


def test_a_refusal_is_reported_in_the_hosts_words(host):
    host.answer(refuse("busy"))
    with pytest.raises(EndpointUnavailableError, match="busy"):
        connect(host.path, "kvp", timeout=10)


def test_a_caller_that_waits_asks_again_after_refusals_and_lost_connections(host):
    host.answer(refuse("not now"), lambda connection: connection.close(), host.grant)
    connect(host.path, "kvp", timeout=30, wait=True).close()
    assert [json.loads(r)["wait"] for r in host.requests] == [True] * 3


def test_a_final_refusal_ends_the_waiting(host):
    host.answer(refuse("there is no such service", retry=False))
    with pytest.raises(EndpointError, match="no such service"):
        connect(host.path, "kvp", timeout=30, wait=True)


def test_a_host_that_never_answers_is_given_up(host):
    host.answer(lambda connection: None)
    with pytest.raises(EndpointUnavailableError, match="in time"):
        connect(host.path, "kvp", timeout=0.1)


def test_a_caller_that_waited_in_vain_is_told_the_last_refusal(tmp_path):
    with pytest.raises(EndpointUnavailableError, match="no virtual host"):
        connect(tmp_path / "nothing", "kvp", timeout=0.1, wait=True)


def test_no_host_at_all_says_how_to_start_one(tmp_path):
    with pytest.raises(EndpointUnavailableError, match="hvring host --socket"):
        connect(tmp_path / "nothing", "kvp")


def test_a_path_that_is_too_long_for_a_socket_is_an_endpoint_error(tmp_path):
    with pytest.raises(EndpointError):
        connect(tmp_path / ("x" * 200), "kvp")


def test_async_connect_opens_waits_and_times_out(host):
    async def scenario() -> None:
        (await connect_async(host.path, "kvp", timeout=30, wait=True)).close()
        with pytest.raises(EndpointUnavailableError, match="in time"):
            await connect_async(host.path, "kvp", timeout=0.1)

    host.answer(refuse("not now"), host.grant, lambda connection: None)
    asyncio.run(scenario())


def test_async_connect_can_be_cancelled(host):
    async def scenario() -> None:
        task = asyncio.create_task(connect_async(host.path, "kvp", timeout=None))
        while not host.requests:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()

    host.answer(lambda connection: None)
    asyncio.run(scenario())
    host.thread.join(10)
    assert host.connections[0].recv(10) == b""


def test_a_handshake_never_blocks(host):
    with Handshake(host.path, "kvp") as handshake:
        assert handshake.start()
        assert handshake.finish() is None
        host.answer(host.grant)
        host.thread.join(10)
        channel = handshake.finish()
    channel.close()


def test_a_full_queue_of_connections_is_not_an_error(tmp_path):
    path = str(tmp_path / "sock")
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listening.bind(path)
        listening.listen(0)
        started = [stack.enter_context(Handshake(path, "kvp")).start() for _ in range(5)]
        assert started[0]
        assert not started[-1]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b'{"hvring": 1}', "'open' is missing"),
        (b'{"hvring": 1, "open": ["kvp"]}', "'open' is missing"),
        (b'{"hvring": 1, "open": ""}', "'open' is missing"),
        (b'{"hvring": 1, "open": "kvp", "wait": 1}', "'wait' is not"),
        (b'{"open": "kvp"}', "version of the endpoint is None"),
    ],
)
def test_a_bad_request_is_named(data, complaint):
    with pytest.raises(EndpointError, match=complaint):
        OpenRequest.decode(data)


def test_datagrams_survive_the_round_trip():
    for request in (OpenRequest("kvp"), OpenRequest("vss", wait=True)):
        assert OpenRequest.decode(request.encode()) == request
    reply = OfferReply(KVP.class_guid, KVP.instance_guid, RING)
    assert OfferReply.decode(reply.encode()) == reply


def test_unknown_keys_are_ignored():
    assert OpenRequest.decode(b'{"hvring": 1, "open": "kvp", "color": "red"}') == OpenRequest("kvp")


def test_a_process_without_room_for_descriptors_does_not_blame_the_host(host):
    host.answer(host.grant)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Handshake(host.path, "kvp") as handshake:
        assert handshake.start()
        host.thread.join(10)
        spare = os.dup(0)
        os.close(spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (spare + 1, hard))
        try:
            with pytest.raises(EndpointUnavailableError, match="this process has no room"):
                handshake.finish()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
