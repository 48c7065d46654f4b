# SPDX-License-Identifier: Apache-2.0
"""What open() gives to user space: the four calls of hv_utils' files, with their errors (PROTOCOL §10.2)."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hv_utils_model.device import Device


class KernelBug(Exception):
    """The kernel ran into a BUG.  The writer is dead, and so is its file."""


class Blocks(Exception):
    """A read that waits in the kernel until a message comes, O_NONBLOCK or not."""


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


class File:
    """One open descriptor.  Messages lie in a socket pair, so that select, epoll and asyncio see them."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._end, self._kernels = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.unread: int | None = None  # the length of the message that waits
        self.closed = False
        self.failures: dict[str, deque[int]] = {"read": deque(), "write": deque(), "poll": deque()}
        self.pretended: deque[int] = deque()

    # ------------------------------------------------------------------------- user space

    def fileno(self) -> int:
        return self._end.fileno()

    def poll(self) -> int:
        """Bits of poll(2) as they are now, of POLLIN asked for."""
        self._may_fail("poll")
        if self.closed:
            return select.POLLNVAL
        if self.pretended:
            return self.pretended.popleft()
        if self._device.is_leaving:
            return select.POLLERR | select.POLLHUP
        return 0 if self.unread is None else select.POLLIN

    def read(self, n: int) -> bytes:
        """A whole message; EINVAL, and it stays, when it is longer than ``n``."""
        if self.closed or self._device.is_leaving:
            raise error(errno.EBADF)
        self._may_fail("read")
        if self.unread is None:
            self._device.blocked_reads += 1
            raise Blocks(self._device.name)
        if self.unread > n:
            raise error(errno.EINVAL)
        data = self.take()
        self._device.was_read()
        return data

    def write(self, data: bytes) -> int:
        """All of it or an error."""
        if self.closed or self._device.is_leaving:
            raise error(errno.EBADF)
        self._may_fail("write")
        try:
            self._device.written(bytes(data))
        except KernelBug:
            self._device.bugs += 1
            self.close()
            raise
        return len(data)

    def close(self) -> None:
        """As the last close of the descriptor, or the death of its holder."""
        if not self.closed:
            self.closed = True
            self._end.close()
            self._kernels.close()
            self._device.released()

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------- the kernel

    def put(self, message: bytes) -> None:
        self.unread = len(message)
        self._kernels.send(message)

    def take(self) -> bytes:
        self.unread = None
        return self._end.recv(1 << 16, socket.MSG_DONTWAIT)

    def hang_up(self) -> None:
        self._kernels.close()

    def _may_fail(self, call: str) -> None:
        if self.failures[call]:
            raise error(self.failures[call].popleft())
