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
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hvring.errors import EffectBusyError

_LONGEST_NAP = 0.02


@contextmanager
def locked(fd: int, *, exclusive: bool, patience: float) -> Iterator[None]:
    """Hold both locks of an open file; EffectBusyError if another program keeps one for longer than ``patience``.

    An exclusive lock needs a descriptor open for writing, a shared one for reading.
    """
    give_up_at = time.monotonic() + patience
    mode = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    _retry(lambda: fcntl.flock(fd, mode | fcntl.LOCK_NB), give_up_at)
    try:
        kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        _retry(lambda: _record_lock(fd, kind), give_up_at)
        try:
            yield
        finally:
            _record_lock(fd, fcntl.F_UNLCK)
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _record_lock(fd: int, kind: int) -> None:
    # struct flock of the whole file; the process id must be 0 for this family of locks.
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, os.SEEK_SET, 0, 0, 0))


def _retry(attempt: Callable[[], object], give_up_at: float) -> None:
    # The kernel has no lock with a time limit, and whoever may read the file may lock it for ever.
    nap = 0.0005
    while True:
        try:
            attempt()
            return
        except OSError as problem:
            if problem.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= give_up_at:
            raise EffectBusyError("the pool file is locked by another program")
        time.sleep(nap)
        nap = min(2 * nap, _LONGEST_NAP)
