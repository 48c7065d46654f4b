# SPDX-License-Identifier: Apache-2.0
"""Receiving files from the host (PROTOCOL §4.6).

The host names every path and is not trusted with that: files go below directories that were allowed, never through a
link, and appear under their name only when they are complete.  No path is looked at in this process: whoever looks
may hang in a file system, and is a process of its own (:mod:`hvring.guest.workers`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final, Protocol, runtime_checkable

from hvring.errors import EffectError
from hvring.guest import file_worker
from hvring.guest.copy_under_way import Copy, explained
from hvring.guest.extents import Extents
from hvring.guest.leftovers import is_temporary
from hvring.guest.part import FILE_MODE, Wish
from hvring.guest.workers import Workers
from hvring.pending import Pending, then
from hvring.reasons import Reason

__all__ = ["FILE_MODE", "DirectoryReceiver", "FileReceiver", "Incoming"]

#: The number that is no user and no group: to the kernel it says "leave it".
NOBODY: Final = 2**32 - 1


class Incoming(Protocol):
    """One file on its way in.  Nothing else is asked of it while something is pending, but to cancel that."""

    def write(self, offset: int, data: bytes | memoryview) -> Pending[None] | None:
        """Write at an offset; EffectError with status DISK_FULL or FAIL."""
        ...

    def complete(self) -> str | Pending[str]:
        """Publish the file and return its path; EffectError leaves nothing of it, and what it would replace."""
        ...

    def abort(self) -> Pending[None] | None:
        """Remove what was written; harmless after the end."""
        ...


@runtime_checkable
class KnowsDigest(Protocol):
    """An :class:`Incoming` that knows, once it is complete, the SHA-256 of the file in hexadecimal, or None."""

    sha256: str | None


class FileReceiver(Protocol):
    """What the file copy service needs."""

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> Incoming | Pending[Incoming]:
        """Begin a file of ``size`` bytes, 0: not known; EffectError with status ALREADY_EXISTS, DISK_FULL or FAIL."""
        ...


class DirectoryReceiver:
    """Takes files into the allowed directories and those below them; with none allowed, it refuses all."""

    def __init__(
        self,
        allowed: Iterable[str | os.PathLike[str]] = (),
        *,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        sync: bool = True,
        sha256: bool = True,
        max_size: int | None = None,
        timeout: float = 10.0,
        sync_timeout: float = 25.0,
    ) -> None:
        """An allowed directory must exist; links in its own path are followed.

        ``mode`` and ``owner`` (uid and gid) of the files; None: those of the file that is replaced, or else 0640,
        whatever the umask, and this process's own.  ``sync``: on the disk before the host is told; ``sha256``: whether
        each file's is made while it comes; ``max_size`` in bytes of one file.  Seconds: ``timeout`` for each look at a
        file system and each write, ``sync_timeout`` to have the file on the disk.  ValueError for what can be none of
        these.
        """
        allowed = [os.fspath(path) for path in allowed]
        if not all(allowed):
            raise ValueError("an empty text names no directory")
        if mode is not None and not 0 <= mode <= 0o7777:
            raise ValueError(f"{mode:o} is no mode from 0 to 7777")
        if owner is not None and not all(0 <= number < NOBODY for number in owner):
            raise ValueError(f"{owner} are no numbers of a user and a group")
        if max_size is not None and max_size < 0:
            raise ValueError(f"no file has {max_size} bytes")
        self._roots = [_components(os.path.abspath(path)) for path in allowed]
        self._mode = mode
        self._owner = owner
        self._sync = sync
        self._sha256 = sha256
        self._max_size = max_size
        self._timeout = timeout
        self._sync_timeout = sync_timeout
        self._workers = Workers()

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> Incoming | Pending[Incoming]:
        """Begin the file ``name`` in ``directory``, or ``directory`` itself if that is the file's full path.

        It is the full path if it is no directory now, does not end in a slash, and its last part is ``name`` or ends
        in the same suffix.  A file that exists is refused unless ``overwrite``; missing directories unless
        ``create_path``.  ``size`` is checked against the free space, and at the end against what came, unless 0.
        EffectError with status ALREADY_EXISTS, DISK_FULL or FAIL.
        """
        _check_name(name)
        root, below = self._place(directory)
        if self._max_size is not None and size > self._max_size:
            raise EffectError(
                f"{name}: {size} bytes, only {self._max_size} are allowed", reason=Reason.TOO_LARGE
            )
        wish = Wish(
            "/" + "/".join(root),
            below,
            name,
            overwrite=overwrite,
            create_path=create_path,
            may_be_file=bool(below) and not directory.endswith("/") and _is_like(below[-1], name),
            size=size,
            mode=self._mode,
            owner=self._owner,
            sync=self._sync,
            sha256=self._sha256,
        )
        worker = self._workers.take()
        return then(
            explained(
                f"{directory}/{name}",
                lambda: worker.ask(file_worker.BEGIN, 0, file_worker.pack(wish), self._timeout),
                lambda: self._workers.give_back(worker),
            ),
            lambda path: Copy(
                path, self._workers, worker, Extents(size, self._max_size), self._timeout, self._sync_timeout
            ),
        )

    def inherit(self, before: DirectoryReceiver) -> None:
        """Its processes, those that hang included: there is one bound for all."""
        self._workers = before._workers

    def close(self) -> None:
        """Let go of the process that waits for the next file; the end of the receiver does the same."""
        self._workers.close()

    def _place(self, directory: str) -> tuple[list[str], list[str]]:
        """The allowed directory and the components below it."""
        if not directory.startswith("/"):
            raise EffectError(f"not an absolute path: {directory!r}", reason=Reason.BAD_NAME)
        parts = _components(directory)
        for part in parts:
            _check_name(part)
        fitting = [root for root in self._roots if parts[: len(root)] == root]
        if not fitting:
            raise EffectError(f"not an allowed directory: {directory!r}", reason=Reason.NOT_ALLOWED)
        root = max(fitting, key=len)
        return root, parts[len(root) :]


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _is_like(last: str, name: str) -> bool:
    """Whether the last part of a path reads like the name of the file rather than that of a directory."""
    suffix = os.path.splitext(name)[1]
    return last == name or (suffix != "" and os.path.splitext(last)[1] == suffix)


def _check_name(name: str) -> None:
    """Refuse what is not the plain name of one file or directory."""
    if name in ("", ".", "..") or any(letter in name for letter in "/\\\0"):
        raise EffectError(f"not a plain name: {name!r}", reason=Reason.BAD_NAME)
    if is_temporary(name):
        raise EffectError(f"a name for unfinished files: {name!r}", reason=Reason.BAD_NAME)
    try:
        name.encode()
    except UnicodeEncodeError as problem:
        raise EffectError(f"not proper Unicode: {name!r}", reason=Reason.BAD_NAME) from problem
