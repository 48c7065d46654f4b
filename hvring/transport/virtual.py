# SPDX-License-Identifier: Apache-2.0
"""The virtual endpoint: channels over a Unix socket, a memfd and two eventfds, without Hyper-V.

A guest calls :func:`connect` or :func:`connect_async`; a host of its own loop steps a :class:`Handshake`.
The host's half is an :class:`Offer`: memory and doorbells that were prepared as a kernel prepares them, to
be sent to a guest.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import selectors
import socket
import stat
import struct
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Final

from hvring.channel import Channel, EventfdDoorbell
from hvring.errors import EndpointError, RingCorruptError
from hvring.ring import DoubleMapping
from hvring.transport.endpoint import (
    DESCRIPTORS,
    EndpointUnavailableError,
    OfferReply,
    OpenRequest,
    close_all,
    receive_offer,
)
from hvring.vmbus import BY_CLASS, BY_NAME, DeviceFacts
from hvring.vmbus.guids import normal_guid

if TYPE_CHECKING:
    import asyncio

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_FIRST_PAUSE: Final = 0.02  # seconds between attempts of a caller that waits; doubles up to the last
_LAST_PAUSE: Final = 1.0


def connect(
    path: str | os.PathLike[str],
    service: str,
    *,
    timeout: float | None = 10.0,
    wait: bool = False,
    mirrored: bool = False,
) -> Channel:
    """Open a channel to the virtual host at ``path``; blocks at most ``timeout`` seconds (None: for ever).

    ``service`` is a name or a class GUID. With ``wait`` the call lasts until a host listens there, offers
    the service and has it free. ``mirrored`` maps each ring's data twice where that is possible, so that what
    ``Channel.claim`` and ``Channel.views`` show is never a copy.

    Raises EndpointError, of it EndpointUnavailableError where a later attempt may succeed.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    last = _timed_out(path, service)
    for pause in _pauses():
        try:
            with Handshake(path, service, wait=wait, mirrored=mirrored) as handshake:
                channel = None
                if handshake.start():
                    _await_readable(handshake, deadline)
                    channel = handshake.finish()
                if channel is not None:
                    return channel
        except EndpointUnavailableError as error:
            if not wait:
                raise
            last = error
        left = pause if deadline is None else deadline - time.monotonic()
        if left <= 0:
            break
        time.sleep(min(pause, left))
    raise last


async def connect_async(
    path: str | os.PathLike[str],
    service: str,
    *,
    timeout: float | None = 10.0,
    wait: bool = False,
    mirrored: bool = False,
) -> Channel:
    """As :func:`connect`, for asyncio; may be cancelled at any time."""
    import asyncio

    last: EndpointError = _timed_out(path, service)
    try:
        async with asyncio.timeout(timeout):
            for pause in _pauses():
                try:
                    with Handshake(path, service, wait=wait, mirrored=mirrored) as handshake:
                        channel = None
                        if handshake.start():
                            await _readable(asyncio.get_running_loop(), handshake)
                            channel = handshake.finish()
                        if channel is not None:
                            return channel
                except EndpointUnavailableError as error:
                    if not wait:
                        raise
                    last = error
                await asyncio.sleep(pause)
    except TimeoutError:
        pass
    raise last


