# SPDX-License-Identifier: Apache-2.0
"""The kernel's own word that a device came or went.

sysfs makes no inotify events for what the kernel adds and removes there (seen on 6.12), so this listens where udev
listens: to uevents on a netlink socket. Uevents reach only network namespaces of the initial user: elsewhere, and for
what makes no events, whoever waits also looks every few seconds.
"""

from __future__ import annotations

import errno
import socket
import time
from types import TracebackType
from typing import Final, Protocol

from hvring.transport.errors import DeviceFaultError

LOOK_EVERY: Final = 3.0  # seconds
LOOK_RARELY: Final = 60.0  # seconds, where the kernel says so itself
_ALL_USERS: Final = ["0", "0", "4294967295"]
_NETLINK_KOBJECT_UEVENT: Final = 15
_FROM_KERNEL: Final = 1  # multicast group; udev's own events are group 2
_MAX_EVENT: Final = 1 << 14
_AT_ONCE: Final = 256  # events taken in one go; a host can make them faster than they are read


_MARKS: Final = (b"\0SUBSYSTEM=vmbus\0", b"\0SUBSYSTEM=uio\0", b"\0DEVNAME=vmbus/hv_")


class Notices(Protocol):
    """Something to wait on: readable when it is worth looking again."""

    def fileno(self) -> int:
        """For select and event loops."""

    def drain(self) -> bool:
        """Take all that has come; True: some of it may concern us. Never blocks."""

    def close(self) -> None:
        """May be called twice."""


class Uevents:
    """The kernel's uevents of VMBus, uio and hv_utils' devices. Raises DeviceFaultError if there is no such socket."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                _NETLINK_KOBJECT_UEVENT,
            )
            self._socket.bind((0, _FROM_KERNEL))
        except OSError as error:
            self.close()
            raise DeviceFaultError(f"cannot listen to the kernel's uevents: {error.strerror}") from error

    def fileno(self) -> int:
        return -1 if self._socket is None else self._socket.fileno()

    def drain(self) -> bool:
        news = False
        for _ in range(_AT_ONCE):
            if self._socket is None:
                break
            try:
                data, sender = self._socket.recvfrom(_MAX_EVENT)
            except BlockingIOError:
                break
            except OSError as error:
                news = True
                if error.errno == errno.ENOBUFS:  # some were lost, so look
                    continue
                break
            if sender[0] == 0:  # nobody but the kernel
                news |= any(mark in data for mark in _MARKS)
        return news

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def __enter__(self) -> Uevents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def come_here(proc: str = "/proc") -> bool:
    """Whether uevents come to this process: as a rule, where it is in the namespace of the initial user."""
    try:
        with open(f"{proc}/self/uid_map", encoding="ascii") as file:
            return file.read().split() == _ALL_USERS
    except OSError:
        return False


def wait(notices: Notices | None, deadline: float | None, every: float | None = None) -> bool:
    """Sleep until there is a notice or it is time to look anyway; False once ``deadline`` (time.monotonic) passed.

    ``notices``: None where nothing can be listened to.  ``every``: seconds; None: LOOK_EVERY.
    """
    import select

    end = time.monotonic() + (LOOK_EVERY if every is None else every)
    poll = select.poll()
    if notices is not None:
        poll.register(notices.fileno(), select.POLLIN)
    while True:
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return False
        until = end if deadline is None else min(end, deadline)
        if now >= end or (
            poll.poll(max(0.0, until - now) * 1000) and notices is not None and notices.drain()
        ):
            return True


async def wait_async(notices: Notices | None, every: float | None = None) -> None:
    """As :func:`wait`, without a deadline, on the running loop."""
    import asyncio

    seconds = LOOK_EVERY if every is None else every
    if notices is None:
        await asyncio.sleep(seconds)
        return
    loop = asyncio.get_running_loop()
    came = loop.create_future()

    def look() -> None:
        if notices.drain() and not came.done():
            came.set_result(None)

    loop.add_reader(notices.fileno(), look)
    try:
        await asyncio.wait([came], timeout=seconds)
    finally:
        loop.remove_reader(notices.fileno())
        came.cancel()
