# SPDX-License-Identifier: Apache-2.0
"""A hostile guest against the virtual host: random episodes, each from one seed.

``HVRING_FUZZ_SECONDS=600`` makes it long; ``HVRING_FUZZ_SEED=n`` begins with the episode of that seed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import fcntl
import gc
import logging
import mmap
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "hostile"))

from hostile_requests import HEADER_FIELDS, TYPES, spoil
from hostile_wire import Answer, Wire, readable
from scripted_guest import Book

from hvring import ChannelRescindedError, serve
from hvring.errors import HvringError
from hvring.host import Timing, echo
from hvring.host.testing import ThreadedHost, running_host
from hvring.services import Heartbeat
from hvring.transport.endpoint import OfferReply, OpenRequest, close_all, receive_offer
from hvring.transport.virtual import connect

SECONDS = float(os.environ.get("HVRING_FUZZ_SECONDS", "8"))
SEED = int(os.environ.get("HVRING_FUZZ_SEED", "1"))
TIMEOUT = 30.0  # seconds after which the host counts as hanging
WANTED = {"ReplyError", "NotReadyError"}
# Nobody here connects and says nothing: whoever is late with the request was held up by the machine.
SHORT = Timing(answer=0.05, negotiation=0.1, freeze=0.05, open_request=TIMEOUT, heartbeat_interval=0.01)

REQUESTS = (
    b'{"hvring": 1, "open": "kvp"}',
    b'{"hvring": 1, "open": "kvp", "wait": 1}',
    b'{"hvring": 1, "open": "nothing"}',
    b'{"hvring": 1, "open": ""}',
    b'{"hvring": 1, "open": "\\ud800"}',
    b'{"hvring": 2, "open": "kvp"}',
    b'{"hvring": 1}',
    b"{",
    b"[" * 4000,
    b"\xff",
    b"x" * 5000,
)


class HostileGuest:
    """The guest of one service in one episode."""

    def __init__(self, path: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.service = self.chance.choice([name for name in TYPES if name != "heartbeat"])
        self.path = path
        self.lies = self.chance.choice((0.0, 0.05, 0.5))  # how often the ring itself is broken
        self.spoils = self.chance.choice((0.0, 0.3, 1.0))  # how often an answer is
        self.events = self.chance.random() < 0.3
        self.is_wrong = False  # something was certainly said that breaks a rule

    def attach(self) -> tuple[socket.socket, Wire, list[int]]:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.connect(self.path)
        connection.send(OpenRequest(self.service, wait=True).encode())
        assert readable(connection.fileno(), TIMEOUT), "the host does not answer"
        data, descriptors = receive_offer(connection)
        size = OfferReply.decode(data).ring_size
        memory = mmap.mmap(descriptors[0], 2 * size)
        return connection, Wire(memory, size, 0, size, descriptors[1], descriptors[2]), descriptors

    def run(self) -> None:
        connection, wire, descriptors = self.attach()
        try:
            book = Book(self.service)
            end = time.monotonic() + self.chance.choice((0.0, 0.02, 0.1))
            while (left := end - time.monotonic()) > 0:
                answer = wire.wait(time.monotonic() + min(left, 0.01))
                if answer is not None:
                    self.reply(wire, book, answer)
                elif self.chance.random() < 0.2:
                    wire.send(
                        self.chance.randbytes(self.chance.choice((0, 8, 28, 64))), self.chance.getrandbits(64)
                    )
                if self.events and self.chance.random() < 0.3:
                    wire.abuse_events(self.chance, flags=True)
                if self.chance.random() < self.lies:
                    self.lie(wire)
            if self.chance.random() < 0.2:
                connection.send(self.chance.choice(REQUESTS))
        except BrokenPipeError:
            pass  # the host took the channel back
        finally:
            connection.close()
            close_all(descriptors)

    def reply(self, wire: Wire, book: Book, asked: Answer) -> None:
        try:
            payload = book.answer(asked.payload)
        except (HvringError, KeyError, IndexError, ValueError):  # the book knows good requests only
            payload = asked.payload
        negotiation = asked.payload[12:14] == b"\0\0"
        if payload is None or self.chance.random() < 0.05:
            return
        if self.chance.random() < (self.spoils * 0.2 if negotiation else self.spoils):
            payload = spoil(self.chance, self.service, payload)
        kind = 6 if self.chance.random() < 0.95 else self.chance.choice((0, 7, 11, 0xFFFF))
        tid = asked.transaction_id if self.chance.random() < 0.9 else self.chance.getrandbits(64)
        for _ in range(self.chance.choice((1, 1, 1, 1, 2, 20))):
            wire.send(payload, tid, kind, None if self.chance.random() < 0.9 else self.chance.random() < 0.5)

    def lie(self, wire: Wire) -> None:
        match self.chance.randrange(3):
            case 0:
                wire.poke(self.chance)
            case 1:
                wire.flip(self.chance, self.chance.choice((1, 50)))
            case _:
                wire.lie_about_length(self.chance)
        wire.signal()


def knock(path: str, chance: random.Random) -> None:
    """Connections that ask for nonsense, or leave at once; none of them gets to a channel for long."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(path)
        if chance.random() < 0.3:
            socket.send_fds(connection, [chance.choice(REQUESTS)], [0, 1, 2])
        elif chance.random() < 0.9:
            connection.send(chance.choice(REQUESTS))


