# SPDX-License-Identifier: Apache-2.0
"""A guest that answers by the book, or, where a test wants it, wrongly on purpose."""

from __future__ import annotations

import asyncio
import mmap
import os
import select
import socket
from collections.abc import Callable, Iterable

from hvring.channel import Channel
from hvring.errors import ChannelRescindedError
from hvring.ic import HEADER, MessageType, Request, Status, Version, negotiate, vss
from hvring.ic import fcopy as fc
from hvring.ic import heartbeat as hb
from hvring.ic import kvp as kv
from hvring.ring import Packet, RingConsumer, RingProducer
from hvring.transport.endpoint import OfferReply, OpenRequest, receive_offer
from hvring.transport.virtual import connect_async

OWN_VERSIONS = {
    "shutdown": (Version(3, 2), Version(3, 1), Version(3, 0)),
    "timesync": (Version(4, 0), Version(3, 0)),
    "heartbeat": (Version(3, 0),),
    "kvp": (Version(4, 0),),
    "vss": (Version(5, 0),),
    "fcopy": (Version(1, 1),),
}
FRAMEWORKS = (Version(3, 0), Version(1, 0))

Answer = Callable[[Request], "bytes | None"]


class Book:
    """The right answers, and what the guest made of the requests."""

    def __init__(self, service: str, versions: Iterable[Version] | None = None) -> None:
        self.service = service
        self.versions = tuple(versions or OWN_VERSIONS[service])
        self.requests: list[Request] = []
        self.negotiations = 0
        self.items: dict[int, dict[str, str | int]] = {
            2: {"OSName": "Lab Linux", "FullyQualifiedDomainName": "l2guest"}
        }
        self.files: dict[str, bytearray] = {}
        self.target: str | None = None
        self.completed: list[str] = []
        self.operations: list[int] = []  # of vss and fcopy
        self.status: dict[int, int] = {}  # by operation: fail with this one
        self.application = hb.ApplicationState.HEALTHY

    def answer(self, payload: bytes) -> bytes | None:
        request = Request.parse(payload)
        if request.type == MessageType.NEGOTIATE:
            self.negotiations += 1
            return negotiate.answer(request, FRAMEWORKS, self.versions)[0]
        self.requests.append(request)
        return getattr(self, self.service)(request)

    def shutdown(self, request: Request) -> bytes:
        return request.answer(self.status.get(0, 0))

    def timesync(self, request: Request) -> bytes:
        return request.answer(self.status.get(0, 0))

    def heartbeat(self, request: Request) -> bytes:
        beat = hb.Heartbeat.decode(request.body).next()
        return request.answer(0, hb.Heartbeat(beat.sequence, self.application, beat.rest).encode())

    def kvp(self, request: Request) -> bytes:
        operation, number = kv.header(request.body)
        if operation in self.status:
            return request.answer(self.status[operation])
        pool = self.items.setdefault(number, {})
        if operation == kv.KvpOperation.ENUMERATE:
            index = kv.KvpEnumerate.decode(request.body).index
            if index >= len(pool):
                return request.answer(Status.NO_MORE_ITEMS)
            key, value = list(pool.items())[index]
            return request.answer(0, kv.KvpItem(number, index, key, value, kind(value)).encode())
        if operation == kv.KvpOperation.GET:
            key = kv.KvpGet.decode(request.body).key
            if key not in pool:
                return request.answer(Status.NO_MORE_ITEMS)
            return request.answer(0, kv.KvpValue(number, key, pool[key], kind(pool[key])).encode())
        if operation == kv.KvpOperation.SET:
            item = kv.KvpSet.decode(request.body)
            pool[item.key] = item.value
            return request.answer()
        if operation == kv.KvpOperation.DELETE:
            gone = pool.pop(kv.KvpDelete.decode(request.body).key, None)
            return request.answer(Status.NO_MORE_ITEMS if gone is None else 0)
        return request.answer(Status.NOT_SUPPORTED)

    def vss(self, request: Request) -> bytes:
        operation = request.body[0]
        self.operations.append(operation)
        status = self.status.get(operation, 0)
        if operation == vss.VssOperation.HOT_BACKUP:
            return request.answer(status, vss.VssFlags(operation, vss.NO_AUTO_RECOVERY).encode())
        return request.answer(status)

    def fcopy(self, request: Request) -> bytes:
        operation = fc.operation(request.body)
        self.operations.append(operation)
        if operation in self.status:
            return request.answer(self.status[operation])
        if operation == fc.FcopyOperation.START:
            start = fc.StartCopy.decode(request.body)
            self.target = f"{start.path}/{start.name}"
            self.files[self.target] = bytearray()
        elif operation == fc.FcopyOperation.WRITE:
            chunk = fc.WriteChunk.decode(request.body)
            data = self.files[self.target]
            data[chunk.offset : chunk.offset + len(chunk.data)] = chunk.data
        elif operation == fc.FcopyOperation.COMPLETE:
            self.completed.append(self.target)
            self.target = None
        elif self.target is not None:
            del self.files[self.target]
            self.target = None
        return request.answer()


