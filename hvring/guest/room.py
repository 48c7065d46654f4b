# SPDX-License-Identifier: Apache-2.0
"""How much a file may take: what must stay free on its file system, and the quota of a directory.

All this may wait for a file system for ever: it is called in a process that may (:mod:`hvring.guest.file_worker`).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from dataclasses import dataclass, field
from typing import Final

OVER_QUOTA: Final = (
    -1
)  #: stand where an errno would: no error of the kernel's, but a setting of the administrator's
BELOW_RESERVE: Final = -2

#: Files and directories below the one that has a quota; more are not counted, and nothing is copied there.
MOST_COUNTED: Final = 100_000

_COUNTING: Final = 5.0  # seconds after which a directory is one that nobody counts
_SHARE: Final = 10  # times as long as counting took is a count good for: a host cannot have it all the time
_REMEMBERED: Final = 64
_SLICE: Final = 256 << 20  # bytes that are asked for at once
_PATIENCE: Final = 2.0  # seconds after which what is not allocated yet comes as it comes
_KEEP_SIZE: Final = 1  # FALLOC_FL_KEEP_SIZE: the size of the file stays what came of it
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(OSError):
    """There is room, but not for the host; ``errno`` is :data:`OVER_QUOTA` or :data:`BELOW_RESERVE`."""


def check_space(folder: int, coming: int, reserve: int, percent: float) -> None:
    """Raises OSError with ENOSPC, or NoRoomError, unless ``coming`` bytes fit and leave free what is to stay free.

    What the file system keeps for root is nothing that a host could use up.
    """
    try:
        space = os.fstatvfs(folder)
    except OSError:
        return
    # No blocks at all: a file system without a figure (ramfs, some in user space), not a full one.
    if not space.f_blocks:
        return
    unit = space.f_frsize or space.f_bsize
    left = space.f_bavail * unit - coming
    if coming and left < 0:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    to_stay = max(reserve, int(space.f_blocks * unit * percent / 100))
    if left < to_stay:
        raise NoRoomError(BELOW_RESERVE, f"{max(left, 0)} bytes would stay free, {to_stay} must")


def allocate(fd: int, size: int) -> None:
    """Take room for ``size`` bytes now, as far as the file system does that soon.  Raises OSError if there is none."""
    import ctypes  # only here, for what it costs in memory

    # Not posix_fallocate: where the file system cannot, that writes into every block.
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        fallocate = libc.fallocate64
    except AttributeError:
        return
    fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    until = time.monotonic() + _PATIENCE
    for at in range(0, size, _SLICE):
        if fallocate(fd, _KEEP_SIZE, at, min(_SLICE, size - at)):
            error = ctypes.get_errno()
            if error in _NO_ROOM:
                raise OSError(error, os.strerror(error))
            return
        if time.monotonic() > until:
            return


@dataclass(slots=True)
class Quota:
    """What one file may still take of a directory's: ``left`` bytes."""

    left: int
    usage: Usage
    which: tuple[int, int]

    def check(self, size: int) -> None:
        """Raises NoRoomError for a file that is too large."""
        if size > self.left:
            raise NoRoomError(
                OVER_QUOTA, f"{size} bytes, of the directory's quota {max(self.left, 0)} are left"
            )

    def take(self, more: int) -> None:
        """So many bytes more are below the directory now."""
        self.usage.add(self.which, more)


@dataclass(slots=True)
class _Count:
    size: int
    good_until: float
    problem: NoRoomError | None = None  # why there is no size


@dataclass(slots=True)
class Usage:
    """How much lies below directories, counted now and then, and what came since."""

    _known: dict[tuple[int, int], _Count] = field(default_factory=dict)

    def quota(self, folder: int, most: int, replaced: int) -> Quota:
        """For a file that comes in the place of ``replaced`` bytes.  Raises OSError if they cannot be counted."""
        status = os.fstat(folder)
        which = status.st_dev, status.st_ino
        count = self._known.get(which)
        if count is None or time.monotonic() >= count.good_until:
            count = self._count(folder, which)
        if count.problem is not None:
            raise NoRoomError(*count.problem.args)
        return Quota(most - count.size + replaced, self, which)

    def _count(self, folder: int, which: tuple[int, int]) -> _Count:
        began, size, problem = time.monotonic(), 0, None
        try:
            size = count_below(folder, which[0])
        except NoRoomError as error:
            problem = error
        ended = time.monotonic()
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        count = self._known[which] = _Count(size, ended + _SHARE * (ended - began), problem)
        return count

    def add(self, which: tuple[int, int], more: int) -> None:
        """What a count that is good for some time has to know."""
        if which in self._known:
            self._known[which].size += more


def count_below(folder: int, device: int) -> int:
    """Bytes of the files below a directory, on its own file system; what nobody here may read is left out.

    Raises NoRoomError for more than :data:`MOST_COUNTED` files and directories, or what takes too long.
    """
    size, seen, waiting = 0, 0, ["."]
    until = time.monotonic() + _COUNTING
    while waiting:
        path = waiting.pop()
        try:
            here = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            continue
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    seen += 1
                    if seen > MOST_COUNTED or (seen % 1024 == 0 and time.monotonic() > until):
                        what = f"{seen} files and more, which are not counted for a quota"
                        raise NoRoomError(OVER_QUOTA, what)
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except (FileNotFoundError, PermissionError):
                        continue
                    if stat.S_ISDIR(status.st_mode):
                        if status.st_dev == device:
                            waiting.append(f"{path}/{entry.name}")
                    elif stat.S_ISREG(status.st_mode):
                        size += status.st_size
        finally:
            os.close(here)
    return size
