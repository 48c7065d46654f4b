# SPDX-License-Identifier: Apache-2.0
"""Locking a pool file against every program that shares it (PROTOCOL §4.4.5).

The in-tree daemon takes a POSIX record lock, cloud-init takes ``flock``; neither sees the other, so
both are taken here. The record lock is an "open file description" lock: it excludes POSIX locks, but
unlike them it also works between threads and is not lost when another descriptor of the file is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from hvring.errors import EffectError

#: A struct flock of the whole file for each kind of lock; the process id must be 0 for this family of locks.
_WHOLE_FILE: Final = {
    kind: struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0)
    for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
}


class LockedError(EffectError):
    """Another program has locked the pool file: the same attempt may work a moment later."""


@contextmanager
def locked(fd: int, *, exclusive: bool) -> Iterator[None]:
    """Hold both locks of an open file, as :func:`lock` takes them."""
    lock(fd, exclusive=exclusive)
    try:
        yield
    finally:
        unlock(fd)


def lock(fd: int, *, exclusive: bool) -> None:
    """Take both locks of an open file, until :func:`unlock`; LockedError at once if another program has one of them.

    An exclusive lock needs a descriptor open for writing, a shared one for reading.
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        _record_lock(fd, fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK)
    except OSError as problem:
        unlock(fd)
        if problem.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise LockedError("the pool file is locked by another program") from problem


def unlock(fd: int) -> None:
    """Let both locks go; harmless without them."""
    _record_lock(fd, fcntl.F_UNLCK)
    fcntl.flock(fd, fcntl.LOCK_UN)


def is_alone(fd: int) -> bool:
    """Whether nobody else has the file open now; False, too, where that cannot be known.

    The kernel gives a write lease to the only one who has a file open.
    """
    try:
        # Should somebody come in the moment until the lease is given back, the signal must be one that does nothing.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True


def _record_lock(fd: int, kind: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _WHOLE_FILE[kind])
