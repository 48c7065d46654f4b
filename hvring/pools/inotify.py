# SPDX-License-Identifier: Apache-2.0
"""Linux' inotify, which Python does not have: folders in which names of interest change."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from typing import Final

from hvring.errors import EffectError

MODIFY: Final = 0x2
CLOSE_WRITE: Final = 0x8
_MOVED_FROM: Final = 0x40
_MOVED_TO: Final = 0x80
_CREATE: Final = 0x100
_DELETE: Final = 0x200
_DELETE_SELF: Final = 0x400
_MOVE_SELF: Final = 0x800
OVERFLOW: Final = 0x4000
_ONLYDIR: Final = 0x1000000
_WANTED: Final = (
    MODIFY | CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _DELETE_SELF | _MOVE_SELF | _ONLYDIR
)

_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_BUFFER: Final = 65536
_HINTS: Final = {
    errno.EMFILE: "this user has too many inotify instances (fs.inotify.max_user_instances)",
    errno.ENOSPC: "this user watches too much already (fs.inotify.max_user_watches)",
}


class Inotify:
    """One descriptor, which gets readable when something changes in one of the folders."""

    def __init__(self) -> None:
        """Raises EffectError."""
        import ctypes

        self._libc = ctypes.CDLL(None, use_errno=True)
        self._errno = ctypes.get_errno
        self._watches: dict[int, str] = {}
        self._fd = -1
        self._fd = self._checked(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))

    def fileno(self) -> int:
        """For select, epoll or asyncio."""
        return self._fd

    def follow(self, folders: Iterable[str]) -> None:
        """Watch what these names mean now, and nothing else.  Raises EffectError, FileNotFoundError."""
        now: dict[int, str] = {}
        for folder in folders:
            # The same folder has the same number again, and loses no event by it.
            now[self._checked(self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _WANTED))] = folder
        for watch in self._watches.keys() - now.keys():
            self._libc.inotify_rm_watch(self._fd, watch)  # harmless for one that is gone
        self._watches = now

    def read(self) -> Iterator[tuple[str, int]]:
        """(name in a folder, mask) of all that happened, without waiting; "" stands for a folder itself."""
        while True:
            try:
                raw = os.read(self._fd, _BUFFER)
            except BlockingIOError:
                return
            at = 0
            while at < len(raw):
                _, mask, _, length = _EVENT.unpack_from(raw, at)
                at += _EVENT.size
                yield os.fsdecode(raw[at : at + length].partition(b"\0")[0]), mask
                at += length

    def close(self) -> None:
        """May be called twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        self.close()

    def _checked(self, result: int) -> int:
        if result < 0:
            number = self._errno()
            if number in (errno.ENOENT, errno.ENOTDIR):
                raise FileNotFoundError(number, os.strerror(number))
            raise EffectError(f"cannot watch for changes: {_HINTS.get(number, os.strerror(number))}")
        return result
