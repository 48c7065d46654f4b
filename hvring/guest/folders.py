# SPDX-License-Identifier: Apache-2.0
"""Reaching a directory below another one, and giving a file its name, without ever following a link."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Sequence
from typing import Final

_SYS_OPENAT2: Final = 437  # the same on every architecture
_RESOLVE_BENEATH_NO_LINKS: Final = 0x08 | 0x04 | 0x02  # BENEATH, NO_SYMLINKS, NO_MAGICLINKS
_RENAME_NOREPLACE: Final = 1
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

#: The system call, or the flag, is not there: do it step by step.
_NOT_HERE: Final = (errno.ENOSYS, errno.EPERM, errno.EINVAL, errno.E2BIG)


def open_below(root: int, parts: Sequence[str], *, create: bool = False) -> int:
    """A descriptor of the directory ``root``/``parts``…; links on the way are refused with an OSError.

    ``create`` makes missing directories, mode 0755.
    """
    try:
        return _open_at_once(root, parts)
    except FileNotFoundError:
        if not create:
            raise
    except OSError as problem:
        if problem.errno not in _NOT_HERE:
            raise
    return walk_below(root, parts, create=create)


def walk_below(root: int, parts: Sequence[str], *, create: bool = False) -> int:
    """The same, one component after the other."""
    here = os.dup(root)
    for part in parts:
        try:
            if part in ("", ".", "..") or "/" in part:
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), part)
            if create:
                try:
                    os.mkdir(part, 0o755, dir_fd=here)
                except FileExistsError:
                    pass
            below = os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def rename(folder: int, old: str, new: str, *, replace: bool) -> None:
    """Rename inside a directory; without ``replace`` FileExistsError if the new name is taken."""
    if replace:
        os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)
        return
    try:
        _rename_noreplace(folder, old, new)
        return
    except OSError as problem:
        if problem.errno not in _NOT_HERE:
            raise
    os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    os.unlink(old, dir_fd=folder)


def _open_at_once(root: int, parts: Sequence[str]) -> int:
    import ctypes  # only here, for what it costs in memory

    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("=QQQ", _DIRECTORY, 0, _RESOLVE_BENEATH_NO_LINKS)
    path = "/".join(parts) or "."
    # Every argument of syscall() is a long.
    fd: int = libc.syscall(
        ctypes.c_long(_SYS_OPENAT2), ctypes.c_long(root), os.fsencode(path), how, ctypes.c_long(len(how))
    )
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), path)
    return fd


def _rename_noreplace(folder: int, old: str, new: str) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renameat2(folder, os.fsencode(old), folder, os.fsencode(new), _RENAME_NOREPLACE):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), new)