def kind(value: str | int) -> int:
    return kv.ValueType.SZ if isinstance(value, str) else kv.ValueType.U32


class Guest:
    """Attaches, and answers everything from the book on the event loop: ``async with Guest(path, "kvp")``.

    ``twist(payload)`` may change an answer that is not to a negotiation. ``hold`` lists packets, unanswered,
    while it is not None. ``reply`` may be replaced to send answers in another way.
    """

    def __init__(self, path: str, service: str, *, book: Book | None = None, wait: bool = False) -> None:
        self.path, self.service, self.wait = path, service, wait
        self.book = book or Book(service)
        self.twist: Callable[[bytes], bytes | None] | None = None
        self.hold: list[Packet] | None = None
        self.held = asyncio.Event()
        self.ended = asyncio.Event()
        self.channel: Channel
        self.error: BaseException | None = None

    async def __aenter__(self) -> Guest:
        self.channel = await connect_async(self.path, self.service, wait=self.wait)
        asyncio.get_running_loop().add_reader(self.channel.fileno(), self.take)
        self.take()
        return self

    async def __aexit__(self, *_) -> None:
        self.leave()
        if self.error is not None:
            raise self.error

    def leave(self) -> None:
        if not self.channel.closed:
            asyncio.get_running_loop().remove_reader(self.channel.fileno())
            self.channel.close()
        self.ended.set()

    def take(self) -> None:
        try:
            while not self.channel.closed:
                while not self.channel.closed and (packet := self.channel.recv()) is not None:
                    if self.hold is not None:
                        self.hold.append(packet)
                        self.held.set()
                    else:
                        self.handle(packet)
                if self.channel.closed or not self.channel.arm():
                    return
        except ChannelRescindedError:
            self.leave()
        except BaseException as error:
            self.error = error
            self.leave()

    def handle(self, packet: Packet) -> None:
        payload = self.book.answer(packet.payload)
        negotiation = packet.payload[12:14] == MessageType.NEGOTIATE.to_bytes(2, "little")
        if payload is not None and self.twist is not None and not negotiation:
            payload = self.twist(payload)
        if payload is not None:
            self.reply(packet, payload)

    def reply(self, packet: Packet, payload: bytes) -> None:
        self.channel.send(payload, transaction_id=packet.transaction_id)

    def release(self) -> None:
        """Answer what was held, and hold no longer."""
        packets, self.hold = self.hold or [], None
        self.held.clear()
        for packet in packets:
            self.handle(packet)


def put(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    """A twist: these bytes at this offset of the answer."""
    return lambda payload: payload[:offset] + data + payload[offset + len(data) :]


def body(offset: int, data: bytes) -> Callable[[bytes], bytes]:
    """A twist: these bytes at this offset of the answer's body."""
    return put(HEADER + offset, data)


class RawGuest:
    """A guest without scruples: the endpoint's three descriptors, the rings, and nothing done by itself.

    Blocking, for use from a thread or between a test's own awaits.
    """

    def __init__(self, path: str, service: str) -> None:
        self.service = service
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.connection.connect(path)
        self.connection.send(OpenRequest(service).encode())

    def attach(self) -> None:
        """Take the host's answer, which must be there or on its way."""
        self.connection.setblocking(True)
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        poll.poll(10_000)
        data, descriptors = receive_offer(self.connection)
        size = OfferReply.decode(data).ring_size
        self.memory = mmap.mmap(descriptors[0], 2 * size)
        self.descriptors = descriptors
        self.tx = RingProducer(self.memory, 0, size)
        self.rx = RingConsumer(self.memory, size, size)

    async def attach_async(self) -> None:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        loop.add_reader(self.connection, arrived.set)
        await arrived.wait()
        loop.remove_reader(self.connection)
        self.attach()

    def signal(self, count: int = 1) -> None:
        os.eventfd_write(self.descriptors[1], count)

    def send(self, payload: bytes, transaction_id: int = 0, **kwargs: int) -> None:
        """By the rules."""
        if self.tx.send(payload, transaction_id=transaction_id, **kwargs):
            self.signal()

    async def next(self) -> Packet:
        """The host's next packet; armed while waiting."""
        loop = asyncio.get_running_loop()
        while (packet := self.rx.recv()) is None:
            woken = asyncio.Event()
            loop.add_reader(self.descriptors[2], woken.set)
            if not self.rx.arm():
                await woken.wait()
            loop.remove_reader(self.descriptors[2])
            try:
                os.eventfd_read(self.descriptors[2])
            except BlockingIOError:
                pass
        return packet

    async def negotiate(self) -> None:
        packet = await self.next()
        self.send(Book(self.service).answer(packet.payload), packet.transaction_id)

    def leave(self) -> None:
        self.connection.close()
        for descriptor in getattr(self, "descriptors", []):
            os.close(descriptor)
        self.descriptors = []

    async def __aenter__(self) -> RawGuest:
        await self.attach_async()
        return self

    async def __aexit__(self, *_) -> None:
        self.leave()
