# SPDX-License-Identifier: Apache-2.0
"""Unix sockets that are listened on: replace a stale one, never a live one, and remove only one's own."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType

from hvring.errors import EndpointError


class Listener:
    """A listening, non-blocking Unix socket at ``path``, mode 0600; closing it removes the path.

    Raises EndpointError when another process listens there, when something else is in the way, and when the
    directory cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], kind: socket.SocketKind) -> None:
        self.path = os.fspath(path)
        self.socket = socket.socket(socket.AF_UNIX, kind)
        try:
            self.socket.setblocking(False)
            with _directory_lock(self.path):
                unborn = _beside(self.path)
                for name in (self.path, unborn):
                    _remove_stale(name, kind)
                self.socket.bind(unborn)
                os.chmod(unborn, 0o600)
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
        """Stop listening and remove the path, unless somebody put another file there. May be called twice."""
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
    if result == errno.ECONNREFUSED:
        os.unlink(path)
    elif result == errno.EACCES:
        raise EndpointError(f"{path} belongs to somebody else")
    elif (
        result != errno.ENOENT
    ):  # connected, or its queue is full (EAGAIN), or it is of another kind (EPROTOTYPE)
        raise EndpointError(f"another process listens on {path}: stop it, or choose another path")


@contextmanager
def _directory_lock(path: str) -> Iterator[None]:
    """Two hosts that start at the same time must not each take the other's new socket for a stale one."""
    descriptor = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
