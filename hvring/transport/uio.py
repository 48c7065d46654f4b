# SPDX-License-Identifier: Apache-2.0
"""Channels over uio_hv_generic (PROTOCOL §1.6-1.9): from a name to an open :class:`~hvring.Channel`.

The plain device is :class:`UioDevice`. One mapping of the rings is made, so a packet that wraps is copied in two
parts. Sub-channels, which none of the six services has, are opened by :mod:`hvring.transport.subchannels`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

from hvring.channel import Channel, MonitorDoorbell, UioDoorbell
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceUnavailableError,
    NodeMissingError,
    NotBoundError,
)
from hvring.transport.sysfs import OPENED, UIO_DRIVER, Bus, Device
from hvring.transport.uevents import Uevents, wait_async
from hvring.transport.uevents import wait as wait_for_news
from hvring.transport.uio_device import UioDevice, UioMap

__all__ = ["UioDevice", "UioMap", "open_channel", "open_channel_async", "open_now"]

RECHECK_EVERY: Final = 1.0  # seconds; only where the kernel changes the interrupt mask itself
_INTERRUPT_MASK: Final = 8
_TYPES: Final = (6, 11)


def open_channel(
    service: str,
    *,
    timeout: float | None = 5.0,
    wait: bool = False,
    bus: Bus | None = None,
    types: Iterable[int] | None = _TYPES,
) -> Channel:
    """Open the channel of a service name, class GUID or instance GUID; the device must be bound (``hvring bind``).

    A uio node that comes late is waited for, up to ``timeout`` seconds (None: for ever); with ``wait`` also a device
    that is not offered, not bound or in use. ``types``: packet types to deliver, as of :class:`~hvring.Channel`.
    Raises :class:`~hvring.transport.errors.DeviceError` and its kinds.
    """
    bus = bus or Bus()
    deadline = None if timeout is None else time.monotonic() + timeout
    with ExitStack() as stack:
        news: Uevents | None = None
        while True:
            try:
                return open_now(service, bus=bus, types=types)
            except DeviceUnavailableError as error:
                if not _worth_waiting(error, wait):
                    raise
                if news is None:  # and look again: the event may have come before the socket
                    news = stack.enter_context(Uevents())
                elif not wait_for_news(news, deadline):
                    raise


async def open_channel_async(
    service: str,
    *,
    timeout: float | None = 5.0,
    wait: bool = False,
    bus: Bus | None = None,
    types: Iterable[int] | None = _TYPES,
    prepare: Callable[[], object] | None = None,
) -> Channel:
    """As :func:`open_channel`, for asyncio; may be cancelled at any time.

    ``prepare`` is called before each attempt and may raise what an attempt may: to bind a device that came back.
    """
    import asyncio

    bus = bus or Bus()
    last: DeviceUnavailableError | None = None
    try:
        with ExitStack() as stack:
            async with asyncio.timeout(timeout):
                news: Uevents | None = None
                while True:
                    try:
                        if prepare is not None:
                            prepare()
                        return open_now(service, bus=bus, types=types)
                    except DeviceUnavailableError as error:
                        if not _worth_waiting(error, wait):
                            raise
                        last = error
                    if news is None:
                        news = stack.enter_context(Uevents())
                    else:
                        await wait_async(news)
    except TimeoutError:
        assert last is not None
        raise last from None


def open_now(service: str, *, bus: Bus, types: Iterable[int] | None = _TYPES) -> Channel:
    """One attempt, without waiting."""
    device = bus.find(service)
    if device.driver != UIO_DRIVER:
        owner = f"belongs to the driver {device.driver}" if device.driver else "belongs to no driver"
        raise NotBoundError(f"{device.title} {owner}: bind it with `hvring bind {service}`")
    node = bus.node(device)
    if node is None or not device.maps or not os.path.exists(node):
        raise NodeMissingError(
            f"{device.title} is bound but has no {node or 'uio node'}: is devtmpfs mounted there?"
        )
    if device.state == OPENED:
        raise _in_use(device, node)
    with ExitStack() as undo:
        uio = undo.enter_context(UioDevice(node, sysfs=bus.sysfs))
        try:
            # the kernel lets two programs share the rings, which breaks both
            fcntl.flock(uio, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise _in_use(device, node) from None
        now = bus.read(device.instance)
        if now is None or now.uio != device.uio:  # the number may have gone to another device meanwhile
            raise NodeMissingError(
                f"{device.title} went away while it was opened: wait for it, open it again"
            )
        channel = _channel(device, uio, undo, types)
        undo.pop_all()
        return channel


def _channel(device: Device, uio: UioDevice, undo: ExitStack, types: Iterable[int] | None) -> Channel:
    """Over an open device, which it takes over. What must be undone if something fails is pushed on ``undo``."""
    maps: list[mmap.mmap] = []

    def unmap() -> None:  # a mapping left behind would keep the channel open
        for memory in maps:
            memory.close()

    def mapped(number: int) -> mmap.mmap:
        maps.append(uio.map(number))
        return maps[-1]

    undo.callback(unmap)
    if not uio.maps:
        raise NodeMissingError(f"{uio.path} has lost its maps: wait for the device, open it again")
    rings = mapped(0)
    size = len(rings) // 2
    page = os.sysconf("SC_PAGE_SIZE")
    if size % page or size < 2 * page:
        raise DeviceError(f"{uio.path} has rings of {size} bytes, no number of pages: is it {UIO_DRIVER}'s?")
    # drivers before b15b7d2a1b09 mask at open and at every interrupt, and can lose a wake-up by it (PROTOCOL 1.4)
    kernel_masks = struct.unpack_from("<I", rings, size + _INTERRUPT_MASK)[0] != 0
    doorbell: UioDoorbell
    if device.monitor_id is None or device.relid is None:
        doorbell = UioDoorbell(uio.fileno())
    else:
        doorbell = MonitorDoorbell(uio.fileno(), mapped(1), mapped(2), device.relid, device.monitor_id)
    uio.detach()
    try:
        return Channel(
            rings,
            ring_size=size,
            tx_offset=0,
            rx_offset=size,
            doorbell=doorbell,
            control_size=page,
            types=types,
            name=device.title,
            on_close=unmap,
            recheck_every=RECHECK_EVERY if kernel_masks else 0.0,
        )
    except BaseException:
        del doorbell  # it holds the descriptor and the pages, and the traceback would hold it
        raise


def _worth_waiting(error: DeviceUnavailableError, wait: bool) -> bool:
    return wait or isinstance(error, NodeMissingError)


def _in_use(device: Device, node: str) -> DeviceBusyError:
    return DeviceBusyError(
        f"another program has {device.title} open: stop it (`fuser -v {node}` names it); if there is none, the device "
        "was unbound while open, and only a restart of this machine helps"
    )
