# SPDX-License-Identifier: Apache-2.0
"""Serving over hv_utils' character devices ``/dev/vmbus/hv_kvp``, ``hv_vss`` and ``hv_fcopy`` (PROTOCOL §10).

There the kernel's own driver keeps the channel, negotiates, and hands one decoded message after the other to the only
process that may have the device open. So a :class:`UtilsChannel` is shaped like a :class:`~hvring.Channel`, but it
brings messages instead of packets, and the kernel's patience is 30 seconds.
"""

from __future__ import annotations

import errno
import os
import select
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any, Final, Protocol

from hvring.errors import ChannelClosedError, ChannelRescindedError, MessageError
from hvring.guest.holders import holders, names, stop_advice
from hvring.ic.hv_utils import DIALECTS, Dialect
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceFaultError,
    NodeMissingError,
    NodePermissionError,
    NotBoundError,
    WrongNameError,
)
from hvring.transport.sysfs import UIO_DRIVER, UTILS_DRIVER, Bus, Device
from hvring.transport.waiting import opened, opened_async
from hvring.vmbus import BY_NAME

__all__ = ["DeviceFile", "NodeFile", "UtilsChannel", "open_channel", "open_channel_async", "open_now"]

_READ_SIZE: Final = 16384  # more than two pages, of which no message has more
_GONE: Final = select.POLLHUP | select.POLLERR | select.POLLNVAL
# What the kernel answers from the moment on that its driver leaves.
_GOING: Final = (errno.EBADF, errno.ENODEV, errno.ENXIO, errno.ENOENT)


class DeviceFile(Protocol):
    """What is needed of the open device. ``read`` blocks, whatever the flags are; ``poll`` never does."""

    def fileno(self) -> int:
        """For select and event loops."""

    def poll(self) -> int:
        """The poll bits of reading, now."""

    def read(self, size: int, /) -> bytes:
        """One whole message. OSError."""

    def write(self, data: bytes, /) -> int:
        """One whole message. OSError."""

    def close(self) -> None:
        """May be called twice."""


class NodeFile:
    """The device at ``path``. Not inherited by programs that are started: it ends with its last copy only."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def fileno(self) -> int:
        return self._descriptor

    def poll(self) -> int:
        ready = self._poll.poll(0)
        return ready[0][1] if ready else 0

    def read(self, size: int, /) -> bytes:
        return os.read(self._descriptor, size)

    def write(self, data: bytes, /) -> int:
        return os.write(self._descriptor, data)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class UtilsChannel:
    """One device, registered: :meth:`recv` a message, :meth:`answer` it. For one thread or one event loop at a time.

    Takes ``file`` over. Raises DeviceFaultError where the kernel does not register this side, ChannelRescindedError
    where it is giving the device up.
    """

    def __init__(
        self, file: DeviceFile, service: str, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.service: Final = service
        self.name: Final = f"{service} by hv_utils"
        self._file = file
        self._dialect: Dialect = DIALECTS[service]
        self._monotonic = monotonic
        self._asked: Any = None  # the message that is to be answered
        self._answer_by: float | None = None
        self._counts = dict.fromkeys(("received", "answered", "late", "refused"), 0)
        self.closed = False
        try:
            #: What the kernel said of itself, such as the version "3.1".
            self.greeting: Final = self._register()
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Readable while a message waits, and when the kernel gives the device up; level triggered."""
        return self._file.fileno()

    def recv(self) -> Any | None:
        """The next message, of :mod:`hvring.ic`, or None when there is none now. Never blocks.

        If the last one was not answered, that is too late then. Raises ChannelRescindedError, ChannelClosedError.
        """
        if not self.has_arrived():
            return None
        if self._asked is not None:
            self._give_up()
        try:
            data = self._file.read(_READ_SIZE)
        except (InterruptedError, BlockingIOError):
            return None
        except OSError as error:
            raise self._failed("read from", error) from error
        if not data:
            raise ChannelRescindedError(f"the kernel ended {self.name}")
        self._counts["received"] += 1
        self._asked = self._dialect.decode(data)
        self._answer_by = self._monotonic() + self._dialect.patience(self._asked)
        return self._asked

    def answer(self, status: int, message: Any = None) -> bool:
        """Answer the last message: a status and, with status 0, what was asked for.

        False: it was too late, and nobody hears it. Raises DeviceFaultError where the kernel does not take it (then
        undo what was begun, and open the device anew), ChannelRescindedError, ChannelClosedError, and ValueError for an
        answer that does not go with what was asked, or where nothing was.
        """
        if self._asked is None:
            raise ValueError(f"nothing is to be answered on {self.name}")
        data = self._dialect.encode(self._asked, status, message)
        # There are no ids: the kernel would take a late answer for that to the request which it has out now.
        if self.has_arrived():
            self._give_up()
            return False
        self._asked = self._answer_by = None
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed("answer on", error) from error
        self._counts["answered"] += 1
        return True

    @property
    def answer_by(self) -> float | None:
        """When (of the monotonic clock) the last message must be answered; None when it is."""
        return self._answer_by

    def has_arrived(self) -> bool:
        """Whether a message waits. Raises ChannelRescindedError, ChannelClosedError."""
        if self.closed:
            raise ChannelClosedError(f"{self.name} was closed on this side")
        bits = self._file.poll()
        if bits & _GONE:
            # The kernel's driver waits for this side to close, and whoever unbinds it does.
            raise ChannelRescindedError(f"the kernel gives {self.name} up")
        return bool(bits & select.POLLIN)

    def wait(self, timeout: float | None = None) -> bool:
        """Sleep until a message waits: True; False when ``timeout`` seconds passed. Raises as :meth:`recv`."""
        if self.has_arrived():
            return True
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        poll.poll(None if timeout is None else max(0.0, timeout) * 1000)
        return self.has_arrived()

    def stats(self) -> dict[str, int]:
        """Messages ``received`` and ``answered``; answers that were too ``late``, and what the kernel ``refused``."""
        return dict(self._counts)

    def close(self) -> None:
        """The kernel answers what is open with E_FAIL. May be called twice."""
        self.closed = True
        self._file.close()

    def __enter__(self) -> UtilsChannel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _register(self) -> str:
        try:
            self._file.write(self._dialect.REGISTRATION)
            # It is there at once; a kernel that does not answer would keep the reader.
            answer = self._file.read(_READ_SIZE) if self.has_arrived() else b""
            return self._dialect.registered(answer)
        except OSError as error:
            raise self._failed("register for", error) from error
        except MessageError as error:
            raise DeviceFaultError(f"{self.name}: {error}") from error

    def _give_up(self) -> None:
        self._counts["late"] += 1
        self._asked = self._answer_by = None

    def _failed(self, what: str, error: OSError) -> Exception:
        if error.errno in _GOING:
            return ChannelRescindedError(f"the kernel gives {self.name} up")
        self._counts["refused"] += 1
        return DeviceFaultError(f"cannot {what} {self.name}: {error.strerror or error}")


