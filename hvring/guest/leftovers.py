# SPDX-License-Identifier: Apache-2.0
"""The temporary names of files on their way in, and what is left of them when nobody is at work on them any more."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator
from typing import Final

_PREFIX: Final = ".hvring-"
_SUFFIX: Final = ".part"
_SWEPT_AT_ONCE: Final = 256  # directory entries


def temporary_name() -> str:
    """One that nobody has."""
    return f"{_PREFIX}{os.urandom(8).hex()}{_SUFFIX}"


def is_temporary(name: str) -> bool:
    """Whether it is one of these names, which no file keeps."""
    return name.startswith(_PREFIX) and name.endswith(_SUFFIX)


def sweep(folder: int) -> Iterator[None]:
    """Remove the unfinished files of receivers that are no more, some entries at a step.  Closes ``folder``."""
    try:
        with os.scandir(folder) as entries:
            for number, entry in enumerate(entries, 1):
                if is_temporary(entry.name):
                    _remove_leftover(folder, entry.name)
                if number % _SWEPT_AT_ONCE == 0:
                    yield
    except OSError:
        pass  # it is tried again with the next worker
    finally:
        os.close(folder)


def _remove_leftover(folder: int, name: str) -> None:
    try:
        fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except OSError:
        return
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder)
    except OSError:
        pass  # locked: somebody is at work on it
    finally:
        os.close(fd)
