# SPDX-License-Identifier: Apache-2.0
"""The temporary names of files on their way in, and what is left of them when nobody is at work on them any more."""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

_PREFIX: Final = ".hvring-"
_SUFFIX: Final = ".part"
_SWEPT_AT_ONCE: Final = 256  # directory entries
_MOST_WAITING: Final = 10_000  # directories that are to be looked at


def temporary_name() -> str:
    """One that nobody has."""
    return f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether it is one of these names, which no file keeps."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def hold(folder: int, name: str) -> int:
    """A descriptor of a regular file that nobody takes for a leftover as long as it is open; -1 if there is none."""
    fd = -1
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(name, flags, dir_fd=folder)
        if stat.S_ISREG(os.fstat(fd).st_mode):
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                pass  # locked by somebody else, or where nobody can lock: nobody takes it for a leftover
            return fd
    except OSError:
        pass
    if fd >= 0:
        os.close(fd)
    return -1


def sweep(folder: int) -> Iterator[int]:
    """Remove the unfinished files of receivers that are no more, some entries at a step.  Closes ``folder``.

    Each step gives how many were removed in it.
    """
    try:
        removed = 0
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries, 1):
                if is_temporary(entry.name):
                    removed += _remove_leftover(folder, entry.name)
                if number % _SWEPT_AT_ONCE == 0:
                    yield removed
                    removed = 0
        if removed:
            yield removed
    except OSError:
        pass  # it is tried again with the next worker
    finally:
        os.close(folder)


def sweep_below(root: str, seconds: float) -> int:
    """The same in ``root`` and all directories below it on its file system; how many were removed.

    The nearest ones first, and in ``seconds`` as many of the others as there is time for.  Raises OSError of ``root``.
    """
    until = time.monotonic() + seconds
    top = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    removed = 0
    try:
        device = os.fstat(top).st_dev
        waiting = deque(["."])
        while waiting and time.monotonic() < until:
            path = waiting.popleft()
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                here = os.open(path, flags, dir_fd=top)
            except OSError:
                continue
            try:
                if os.fstat(here).st_dev == device:
                    found, names = _look(here, until)
                    removed += found
                    waiting.extend(f"{path}/{name}" for name in names[: _MOST_WAITING - len(waiting)])
            finally:
                os.close(here)
    finally:
        os.close(top)
    return removed


def _look(folder: int, until: float) -> tuple[int, list[str]]:
    """How many leftovers were removed, and the directories in it."""
    removed, below = 0, []
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries, 1):
                if is_temporary(entry.name):
                    removed += _remove_leftover(folder, entry.name)
                elif entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                if number % _SWEPT_AT_ONCE == 0 and time.monotonic() > until:
                    break
    except OSError:
        pass
    return removed, below


def _remove_leftover(folder: int, name: str) -> bool:
    try:
        fd = _open(folder, name)
    except OSError:
        return False
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder)
            return True
    except OSError:
        pass  # locked: somebody is at work on it
    finally:
        os.close(fd)
    return False


def _open(folder: int, name: str) -> int:
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(name, os.O_WRONLY | flags, dir_fd=folder)  # a lock over NFS wants that
    except PermissionError:
        return os.open(name, os.O_RDONLY | flags, dir_fd=folder)  # it had its mode already
