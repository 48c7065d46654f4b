# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that are listened on: replace a stale one, never a live one, and remove only one's own."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Final

from hvring.errors import EndpointError
from hvring.transport import file_lock

_LOCK_TIMEOUT: Final = 1.0  # seconds; a host holds the lock for a millisecond


class Listener:
    """A listening, non-blocking Unix socket at ``path``; closing it removes the path.

    ``group``: a number that the path belongs to; None: this process's.  Raises EndpointError when another process
    listens there, when something else is in the way, and when the directory cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        kind: socket.SocketKind,
        *,
        mode: int = 0o600,
        group: int | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self.socket.setblocking(False)
            with _directory_lock(self.path):
                unborn = _beside(self.path)
                for name in (self.path, unborn):
                    _remove_stale(name, kind)
                self.socket.bind(unborn)
                if group is not None:
                    os.chown(unborn, -1, group)
                os.chmod(unborn, mode)
                self.socket.listen(64)
                os.rename(unborn, self.path)  # whoever sees the path can connect to it
                self._identity = _identity(self.path)
        except OSError as error:
            self.socket.close()
            raise EndpointError(f"cannot listen on {self.path}: {error.strerror or error}") from error
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Stop listening and remove the path, unless somebody put another file there or keeps the directory locked.

        May be called twice.
        """
        if self.socket.fileno() < 0:
            return
        self.socket.close()
        with suppress(OSError), _directory_lock(self.path):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)

    def __enter__(self) -> Listener:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _beside(path: str) -> str:
    """A name in the same directory and of the same length, since those of sockets are limited."""
    return path[:-1] + ("_" if path.endswith("~") else "~")


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def _remove_stale(path: str, kind: socket.SocketKind) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise EndpointError(f"{path} exists and is not a socket: choose another path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(path)
        who = f" (process {_pid_of(probe)})" if result == 0 else ""
    if result == errno.ECONNREFUSED:
        os.unlink(path)
    elif result == errno.EACCES:
        raise EndpointError(f"{path} belongs to somebody else")
    # Connected, or its queue is full (EAGAIN), or it is of another kind (EPROTOTYPE).
    elif result != errno.ENOENT:
        raise EndpointError(f"another process listens on {path}{who}: stop it, or choose another path")


def _pid_of(connected: socket.socket) -> int:
    """Of the process that listens."""
    size = struct.calcsize("=iII")
    pid, _, _ = struct.unpack("=iII", connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(pid)


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    """Two hosts that start at the same time must not each take the other's new socket for a stale one.

    Whoever may list the directory can lock it, and for as long as it likes: BlockingIOError after ``_LOCK_TIMEOUT``.
    """
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not file_lock.lock(descriptor, _LOCK_TIMEOUT):
            raise BlockingIOError(errno.EAGAIN, "another program keeps its directory locked")
        yield
    finally:
        os.close(descriptor)
