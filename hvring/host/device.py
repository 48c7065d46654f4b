# SPDX-License-Identifier: Apache-2.0
"""Devices of any class at the virtual host, for authors of drivers: a coroutine answers what the driver sends."""

from __future__ import annotations

import asyncio
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Final

from hvring.errors import EndpointError, HvringError
from hvring.events import EventKind
from hvring.host.errors import NotReadyError
from hvring.host.link import Packet, PausableLink
from hvring.host.reports import Reports
from hvring.transport.endpoint import checked_ring_size
from hvring.vmbus import BY_CLASS, DeviceFacts
from hvring.vmbus.classes import OTHER_CLASSES
from hvring.vmbus.guids import is_guid, normal_guid
from hvring.vmbus.services import DEFAULT_RING_SIZE

_ENOUGH: Final = 256  # packets that wait for the handler; behind them the driver finds its ring full
_LAST_WORDS: Final = 1.0  # seconds that a handler has to end by itself once the channel is gone


class DeviceChannel:
    """The host's end of one opening of a device, given to its handler.

    ``async for packet in channel`` ends when the driver leaves or the channel is taken back.
    """

    def __init__(self, link: PausableLink) -> None:
        self._link = link
        self._packets: deque[Packet] = deque()
        self._changed = asyncio.Event()
        self._ended: str | None = None

    async def receive(self) -> Packet:
        """The next packet of any type.  Raises NotReadyError at the end."""
        while not self._packets:
            if self._ended is not None:
                raise NotReadyError(self._ended)
            self._changed.clear()
            await self._changed.wait()
        packet = self._packets.popleft()
        if len(self._packets) == _ENOUGH // 2:
            self._link.resume()
        return packet

    async def send(
        self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0
    ) -> None:
        """Put one packet on the ring, as soon as there is room.  Raises NotReadyError, PacketTooLargeError."""
        await self._link.send_when_room(
            payload, transaction_id=transaction_id, packet_type=packet_type, flags=flags
        )

    def __aiter__(self) -> AsyncIterator[Packet]:
        return self._all()

    async def _all(self) -> AsyncIterator[Packet]:
        while True:
            try:
                yield await self.receive()
            except NotReadyError:
                return

    def _received(self, packet: Packet) -> None:
        self._packets.append(packet)
        self._changed.set()
        if len(self._packets) >= _ENOUGH:
            self._link.pause()

    def _end(self, why: str) -> None:
        self._ended = why
        self._changed.set()


Handler = Callable[[DeviceChannel], Awaitable[None]]
"""Serves one opening of a device; when it returns or raises, the channel is taken back."""


async def echo(channel: DeviceChannel) -> None:
    """The simplest handler: everything goes back as it came."""
    async for packet in channel:
        await channel.send(
            packet.payload, transaction_id=packet.transaction_id, packet_type=packet.type, flags=packet.flags
        )


class Device:
    """What stands behind a device that the host offers: runs the handler for whoever opens it."""

    def __init__(self, name: str, handler: Handler, reports: Reports, drop: Callable[[str], None]) -> None:
        self.name = name
        self.link: PausableLink | None = None
        self._handler = handler
        self._reports = reports
        self._drop = drop
        self._channel: DeviceChannel | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> str:
        """``ready`` while a driver is attached, else ``waiting``."""
        return "waiting" if self.link is None else "ready"

    def opened(self, link: PausableLink) -> None:
        """A driver has the channel: start the handler."""
        self.link = link
        self._channel = DeviceChannel(link)
        self._task = asyncio.ensure_future(self._serve(self._channel))

    def closed(self, why: str) -> None:
        """The channel has ended, which the handler sees; does nothing without one."""
        if self.link is None:
            return
        self.link.close()
        self.link = None
        if self._channel is not None:
            self._channel._end(f"{self.name}: {why}")
            self._channel = None

    async def finished(self) -> None:
        """Wait for the handler, which has seen the end; one that does something else meanwhile is cancelled."""
        task, self._task = self._task, None
        if task is not None:
            await asyncio.wait([task], timeout=_LAST_WORDS)
            task.cancel()
            await asyncio.wait([task])

    def received(self, packet: Packet) -> None:
        """Called by the link for every packet."""
        if self._channel is not None:
            self._channel._received(packet)

    def needless(self, count: int) -> None:
        """Called by the link for signals that no rule allows."""
        self._reports.violation(self.name, "signals", f"needless signal, {count} more than the rules allow")

    def broken(self, error: HvringError) -> None:
        """Called by the link when the driver corrupted a ring."""
        self._reports.violation(self.name, "ring", str(error))
        self._drop("the guest corrupted the ring")

    async def _serve(self, channel: DeviceChannel) -> None:
        try:
            await self._handler(channel)
        except NotReadyError:  # the driver left, which the handler need not care about
            pass
        except Exception as error:  # the handler is an embedder's own code
            self._reports.tell(self.name, EventKind.FAILED, f"the device's handler failed: {error!r}")
        if channel is self._channel:
            self._drop("the device's handler ended")


def device_facts(
    class_guid: str, instance: str | None = None, ring_size: int = DEFAULT_RING_SIZE
) -> DeviceFacts:
    """What a guest is told of a device.

    Raises ValueError for what is no GUID, for the class of one of the six services, and for a size that no ring has.
    """
    guid = normal_guid(class_guid)
    own = str(uuid.uuid5(uuid.NAMESPACE_OID, guid)) if instance is None else normal_guid(instance)
    for text in (guid, own):
        if not is_guid(text):
            raise ValueError(f"{text!r} is no GUID")
    if guid in BY_CLASS:
        raise ValueError(
            f"{guid} is the class of the service {BY_CLASS[guid].name}, which this host has itself"
        )
    try:
        checked_ring_size({"ring_size": ring_size})
    except EndpointError as error:
        raise ValueError(str(error)) from None
    title = OTHER_CLASSES.get(guid, guid)
    return DeviceFacts(title, guid, own, title, ring_size)