def open_channel(
    service: str, *, timeout: float | None = 5.0, wait: bool = False, bus: Bus | None = None
) -> UtilsChannel:
    """Open the device of a service that hv_utils has: kvp, vss, and fcopy on kernels before 6.10.

    A node that comes late is waited for, up to ``timeout`` seconds (None: for ever); with ``wait`` also one that
    somebody else has open. Raises :class:`~hvring.transport.errors.DeviceError` and its kinds.
    """
    return opened(partial(open_now, service, bus=bus or Bus()), timeout=timeout, wait=wait)


async def open_channel_async(
    service: str, *, timeout: float | None = 5.0, wait: bool = False, bus: Bus | None = None
) -> UtilsChannel:
    """As :func:`open_channel`, for asyncio; may be cancelled at any time."""
    return await opened_async(partial(open_now, service, bus=bus or Bus()), timeout=timeout, wait=wait)


def open_now(service: str, *, bus: Bus) -> UtilsChannel:
    """One attempt, without waiting. Raises DeviceError."""
    facts = BY_NAME.get(service)
    if facts is None or not facts.node:
        served = ", ".join(sorted(DIALECTS))
        raise WrongNameError(
            f"hv_utils hands nothing of {service} to programs, only {served}: bind it to serve it"
        )
    node = bus.utils_node(service)
    try:
        return UtilsChannel(NodeFile(node), service)
    except ChannelRescindedError:
        raise _going(node) from None
    except OSError as error:
        raise _not_opened(error, service, node, bus) from error


def _not_opened(error: OSError, service: str, node: str, bus: Bus) -> Exception:
    match error.errno:
        case errno.EBUSY:
            return _busy(service, node)
        case errno.EACCES | errno.EPERM:
            return NodePermissionError(
                f"no permission for {node}: run as root, or give it away with a udev rule"
            )
        case errno.ENOENT:
            return _missing(bus.find(service), service, node)
        case number if number in _GOING:
            return _going(node)
    return DeviceFaultError(f"cannot open {node}: {error.strerror or error}")


def _going(node: str) -> NodeMissingError:
    return NodeMissingError(f"{node} is going away, as its driver does: wait for it")


def _busy(service: str, node: str) -> DeviceBusyError:
    found = holders({node, BY_NAME[service].node})
    if not found:
        return DeviceBusyError(f"another program has {node} open: stop it (root sees which: `hvring doctor`)")
    return DeviceBusyError(f"{names(found)} has {node} open: {stop_advice(found)}")


def _missing(device: Device, service: str, node: str) -> NodeMissingError | NotBoundError:
    if device.driver == UTILS_DRIVER:
        return NodeMissingError(
            f"{UTILS_DRIVER} has {service}, but there is no {node}: is devtmpfs mounted there?"
        )
    if device.driver == UIO_DRIVER:
        return NotBoundError(f"{service} is bound to {UIO_DRIVER}: `hvring unbind {service}` gives it back")
    return NotBoundError(
        f"no driver has {service}: load {UTILS_DRIVER}, or, where that does not take it, `hvring bind {service}`"
    )
