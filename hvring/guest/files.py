# SPDX-License-Identifier: Apache-2.0
"""Receiving files from the host (PROTOCOL §4.6).

The host names every path and is not trusted with that: files go below directories that were allowed,
never through a link, and appear under their name only when they are complete.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from hvring.errors import EffectError
from hvring.guest import folders

#: What the host is told (PROTOCOL §3.3).
FAIL: Final = 0x80004005
ALREADY_EXISTS: Final = 0x80070050
DISK_FULL: Final = 0x80070070

FILE_MODE: Final = 0o640
_PART_PREFIX: Final = ".hvring-"
_PART_SUFFIX: Final = ".part"
_LARGEST_OFFSET: Final = (1 << 63) - 1

#: Bytes after which the disk is told to begin with them: the fsync at the end is then a matter of the last few.
WRITE_OUT: Final = 4 << 20


class Incoming(Protocol):
    """One file on its way in."""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write at an offset; EffectError with status DISK_FULL or FAIL."""
        ...

    def complete(self) -> str:
        """Publish the file and return its path; EffectError removes what was written."""
        ...

    def abort(self) -> None:
        """Remove what was written; harmless after the end."""
        ...


class FileReceiver(Protocol):
    """What the file copy service needs."""

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> Incoming:
        """Begin a file; EffectError with status ALREADY_EXISTS, DISK_FULL or FAIL."""
        ...


