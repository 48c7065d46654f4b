# SPDX-License-Identifier: Apache-2.0
"""All channels of a device in sysfs, and sub-channels opened beside their primary (PROTOCOL §1.2, §1.6, §1.8).

A device may have more channels than the one that ``open_channel`` opens: a network adapter one for each processor, none
of the six services any. Its host offers them when it was asked to over the primary, and uio_hv_generic opens each as it
comes, while the primary is open. A sub-channel has rings of its own, which only ``channels/<relid>/ring`` maps;
interrupts and signals go through the device's one uio file. This costs: an interrupt of any channel wakes the readers
of all, and a signal without a monitor bit goes to the host for all.

Tried in tests/vm with one sub-channel without a monitor bit, by Linux's driver and QEMU as the host. Not tried: Hyper-V
itself, a network adapter's protocol, monitor bits, a host that takes a sub-channel back.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO

from hvring.channel import Channel, MonitorDoorbell, UioDoorbell
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFaultError,
    DeviceNotFoundError,
    DevicePermissionError,
    DeviceUnavailableError,
    NodeMissingError,
    NotBoundError,
)
from hvring.transport.sysfs import NO_MONITOR, OPENED, UIO_DRIVER, Bus, Device, read_number
from hvring.transport.uio_channel import INTERRUPT_MASK, channel_over
from hvring.transport.uio_device import UioDevice


@dataclass(frozen=True, slots=True)
class DeviceChannel:
    """One channel as sysfs shows it. ``index``: 0 for the primary. ``rings``: bytes of both its rings together, None
    while the device is not bound to uio_hv_generic; kernels before 6.16 say 4 MiB whatever the primary's size is, which
    is right for sub-channels. ``cpu``: the one that its interrupts go to. ``monitor_id``: None if signalling takes a
    system call."""

    relid: int
    index: int
    cpu: int | None
    monitor_id: int | None
    rings: int | None
    path: str


def channels(bus: Bus, device: Device) -> list[DeviceChannel]:
    """The device's channels now, the primary first; empty if the device is gone."""
    root = f"{bus.path(device.instance)}/channels"
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    read = (_read(f"{root}/{name}", int(name)) for name in names if name.isdecimal())
    return sorted((c for c in read if c is not None), key=lambda c: (c.index, c.relid))


def map_rings(channel: DeviceChannel) -> mmap.mmap:
    """Map both rings of an open channel, shared: the guest-to-host ring, then the other. OSError: ENODEV if closed.

    The kernel takes this mapping away when the device is unbound or the host takes the channel back; whoever touches it
    then is ended by SIGBUS (a mapping of the uio file stays). It does not keep the channel open: let it go before the
    last user of the uio file does, because the rings of sub-channels are freed then.
    """
    file = os.open(f"{channel.path}/ring", os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(file, os.fstat(file).st_size, mmap.MAP_SHARED)
    finally:
        os.close(file)


def open_subchannel(
    name: str, relid: int, *, bus: Bus | None = None, types: Iterable[int] | None = (6, 11)
) -> Channel:
    """Open a sub-channel of a device (service name, class or instance GUID) whose primary is open, in any process.

    Signals through the monitor page if the channel has a bit there; else through the uio file, which reaches
    sub-channels from kernel 6.16 on and is tried here: DeviceError if it does not. Keeps the primary open. Raises
    :class:`~hvring.transport.errors.DeviceError` and its kinds.
    """
    bus = bus or Bus()
    device = bus.find(name)
    node = bus.node(device)
    if device.driver != UIO_DRIVER or node is None:
        raise NotBoundError(f"{device.title} is not bound to {UIO_DRIVER}: bind it with `hvring bind {name}`")
    if device.state != OPENED:  # opening the uio file would open the primary, for nobody
        raise DeviceUnavailableError(
            f"{device.title} is not open: open it, and ask the host for sub-channels"
        )
    found = {channel.relid: channel for channel in channels(bus, device)}
    channel = found.get(relid)
    if channel is None or channel.index == 0:
        raise DeviceNotFoundError(
            f"{device.title} has no sub-channel {relid}; it has: "
            + (", ".join(str(c.relid) for c in found.values() if c.index) or "none")
        )
    what = f"sub-channel {relid} of {device.title}"
    with ExitStack() as undo:
        uio = undo.enter_context(UioDevice(node, sysfs=bus.sysfs))
        maps = [_rings(channel, what)]

        def unmap() -> None:
            for memory in maps:
                memory.close()

        undo.callback(unmap)
        opened = _channel(f"{device.title}/{relid}", channel, what, uio, maps, unmap, types)
        undo.pop_all()
        return opened


def _read(path: str, relid: int) -> DeviceChannel | None:
    index = read_number(f"{path}/subchannel_id")
    if index is None:  # it went away while it was read
        return None
    monitor_id = read_number(f"{path}/monitor_id")
    try:
        rings = os.stat(f"{path}/ring").st_size
    except FileNotFoundError:
        rings = None
    return DeviceChannel(
        relid=relid,
        index=index,
        cpu=read_number(f"{path}/cpu"),
        monitor_id=None if monitor_id == NO_MONITOR else monitor_id,
        rings=rings,
        path=path,
    )


def _rings(channel: DeviceChannel, what: str) -> mmap.mmap:
    """Both rings. The mapping has a descriptor that keeps the file's lock: two programs in one ring break it."""
    try:
        with FileIO(f"{channel.path}/ring", "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return mmap.mmap(file.fileno(), os.fstat(file.fileno()).st_size, mmap.MAP_SHARED)
    except BlockingIOError:
        raise DeviceBusyError(f"another program has {what} open: stop it") from None
    except PermissionError:
        raise DevicePermissionError(f"no permission for {channel.path}/ring: run as root") from None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ENODEV):
            raise NodeMissingError(f"{what} is not open (yet): {UIO_DRIVER} opens it") from None
        raise DeviceFaultError(f"the rings of {what} cannot be mapped: {error}") from error


def _channel(
    name: str,
    channel: DeviceChannel,
    what: str,
    uio: UioDevice,
    maps: list[mmap.mmap],
    unmap: Callable[[], None],
    types: Iterable[int] | None,
) -> Channel:
    """Over an open uio file, which it takes over; ``maps`` has the rings and gets what else ``unmap`` is to close."""
    rings = maps[0]

    def make_doorbell(ring_size: int) -> UioDoorbell:
        if channel.monitor_id is None:
            _try_signal(uio, rings, ring_size + INTERRUPT_MASK, what)
            return UioDoorbell(uio.fileno())
        try:
            for number in (1, 2):
                maps.append(uio.map(number))
            return MonitorDoorbell(uio.fileno(), maps[1], maps[2], channel.relid, channel.monitor_id)
        except (IndexError, ValueError) as error:  # the host chose these numbers
            raise DeviceFaultError(f"{what} cannot be signalled: {error}") from error

    return channel_over(uio, rings, make_doorbell, what=what, name=name, types=types, unmap=unmap)


def _try_signal(uio: UioDevice, rings: mmap.mmap, mask_at: int, what: str) -> None:
    """A kernel whose signal reaches sub-channels unmasks them by it too (d062463edf17)."""
    before = rings[mask_at : mask_at + 4]
    struct.pack_into("<I", rings, mask_at, 1)
    uio.control(1)
    if struct.unpack_from("<I", rings, mask_at)[0]:
        rings[mask_at : mask_at + 4] = before
        raise DeviceError(f"this kernel signals only primary channels, {what} not: 6.16 or newer is needed")