class Handshake:
    """One attempt to open a channel, for callers with their own loop; no method waits.

    ``start()`` once; then, whenever ``fileno()`` is readable, ``finish()`` until it returns the channel;
    ``close()`` at the end in any case (the channel keeps what it needs).
    """

    def __init__(
        self, path: str | os.PathLike[str], service: str, *, wait: bool = False, mirrored: bool = False
    ) -> None:
        self.path = os.fspath(path)
        self.service = service
        self._wait = wait
        self._mirrored = mirrored
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """The descriptor that is readable when there is an answer."""
        return self._socket.fileno()

    def start(self) -> bool:
        """Connect and ask. False: the host's queue is full, make a new attempt a little later."""
        try:
            self._socket.connect(self.path)
            self._socket.send(OpenRequest(self.service, self._wait).encode())
        except BlockingIOError:
            return False
        except OSError as error:
            raise _unreachable(self.path, error) from error
        return True

    def finish(self) -> Channel | None:
        """The open channel, or None while the host has not answered. Raises EndpointError."""
        try:
            data, descriptors = receive_offer(self._socket)
        except BlockingIOError:
            return None
        except OSError as error:
            raise _unreachable(self.path, error) from error
        try:
            if not data:
                raise EndpointUnavailableError(
                    f"the host at {self.path} closed the connection without an answer"
                )
            reply = OfferReply.decode(data)
            _check_class(self.service, reply)
            return _open(reply, descriptors, self._socket, self._mirrored)
        finally:
            close_all(descriptors)

    def close(self) -> None:
        """The end of this attempt, with or without a channel; may be called twice."""
        self._socket.close()

    def __enter__(self) -> Handshake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Offer:
    """What a host hands out for one opening of a service: ring memory, sealed and prepared, and two eventfds.

    ``memory`` holds the guest-to-host ring, then the host-to-guest ring, each of ``ring_size`` bytes.
    ``guest_event`` is written by the guest and ``host_event`` by the host. Both feature bits are set, as a
    kernel sets them at open, and the guest-to-host ring is masked until the host arms it (PROTOCOL §5.1).
    """

    def __init__(self, facts: DeviceFacts, ring_size: int | None = None) -> None:
        self.facts = facts
        self.ring_size = facts.ring_size if ring_size is None else ring_size
        self._descriptors: list[int] = []
        try:
            memory = os.memfd_create(f"hvring-{facts.name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            self._descriptors.append(memory)
            os.ftruncate(memory, 2 * self.ring_size)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            self._descriptors.append(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            # Flags are shared with the guest, who may want to block on what it is woken by.
            self._descriptors.append(os.eventfd(0, os.EFD_CLOEXEC))
            self.memory = mmap.mmap(memory, 2 * self.ring_size)
        except OSError as error:
            self.close()
            raise EndpointError(f"no memory or descriptors for a channel: {error.strerror}") from error
        _memory, self.guest_event, self.host_event = self._descriptors
        for ring in (0, self.ring_size):
            struct.pack_into("<I", self.memory, ring + 64, 1)  # feature_bits (PROTOCOL §2.1)
        struct.pack_into("<I", self.memory, 8, 1)  # interrupt_mask of the ring that the host reads

    def answer(self, connection: socket.socket) -> None:
        """Send the offer over the guest's connection. Raises OSError when the guest is gone."""
        reply = OfferReply(self.facts.class_guid, self.facts.instance_guid, self.ring_size)
        socket.send_fds(connection, [reply.encode()], self._descriptors, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Close the descriptors; the memory lives as long as somebody uses it. May be called twice."""
        close_all(self._descriptors)


def _open(
    reply: OfferReply, descriptors: list[int], connection: socket.socket, mirrored: bool = False
) -> Channel:
    """A channel over what the host sent; takes copies of what it needs."""
    if len(descriptors) != DESCRIPTORS:
        raise EndpointError(f"the host sent {len(descriptors)} descriptors, {DESCRIPTORS} belong to an offer")
    memory: mmap.mmap | DoubleMapping = _map(descriptors[0], 2 * reply.ring_size)
    stride = reply.ring_size
    if mirrored:
        try:
            memory = DoubleMapping(descriptors[0], reply.ring_size)
            stride = memory.stride
        except (OSError, ValueError):  # sizes that are no pages, say: packets that wrap are copied
            mirrored = False
    for descriptor in descriptors[1:]:
        _check_event(descriptor)
    _check_counter(descriptors[2])
    own: list[int] = []
    try:
        for descriptor in (*descriptors[1:], connection.fileno()):
            own.append(os.dup(descriptor))
    except OSError as error:
        close_all(own)
        raise EndpointError(f"no descriptors for a channel: {error.strerror}") from error
    signal, wake, lifeline = own  # the channel's from here on, also when it refuses broken rings
    try:
        return Channel(
            memory,
            ring_size=reply.ring_size,
            tx_offset=0,
            rx_offset=stride,
            mirrored=mirrored,
            doorbell=EventfdDoorbell(signal, wake),
            lifeline=lifeline,
            name=BY_CLASS[reply.class_guid].name if reply.class_guid in BY_CLASS else reply.class_guid,
        )
    except RingCorruptError:
        if isinstance(memory, mmap.mmap):
            memory.close()  # the error's traceback would keep it for a while
        raise


def _map(descriptor: int, length: int) -> mmap.mmap:
    """Map ``length`` bytes of the host's memory, never more than the file was seen to have.

    What could be taken away later would end this process with SIGBUS, all services with it. So the memory must be
    sealed against shrinking, by the host or now by us, and of ordinary pages: huge ones can run out when a hole
    is made and filled again. A file of any other kind is refused: reading it could wait for ever, or fail.
    """
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise EndpointError("the first descriptor of the offer is not memory")
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
    except OSError:
        pass
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
    except OSError:
        raise EndpointError("the first descriptor of the offer is not memory but a file") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise EndpointError(
            "the offer's memory can be taken away again, which would end this process: it must be sealed against "
            "shrinking (memfd_create with MFD_ALLOW_SEALING, ftruncate, fcntl F_ADD_SEALS with F_SEAL_SHRINK)"
        )
    if os.fstatvfs(descriptor).f_bsize != mmap.PAGESIZE:
        raise EndpointError("the offer's memory is made of huge pages, which can run out: use ordinary ones")
    size = os.fstat(descriptor).st_size  # after the seals: it stays
    if size < length:
        raise EndpointError(f"the offer's memory has {size} bytes, two rings need {length}")
    try:
        return mmap.mmap(descriptor, length)
    except (OSError, ValueError) as error:
        raise EndpointError(f"the offer's memory cannot be mapped: {error}") from error


def _check_event(descriptor: int) -> None:
    try:
        kind = os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # no /proc: nothing to check with
        return
    if kind != "anon_inode:[eventfd]":
        raise EndpointError(f"a descriptor of the offer is not an eventfd but {kind}")


def _check_counter(descriptor: int) -> None:
    """Refuse an eventfd made with EFD_SEMAPHORE, of which a read takes 1, so that it could stay readable for ever."""
    bell = EventfdDoorbell(descriptor, descriptor, closefd=False)
    for _ in range(8):  # a host that takes counts away meanwhile makes it look like one, but not for long
        bell.signal()
        bell.signal()
        if bell.take() >= 2:
            break
    else:
        raise EndpointError(
            "the eventfd that is to wake this side was made with EFD_SEMAPHORE: make it without"
        )
    # What the host may have rung before is in what was taken: look once for nothing instead.
    bell.signal()


def _check_class(service: str, reply: OfferReply) -> None:
    expected = BY_NAME[service].class_guid if service in BY_NAME else normal_guid(service)
    if reply.class_guid != expected:
        raise EndpointError(f"asked for {service}, the host offers the class {reply.class_guid}")


def _unreachable(path: str, error: OSError) -> EndpointError:
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return EndpointUnavailableError(
            f"no virtual host at {path}: start one with `hvring host --socket {path}`"
        )
    if error.errno in (errno.EPIPE, errno.ECONNRESET):
        return EndpointUnavailableError(f"the host at {path} closed the connection")
    return EndpointError(f"cannot attach to {path}: {error.strerror or error}")


def _timed_out(path: str | os.PathLike[str], service: str) -> EndpointUnavailableError:
    return EndpointUnavailableError(f"the host at {os.fspath(path)} did not open {service} in time")


def _await_readable(handshake: Handshake, deadline: float | None) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(handshake, selectors.EVENT_READ)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not selector.select(left):
            raise _timed_out(handshake.path, handshake.service)


async def _readable(loop: asyncio.AbstractEventLoop, handshake: Handshake) -> None:
    answered = loop.create_future()

    def wake() -> None:
        loop.remove_reader(handshake.fileno())
        if not answered.done():  # cancelled in the same round of the loop
            answered.set_result(None)

    loop.add_reader(handshake.fileno(), wake)
    try:
        await answered
    finally:
        if not answered.done() or answered.cancelled():
            loop.remove_reader(handshake.fileno())


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE
    while True:
        yield pause
        pause = min(2 * pause, _LAST_PAUSE)
