# SPDX-License-Identifier: Apache-2.0
"""hvring's own host on the lab's devices: its verbs and its checks, over QEMU's VMBus instead of shared memory."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import NamedTuple

from device import Device
from frames import Frame, take

from hvring.host import Event, EventKind, Host, NotReadyError, Timing
from hvring.host.session import Session
from hvring.host.testing import Threaded


class Received(NamedTuple):
    """A packet as hvring's host wants it."""

    type: int
    flags: int
    transaction_id: int
    payload: bytes


class FrameLink:
    """The host's end of one channel; QEMU keeps the ring, waits for room and rings the doorbell."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self.open = True
        self.waiting = False  # the ring is full
        self._transport = transport

    def send(self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0) -> None:
        """Hand the packet to QEMU, where it waits for room if it must."""
        if not self.open:
            raise NotReadyError("the guest is gone")
        self._transport.write(Frame("P", payload, transaction_id, bool(flags & 1), packet_type).encode())

    async def send_when_room(
        self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0
    ) -> None:
        self.send(payload, transaction_id=transaction_id, packet_type=packet_type, flags=flags)

    def unread(self) -> bool:
        return self.waiting

    def silent(self) -> bool:
        """QEMU reads nothing that was not signalled: such an answer does not come."""
        return False

    def look(self) -> None:
        """There is nothing else to look at."""

    def close(self) -> None:
        self.open = False


class _Line(asyncio.Protocol):
    """One connection of QEMU's, and on it one opening of the channel after the other."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.ended = asyncio.Event()
        self._bytes = bytearray()
        self._link: FrameLink | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        for frame in take(self._bytes):
            self._one(frame)

    def connection_lost(self, error: Exception | None) -> None:
        self._close("QEMU ended the connection")
        self.ended.set()

    def _one(self, frame: Frame) -> None:
        if frame.kind == "O":
            self._close("the guest opened the channel anew")
            self._link = FrameLink(self._transport)
            self.session.tell(EventKind.ATTACHED)
            self.session.opened(self._link)
        elif frame.kind == "C":
            self._close("the guest closed the channel")
        elif frame.kind == "P" and self._link:
            packet = Received(frame.packet_type, int(frame.completion), frame.number, frame.payload)
            self.session.received(packet)
        elif frame.kind in "WG" and self._link:
            self._link.waiting = frame.kind == "W"
        elif frame.kind == "D":
            self.session.tell(
                EventKind.FAILED, f"QEMU dropped a packet: {frame.payload.decode(errors='replace')}"
            )

    def _close(self, why: str) -> None:
        if self._link:
            self._link = None
            self.session.closed(why)
            self.session.tell(EventKind.DETACHED, why)


class LabHost(Host, Threaded):
    """Takes the devices over while it is entered; whoever has the channels open in the guest is the guest.

    Hears no needless signals, which QEMU does not pass on.
    """

    def __init__(
        self,
        devices: Mapping[str, Device],
        *,
        timing: Timing | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(timing=timing, on_event=on_event)
        self._devices = devices
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> LabHost:
        for name, device in self._devices.items():
            listener = device.hand_over()
            listener.setblocking(False)
            self._tasks.append(asyncio.create_task(self._attend(self.sessions[name], listener)))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Thaws the guest if need be. ``Device.connect`` takes a device back."""
        await self.thaw()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for session in self.sessions.values():
            await session.finished()
        self.reports.close()

    async def _attend(self, session: Session, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            connection, _ = await loop.sock_accept(listener)
            transport, line = await loop.connect_accepted_socket(lambda: _Line(session), connection)
            try:
                await line.ended.wait()
            finally:
                transport.abort()
                await line.ended.wait()
