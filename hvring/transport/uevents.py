# SPDX-License-Identifier: Apache-2.0
"""The kernel's own word that a device came or went.

sysfs makes no inotify events for what the kernel adds and removes there (seen on 6.12), so this listens where udev
listens: to uevents on a netlink socket. Uevents reach only network namespaces of the initial user, so whoever waits
also looks every few seconds.
"""

from __future__ import annotations

import socket
import time
from types import TracebackType
from typing import Final, Protocol

from hvring.transport.errors import DeviceError

LOOK_EVERY: Final = 3.0  # seconds
_NETLINK_KOBJECT_UEVENT: Final = 15
_FROM_KERNEL: Final = 1  # multicast group; udev's own events are group 2
_MAX_EVENT: Final = 1 << 14


class News(Protocol):
    """Something to wait on: readable when it is worth looking again."""

    def fileno(self) -> int:
        """For select and event loops."""

    def drain(self) -> bool:
        """Take all that has come; True: some of it may concern VMBus or uio. Never blocks."""

    def close(self) -> None:
        """May be called twice."""


class Uevents:
    """The kernel's uevents of the subsystems vmbus and uio. Raises DeviceError if there is no such socket here."""

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                _NETLINK_KOBJECT_UEVENT,
            )
            self._socket.bind((0, _FROM_KERNEL))
        except OSError as error:
            raise DeviceError(f"cannot listen to the kernel's uevents: {error.strerror}") from error

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> bool:
        news = False
        while True:
            try:
                data, sender = self._socket.recvfrom(_MAX_EVENT)
            except BlockingIOError:
                return news
            except OSError:  # ENOBUFS: some were lost, so look
                news = True
                continue
            if sender[0] == 0:  # nobody but the kernel
                news |= b"\0SUBSYSTEM=vmbus\0" in data or b"\0SUBSYSTEM=uio\0" in data

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Uevents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def wait(news: News, deadline: float | None) -> bool:
    """Sleep until there is news or it is time to look anyway; False once ``deadline`` (time.monotonic) passed."""
    import select

    end = time.monotonic() + LOOK_EVERY
    poll = select.poll()
    poll.register(news.fileno(), select.POLLIN)
    while True:
        now = time.monotonic()
        if deadline is not None and now >= deadline:
            return False
        until = end if deadline is None else min(end, deadline)
        if now >= end or (poll.poll(max(0.0, until - now) * 1000) and news.drain()):
            return True


async def wait_async(news: News) -> None:
    """As :func:`wait`, without a deadline, on the running loop."""
    import asyncio

    loop = asyncio.get_running_loop()
    came = loop.create_future()

    def look() -> None:
        if news.drain() and not came.done():
            came.set_result(None)

    loop.add_reader(news.fileno(), look)
    try:
        await asyncio.wait([came], timeout=LOOK_EVERY)
    finally:
        loop.remove_reader(news.fileno())
        came.cancel()
