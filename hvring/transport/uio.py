# SPDX-License-Identifier: Apache-2.0
"""Channels over uio_hv_generic (PROTOCOL §1.6-1.9): from a name to an open :class:`~hvring.Channel`.

The plain device is :class:`UioDevice`. One mapping of the rings is made, so a packet that wraps is copied in two
parts. Sub-channels, which none of the six services has, are opened by :mod:`hvring.transport.subchannels`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Final

from hvring.channel import Channel, MonitorDoorbell, UioDoorbell
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceFaultError,
    NodeMissingError,
    NotBoundError,
)
from hvring.transport.sysfs import OPENED, UIO_DRIVER, Bus, Device
from hvring.transport.uio_channel import channel_over
from hvring.transport.uio_device import UioDevice, UioMap
from hvring.transport.waiting import opened, opened_async

__all__ = ["UioDevice", "UioMap", "open_channel", "open_channel_async", "open_now"]

_TYPES: Final = (6, 11)
_RINGS, _INTERRUPT_PAGE, _MONITOR_PAGE = 0, 1, 2


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
    Raises :class:`~hvring.transport.errors.DeviceError` and its kinds; of those, a
    :class:`~hvring.transport.errors.DeviceUnavailableError` may pass by itself.
    """
    bus = bus or Bus()
    return opened(partial(open_now, service, bus=bus, types=types), timeout=timeout, wait=wait)


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

    ``prepare`` is called before each attempt and may raise what an attempt may: to bind a device that came back. What
    it returns is awaited if it can be.
    """
    bus = bus or Bus()
    attempt = partial(open_now, service, bus=bus, types=types)
    return await opened_async(attempt, timeout=timeout, wait=wait, prepare=prepare)


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
            # The kernel lets two programs share the rings, which breaks both.
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
    monitored = device.monitor_id is not None and device.relid is not None
    if monitored and len(uio.maps) <= _MONITOR_PAGE:
        raise DeviceFaultError(f"{uio.path} has no monitor page: is it {UIO_DRIVER}'s?")

    def make_doorbell(_: int) -> UioDoorbell:
        if device.monitor_id is None or device.relid is None:
            return UioDoorbell(uio.fileno())
        pages = mapped(_INTERRUPT_PAGE), mapped(_MONITOR_PAGE)
        try:
            return MonitorDoorbell(uio.fileno(), *pages, device.relid, device.monitor_id)
        except ValueError as error:  # the host chose these numbers
            raise DeviceFaultError(f"{device.title} cannot be signalled: {error}") from error

    return channel_over(
        uio, mapped(_RINGS), make_doorbell, what=uio.path, name=device.title, types=types, unmap=unmap
    )


def _in_use(device: Device, node: str) -> DeviceBusyError:
    return DeviceBusyError(
        f"another program has {device.title} open: stop it (`fuser -v {node}` names it); if there is none, the device "
        "was unbound while open, and only a restart of this machine helps"
    )