class DirectoryReceiver:
    """Takes files into the allowed directories and those below them; with none allowed, it refuses all."""

    def __init__(
        self,
        allowed: Iterable[str | os.PathLike[str]] = (),
        *,
        mode: int = FILE_MODE,
        sync: bool = True,
        max_size: int | None = None,
    ) -> None:
        """An allowed directory must exist; links in its own path are followed.

        ``mode`` of the files whatever the umask; ``sync``: on the disk before the host is told; ``max_size``
        in bytes of one file.
        """
        self._roots = [_components(os.path.abspath(path)) for path in allowed]
        self._mode = mode
        self._sync = sync
        self._max_size = max_size

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> Incoming:
        """Begin the file ``directory``/``name`` (``directory`` always is one, as in Linux).

        A file that exists is refused unless ``overwrite``; missing directories unless ``create_path``.
        ``size`` is checked against the free space. EffectError with status ALREADY_EXISTS, DISK_FULL or FAIL.
        """
        _check_name(name)
        root, below = self._place(directory)
        if self._max_size is not None and size > self._max_size:
            raise EffectError(f"{name}: {size} bytes, only {self._max_size} are allowed")
        with _explained(f"{directory}/{name}"):
            top = os.open("/" + "/".join(root), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                folder = folders.open_below(top, below, create=create_path)
            finally:
                os.close(top)
            try:
                _check_target(folder, name, overwrite)
                _remove_leftovers(folder)
                space = os.fstatvfs(folder)
                if size > space.f_bfree * space.f_frsize:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fd, part = _create_part(folder)
            except BaseException:
                os.close(folder)
                raise
        path = "/" + "/".join((*root, *below, name))
        limit = _LARGEST_OFFSET if self._max_size is None else self._max_size
        return _Part(path, folder, fd, part, overwrite, self._mode, self._sync, limit)

    def _place(self, directory: str) -> tuple[list[str], list[str]]:
        """The allowed directory and the components below it."""
        if not directory.startswith("/"):
            raise EffectError(f"not an absolute path: {directory!r}")
        parts = _components(directory)
        for part in parts:
            _check_name(part)
        fitting = [root for root in self._roots if parts[: len(root)] == root]
        if not fitting:
            raise EffectError(f"not an allowed directory: {directory!r}")
        root = max(fitting, key=len)
        return root, parts[len(root) :]


@dataclass(slots=True)
class _Part:
    """A file under its temporary name; its lock shows that it is not a leftover."""

    path: str
    folder: int
    fd: int
    part: str | None
    overwrite: bool
    mode: int
    sync: bool
    limit: int
    waiting: int = 0  # bytes that the disk was not told about,
    lowest: int = _LARGEST_OFFSET  # and between which offsets they lie
    highest: int = 0

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; EffectError with status DISK_FULL or FAIL, what was written stays."""
        self._check_open()
        if offset < 0 or offset + len(data) > self.limit:
            raise EffectError(f"{self.path}: {len(data)} bytes at {offset} are out of bounds")
        try:
            done = os.pwrite(self.fd, data, offset)
            while done < len(data):
                done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        except OSError as problem:
            raise _explanation(self.path, problem) from problem
        if self.sync:
            self._begin_write_out(offset, len(data))

    def _begin_write_out(self, offset: int, size: int) -> None:
        """Now and then, have the kernel begin to write out what came; nothing waits for it."""
        self.waiting += size
        self.lowest = min(self.lowest, offset)
        self.highest = max(self.highest, offset + size)
        if self.waiting < WRITE_OUT:
            return
        try:
            os.posix_fadvise(self.fd, self.lowest, self.highest - self.lowest, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # a file system that takes no advice: fsync will do it all
        self.waiting, self.lowest, self.highest = 0, _LARGEST_OFFSET, 0

    def complete(self) -> str:
        """Give the file its name and return its path; EffectError, e.g. ALREADY_EXISTS, removes it."""
        part = self._check_open()
        try:
            with _explained(self.path):
                os.fchmod(self.fd, self.mode)
                if self.sync:
                    os.fsync(self.fd)
                folders.rename(self.folder, part, os.path.basename(self.path), replace=self.overwrite)
                self.part = None
                if self.sync:
                    os.fsync(self.folder)
        finally:
            self._end()
        return self.path

    def abort(self) -> None:
        """Remove the file; harmless after the end."""
        if self.fd >= 0:
            self._end()

    def _check_open(self) -> str:
        if self.part is None or self.fd < 0:
            raise EffectError(f"{self.path}: the copy has ended")
        return self.part

    def _end(self) -> None:
        """Remove what is still under the temporary name, while its lock is held."""
        try:
            if self.part is not None:
                os.unlink(self.part, dir_fd=self.folder)
        except OSError:
            pass  # the next file into this directory removes it
        finally:
            os.close(self.fd)
            os.close(self.folder)
            self.fd = -1
            self.part = None


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _check_name(name: str) -> None:
    """Refuse what is not the plain name of one file or directory."""
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise EffectError(f"not a plain name: {name!r}")
    if name.startswith(_PART_PREFIX) and name.endswith(_PART_SUFFIX):
        raise EffectError(f"a name for unfinished files: {name!r}")
    try:
        name.encode()
    except UnicodeEncodeError as problem:
        raise EffectError(f"not proper Unicode: {name!r}") from problem


def _check_target(folder: int, name: str, overwrite: bool) -> None:
    try:
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return
    if not overwrite:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))


def _create_part(folder: int) -> tuple[int, str]:
    while True:
        name = f"{_PART_PREFIX}{os.urandom(8).hex()}{_PART_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=folder)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if os.fstat(fd).st_nlink:
            return fd, name
        os.close(fd)  # another receiver took it for a leftover before it was locked


def _remove_leftovers(folder: int) -> None:
    """Remove the unfinished files of receivers that are no more."""
    for name in os.listdir(folder):
        if not (name.startswith(_PART_PREFIX) and name.endswith(_PART_SUFFIX)):
            continue
        try:
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(name, dir_fd=folder)
        except OSError:
            pass  # locked: somebody is at work on it
        finally:
            os.close(fd)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """Turn an OSError into an EffectError with the status for the host."""
    try:
        yield
    except OSError as problem:
        raise _explanation(path, problem) from problem


def _explanation(path: str, problem: OSError) -> EffectError:
    status = FAIL
    if problem.errno == errno.EEXIST:
        status = ALREADY_EXISTS
    elif problem.errno in (errno.ENOSPC, errno.EDQUOT):
        status = DISK_FULL
    return EffectError(f"{path}: {problem.strerror}", status)
