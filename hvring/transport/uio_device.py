# SPDX-License-Identifier: Apache-2.0
"""Any userspace I/O device of Linux: wait for its interrupts, map its memory (PROTOCOL §1.6, §1.8)."""

from __future__ import annotations

import errno
import mmap
import os
import select
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple

from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFaultError,
    DeviceUnavailableError,
    NodeMissingError,
    NodePermissionError,
)

_COUNT: Final = struct.Struct("=i")


class UioMap(NamedTuple):
    """One of a device's memory regions; ``size`` in bytes."""

    name: str
    size: int
    offset: int


class UioDevice:
    """``/dev/uioN``, opened for reading and writing. Nothing here is about VMBus.

    ``maps``: what the device says can be mapped. Raises NodeMissingError, NodePermissionError,
    DeviceBusyError, DeviceFaultError.
    """

    def __init__(self, path: str | os.PathLike[str], *, sysfs: str | os.PathLike[str] = "/sys") -> None:
        self.path: Final = os.fspath(path)
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _refused(self.path, error) from error
        self.maps: Final = tuple(_maps(f"{os.fspath(sysfs)}/class/uio/{os.path.basename(self.path)}/maps"))

    def fileno(self) -> int:
        """Readable when an interrupt came since the last :meth:`read`, or when the device is gone."""
        return self._fd

    def read(self) -> int | None:
        """The device's total count of interrupts (it wraps at 2**31), or None if none came. Never blocks.

        Raises DeviceUnavailableError when the device is gone.
        """
        try:
            count: int = _COUNT.unpack(os.read(self._fd, 4))[0]
        except BlockingIOError:
            return None
        except OSError as error:
            raise _gone(self.path, error) from error
        return count

    def wait(self, timeout: float | None = None) -> int | None:
        """As :meth:`read`, but sleeps up to ``timeout`` seconds (None: for ever) for an interrupt."""
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        poll.poll(None if timeout is None else timeout * 1000)
        return self.read()

    def control(self, value: int) -> None:
        """Write to the device, which most drivers take as: 1 enables interrupts, 0 disables them.

        With uio_hv_generic 1 also signals the host. Raises DeviceUnavailableError when the device is gone.
        """
        try:
            os.write(self._fd, _COUNT.pack(value))
        except OSError as error:
            raise _gone(self.path, error) from error

    def map(self, number: int = 0) -> mmap.mmap:
        """Map one of ``maps``, shared. IndexError if there is no such map; DeviceFaultError if it cannot be mapped.

        A mapping keeps the device open until it is closed, also after :meth:`close`.
        """
        size = self.maps[number].size
        try:  # uio chooses the map by a multiple of the page size
            return mmap.mmap(self._fd, size, mmap.MAP_SHARED, offset=number * mmap.PAGESIZE)
        except OSError as error:
            raise DeviceFaultError(
                f"map {number} of {self.path} cannot be mapped: {error.strerror}"
            ) from error

    def detach(self) -> int:
        """Hand the descriptor over to the caller; this object is closed then."""
        descriptor, self._fd = self._fd, -1
        return descriptor

    def close(self) -> None:
        """May be called twice."""
        if self._fd >= 0:
            os.close(self.detach())

    def __enter__(self) -> UioDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _maps(path: str) -> Iterator[UioMap]:
    for n in range(5):  # MAX_UIO_MAPS
        try:
            name, size, offset = (_read(f"{path}/map{n}/{key}") for key in ("name", "size", "offset"))
            numbers = int(size, 0), int(offset, 0)
        except (OSError, ValueError):
            break
        yield UioMap(name, *numbers)


def _read(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()


def _gone(path: str, error: OSError) -> DeviceUnavailableError:
    return DeviceUnavailableError(
        f"{path} was taken away ({error.strerror}): close it, and open it again when it is back"
    )


def _refused(path: str, error: OSError) -> DeviceError:
    if error.errno in (errno.EACCES, errno.EPERM):
        return NodePermissionError(f"no permission for {path}: run as root, or let a udev rule give it away")
    if error.errno in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        return NodeMissingError(f"{path} is not there: bind the device with `hvring bind`")
    if error.errno == errno.EBUSY:
        return DeviceBusyError(f"{path} is in use: stop the program that has it open")
    return DeviceFaultError(
        f"{path} cannot be opened: {error.strerror}; the kernel's log may say more (dmesg)"
    )