def verbs(host: ThreadedHost, service: str, chance: random.Random) -> list:
    """What an administrator may want meanwhile."""
    match service:
        case "kvp":
            return [
                host.kvp.set("k", "v"),
                host.kvp.get("k"),
                host.kvp.list(chance.randrange(5)),
                host.kvp.remove("k"),
            ]
        case "fcopy":
            return [host.fcopy.copy(chance.randbytes(20_000), "/tmp", name="f")]
        case "vss":
            return [host.vss.backup()]
        case "shutdown":
            return [host.shutdown.request(force=True), host.renegotiate("shutdown")]
        case _:
            return [host.timesync.sample(), host.timesync.sync(), host.renegotiate("timesync")]


@pytest.fixture
def troubles() -> Iterator[list[str]]:
    """What is logged as an error meanwhile, by whatever part."""
    found: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    yield found
    logging.getLogger().removeHandler(handler)


def honest_guest(path: str) -> None:
    with connect(path, "heartbeat", wait=True) as channel:
        try:
            serve(Heartbeat(), channel)
        except ChannelRescindedError:
            pass


def test_no_guest_can_end_or_hang_a_host(tmp_path, troubles) -> None:
    path = str(tmp_path / "sock")
    with running_host(path, timing=SHORT) as host:
        honest = threading.Thread(target=honest_guest, args=(path,))
        honest.start()
        host.do(host.wait_ready("heartbeat"))
        descriptors = len(os.listdir("/proc/self/fd"))
        end = time.monotonic() + SECONDS
        seed = SEED
        outcomes: set[str] = set()
        # On a busy machine few guests are as quick as these times ask for: go on until some were.
        while time.monotonic() < end or not (outcomes >= WANTED or time.monotonic() > end + TIMEOUT):
            guest = HostileGuest(path, seed)
            try:
                asked = [
                    asyncio.run_coroutine_threadsafe(once_ready(host, guest.service, verb), host.loop)
                    for verb in verbs(host, guest.service, guest.chance)
                ]
                if guest.chance.random() < 0.2:
                    knock(path, guest.chance)
                guest.run()
                host.do(host.wait_detached(guest.service), TIMEOUT)
                outcomes |= {outcome(verb) for verb in asked}
                asked.clear()  # an error keeps the frames that it came through, and those the channel
                assert host.status()["services"]["heartbeat"]["state"] == "ready"
                settled = time.monotonic() + TIMEOUT
                while len(os.listdir("/proc/self/fd")) > descriptors:
                    gc.collect()
                    assert time.monotonic() < settled, f"descriptors stay open: {open_files()}"
                assert troubles == []
            except BaseException as error:
                error.add_note(f"episode {seed}, {guest.service}: HVRING_FUZZ_SEED={seed} begins with it")
                raise
            seed += 1
        host.do(beat(host), TIMEOUT)
        assert [
            v
            for v in host.violations
            if v.service == "heartbeat" and "late" not in v and "no answer" not in v
        ] == []
        assert host.violation_count > 0
        assert outcomes >= WANTED
    honest.join()


