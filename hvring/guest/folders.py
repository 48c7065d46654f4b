# SPDX-License-Identifier: Apache-2.0
"""Reaching a directory below another one, and giving a file its name, without ever following a link.

All this may wait for a file system for ever: it is called in a process that may (:mod:`hvring.guest.file_worker`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_SYS_OPENAT2: Final = 437  # the same on every architecture
_RESOLVE_BENEATH_NO_LINKS: Final = 0x08 | 0x04 | 0x02  # BENEATH, NO_SYMLINKS, NO_MAGICLINKS
_RENAME_NOREPLACE: Final = 1
_RENAME_EXCHANGE: Final = 2
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_GETFLAGS: Final = 0x80000000 | struct.calcsize("l") << 16 | 0x6601  # FS_IOC_GETFLAGS
_IMMUTABLE: Final = 0x10
_APPEND_ONLY: Final = 0x20

#: The system call, or the flag, is not there: do it step by step.
NOT_HERE: Final = (errno.ENOSYS, errno.EINVAL, errno.E2BIG)


@dataclass(frozen=True, slots=True)
class Made:
    """A directory that was made on the way: its name, and the open directory that it is in."""

    parent: int
    name: str

    def give_to(self, owner: tuple[int, int] | None) -> None:
        """It belongs to who will have the file in it; None: to this process.  Raises OSError."""
        if owner is not None:
            os.chown(self.name, *owner, dir_fd=self.parent, follow_symlinks=False)

    def keep(self) -> None:
        """Somebody uses it: leave it."""
        os.close(self.parent)

    def remove(self) -> None:
        """As if it had never been made, unless there is something in it now."""
        try:
            os.rmdir(self.name, dir_fd=self.parent)
        except OSError:
            pass
        os.close(self.parent)


def open_below(root: int, parts: Sequence[str], made: list[Made] | None = None, mode: int = 0o755) -> int:
    """A descriptor of the directory ``root``/``parts``…; links on the way are refused with an OSError.

    With ``made``, missing directories are made with ``mode``, and added to it, also when an error comes after that.
    """
    try:
        return _open_at_once(root, parts)
    except FileNotFoundError:
        if made is None:
            raise
    except OSError as problem:
        if problem.errno not in NOT_HERE and not (problem.errno == errno.EPERM and not _has_openat2(root)):
            raise
    return walk_below(root, parts, made, mode)


def walk_below(root: int, parts: Sequence[str], made: list[Made] | None = None, mode: int = 0o755) -> int:
    """The same, one component after the other."""
    here = os.dup(root)
    for part in parts:
        try:
            below = _step(here, part, made, mode)
        finally:
            os.close(here)
        here = below
    return here


def _step(here: int, part: str, made: list[Made] | None, mode: int) -> int:
    if part in ("", ".", "..") or "/" in part:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), part)
    try:
        return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
    except FileNotFoundError:
        if made is None:
            raise
    parent = os.dup(here)
    try:
        os.mkdir(part, mode, dir_fd=here)
    except OSError as problem:
        os.close(parent)
        if problem.errno != errno.EEXIST:  # somebody else was faster
            raise
    else:
        made.append(Made(parent, part))
    return os.open(part, _DIRECTORY | os.O_NOFOLLOW, dir_fd=here)


def rename_noreplace(folder: int, old: str, new: str) -> None:
    """Rename inside a directory; FileExistsError if the new name is taken.

    Where the kernel cannot do that at once, a moment comes when the file has both names.
    """
    try:
        _rename_noreplace(folder, old, new)
        return
    except OSError as problem:
        if problem.errno not in NOT_HERE:
            raise
    os.link(old, new, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
    try:
        os.unlink(old, dir_fd=folder)
    except OSError:
        pass  # the file has its name, and that is what was asked for


def exchange(folder: int, one: str, other: str) -> None:
    """Let two files of a directory change their names, at once.  OSError, of :data:`NOT_HERE` where that cannot be."""
    _rename(folder, one, other, _RENAME_EXCHANGE)


def check_flags(folder: int, *, to_remove: bool) -> None:
    """Raises PermissionError if chattr's flags keep names from being made here (or removed, with ``to_remove``)."""
    flags = bytearray(struct.calcsize("l"))
    try:
        fcntl.ioctl(folder, _GETFLAGS, flags)
    except OSError:
        return  # a file system that has no such flags
    value = int.from_bytes(flags[:4], "little" if struct.pack("=H", 1)[0] else "big")
    if value & (_IMMUTABLE | (_APPEND_ONLY if to_remove else 0)):
        raise PermissionError(errno.EPERM, "the directory is append-only or immutable")


def _has_openat2(root: int) -> bool:
    """Whether EPERM is the answer to one path, or that of a filter for system calls to all of them."""
    try:
        os.close(_open_at_once(root, ()))
    except OSError:
        return False
    return True


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
    _rename(folder, old, new, _RENAME_NOREPLACE)


def _rename(folder: int, old: str, new: str, flag: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    try:
        renameat2 = libc.renameat2
    except AttributeError:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if renameat2(folder, os.fsencode(old), folder, os.fsencode(new), flag):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), new)