def test_no_driver_can_end_or_hang_a_host_that_offers_a_device(tmp_path, troubles) -> None:
    """Rings that lie in every way, to the handler of a device, while the handler answers."""
    path, guid = str(tmp_path / "sock"), "c0ffee00-0000-4000-8000-000000000001"
    with running_host(path, ["heartbeat"], devices={guid: echo}, timing=SHORT) as host:
        honest = threading.Thread(target=honest_guest, args=(path,))
        honest.start()
        host.do(host.wait_ready("heartbeat"))
        for seed in range(60):
            guest = HostileGuest(path, seed)
            guest.service = guid
            connection, wire, descriptors = guest.attach()
            try:
                for _ in range(guest.chance.randrange(40)):
                    wire.send(guest.chance.randbytes(guest.chance.choice((0, 8, 64))), seed)
                    if guest.chance.random() < 0.3:
                        guest.lie(wire)
                    if guest.chance.random() < 0.1:
                        wire.abuse_events(guest.chance, flags=True)
            except BrokenPipeError:
                pass  # the host took the channel back
            finally:
                connection.close()
                close_all(descriptors)
            host.do(host.wait_detached(guid), TIMEOUT)
        host.do(beat(host), TIMEOUT)
        with connect(path, guid) as channel:
            channel.send(b"Hi there")
            assert channel.wait(TIMEOUT)
            packet = channel.recv()
            assert packet is not None
            assert packet.payload == b"Hi there"
        assert troubles == []
        assert host.violation_count > 0
    honest.join()


def open_files() -> list[str]:
    return sorted(str(os.path.realpath(f"/proc/self/fd/{n}")) for n in os.listdir("/proc/self/fd"))


async def once_ready(host: ThreadedHost, service: str, verb: Coroutine[object, object, object]) -> None:
    with suppress(TimeoutError):
        await host.wait_ready(service, timeout=0.05)
    await verb


async def beat(host: ThreadedHost) -> None:
    """One good beat; on a busy machine an earlier one may have been too late for the short timing."""
    before = host.latency["heartbeat"].exchanges
    while host.latency["heartbeat"].exchanges < before + 2:
        await asyncio.sleep(0.01)


def outcome(verb: concurrent.futures.Future) -> str:
    """How a verb ended; only by a result, or by an error that this package raises on purpose."""
    try:
        verb.result(TIMEOUT)
    except HvringError as error:
        return type(error).__name__
    return "result"


def test_a_guest_that_makes_its_eventfd_block_holds_nobody_up(tmp_path) -> None:
    path = str(tmp_path / "sock")
    with running_host(path, ["kvp"]) as host:
        guest = HostileGuest(path, 1)
        guest.service = "kvp"
        connection, wire, descriptors = guest.attach()
        for event in descriptors[1:]:
            fcntl.fcntl(event, fcntl.F_SETFL, fcntl.fcntl(event, fcntl.F_GETFL) & ~os.O_NONBLOCK)
        wire.signal()
        connection.close()
        close_all(descriptors)
        host.do(host.wait_detached("kvp"), TIMEOUT)


@pytest.mark.parametrize("field", HEADER_FIELDS[1:])
def test_a_lie_in_any_header_field_of_an_answer_is_reported(field, tmp_path) -> None:
    """One of each, so that the long run above is known to look for what is really reported."""
    path = str(tmp_path / "sock")
    with running_host(path, ["kvp"], timing=SHORT) as host:
        guest = HostileGuest(path, 1)
        guest.service = "kvp"
        connection, wire, descriptors = guest.attach()
        book = Book("kvp")
        try:
            negotiation = wire.wait(time.monotonic() + TIMEOUT)
            wire.send(book.answer(negotiation.payload), negotiation.transaction_id)
            host.do(host.wait_ready("kvp"), TIMEOUT)
            assert host.violations == []
            verb = asyncio.run_coroutine_threadsafe(host.kvp.get("k"), host.loop)
            asked = wire.wait(time.monotonic() + TIMEOUT)
            offset, size = field
            answer = bytearray(book.answer(asked.payload))
            answer[offset : offset + size] = bytes(255 - byte for byte in answer[offset : offset + size])
            wire.send(bytes(answer), asked.transaction_id)
            outcome(verb)
            assert any(v.request == "GET 'k'" for v in host.violations)
        finally:
            connection.close()
            close_all(descriptors)
