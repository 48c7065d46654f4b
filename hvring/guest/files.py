# SPDX-License-Identifier: Apache-2.0
"""Receiving files from the host (PROTOCOL §4.6).

The host names every path and is not trusted with that: files go below directories that were allowed, never through a
link, and appear under their name only when they are complete.  No path is looked at in this process: whoever looks
may hang in a file system, and is a process of its own (:mod:`hvring.guest.workers`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from hvring.errors import EffectError
from hvring.guest import file_worker
from hvring.guest.copy_under_way import Copy, explained
from hvring.guest.dress import FILE_MODE
from hvring.guest.extents import Extents
from hvring.guest.leftovers import is_temporary
from hvring.guest.part import Wish
from hvring.guest.terms import Terms
from hvring.guest.workers import Workers
from hvring.pending import Pending, steps, then
from hvring.reasons import Reason
from hvring.status import Status

__all__ = ["FILE_MODE", "DirectoryReceiver", "FileReceiver", "Incoming", "Terms"]


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


@runtime_checkable
class Sweeper(Protocol):
    """A receiver whose copies can leave something behind when this machine or its processes are ended."""

    def sweep(self) -> int | Pending[int]:
        """Remove what earlier copies left, but nothing that anybody is at work on; how much that was."""
        ...


class DirectoryReceiver:
    """Takes files into the allowed directories and those below them; with none allowed, it refuses all."""

    def __init__(
        self,
        allowed: Iterable[str | os.PathLike[str]] = (),
        *,
        mode: int | None = None,
        owner: tuple[int, int] | None = None,
        umask: int | None = None,
        overwrite: bool = True,
        create_path: bool = True,
        sync: bool = True,
        sha256: bool = True,
        allocate: bool = True,
        max_size: int | None = None,
        quota: int | None = None,
        reserve: int = 0,
        reserve_percent: float = 0.0,
        rules: Iterable[tuple[str | os.PathLike[str], Terms]] = (),
        timeout: float = 10.0,
        sync_timeout: float = 25.0,
        sweeps: bool = True,
    ) -> None:
        """An allowed directory must exist; links in its own path are followed.

        What files must keep to is said by :class:`~hvring.guest.terms.Terms`, whose fields these are, for all allowed
        directories; ``rules`` have other terms for some, at or below them: the nearest one counts, and no other.
        Seconds: ``timeout`` for each look at a file system and each write, ``sync_timeout`` to have the file on the
        disk.  ``sweeps``: whether :meth:`sweep` does anything.  ValueError for what can be none of these.
        """
        allowed = [os.fspath(path) for path in allowed]
        if not all(allowed):
            raise ValueError("an empty text names no directory")
        self._roots = [_components(os.path.abspath(path)) for path in allowed]
        self._terms = Terms(
            mode, owner, umask, overwrite, create_path, sync, sha256, allocate, max_size, quota, reserve,
            reserve_percent,
        )  # fmt: skip
        self._rules = [(_components(os.path.abspath(os.fspath(path))), terms) for path, terms in rules]
        for parts, _ in self._rules:
            if not any(parts[: len(root)] == root for root in self._roots):
                raise ValueError(f"/{'/'.join(parts)} is at or below no allowed directory")
        self._timeout = timeout
        self._sync_timeout = sync_timeout
        self._sweeps = sweeps
        self._workers = Workers()

    def start(
        self, directory: str, name: str, *, overwrite: bool = False, create_path: bool = False, size: int = 0
    ) -> Incoming | Pending[Incoming]:
        """Begin the file ``name`` in ``directory``, or ``directory`` itself if that is the file's full path.

        It is the full path if it is no directory now, does not end in a slash, and its last part is ``name`` or ends
        in the same suffix.  A file that exists is refused unless ``overwrite``; missing directories unless
        ``create_path``.  ``size`` is checked against the free space, and at the end against what came, unless 0.
        EffectError with status ALREADY_EXISTS, DISK_FULL, ACCESS_DENIED or FAIL.
        """
        _check_name(name)
        root, below = self._place(directory)
        rule, terms = self._terms_of(root, root + below)
        if terms.max_size is not None and size > terms.max_size:
            raise EffectError(
                f"{name}: {size} bytes, only {terms.max_size} are allowed", reason=Reason.TOO_LARGE
            )
        top = "/" + "/".join(root)
        is_rule = rule == root + below  # and so a directory
        wish = Wish(
            top,
            below,
            name,
            overwrite=overwrite and terms.overwrite,
            create_path=create_path and terms.create_path,
            may_be_file=bool(below)
            and not is_rule
            and not directory.endswith("/")
            and _is_like(below[-1], name),
            size=size,
            mode=terms.mode,
            owner=terms.owner,
            umask=terms.umask,
            sync=terms.sync,
            sha256=terms.sha256,
            allocate=terms.allocate,
            quota=terms.quota,
            counted=_counted(rule, root),
            reserve=terms.reserve,
            reserve_percent=terms.reserve_percent,
        )
        extents = Extents(size, terms.max_size)
        worker = self._workers.take()
        return then(
            explained(
                f"{directory}/{name}",
                lambda: worker.ask(file_worker.BEGIN, 0, file_worker.pack(wish), self._timeout),
                lambda: self._workers.give_back(worker),
            ),
            lambda path: Copy(
                path, self._workers, worker, extents, self._timeout, self._sync_timeout, top, terms.sync
            ),
        )

    def sweep(self) -> int | Pending[int]:
        """Remove what is left of files in the allowed directories, and below them on the same file systems.

        Only what nobody is at work on, as many directories as a process of its own can look at in 5 s each.
        EffectError if that process cannot be started, or hangs.
        """
        if not self._sweeps:
            return 0
        return steps(self._workers.sweep(["/" + "/".join(root) for root in self._roots]))

    def inherit(self, before: DirectoryReceiver) -> None:
        """Its processes, those that hang included: there is one bound for all."""
        self._workers = before._workers

    def close(self) -> None:
        """Let go of the process that waits for the next file; the end of the receiver does the same."""
        self._workers.close()

    def _terms_of(self, root: list[str], parts: list[str]) -> tuple[list[str], Terms]:
        """The terms for what is in a directory, and the directory that they are for: a rule's, or an allowed one."""
        fitting = [(rule, terms) for rule, terms in self._rules if parts[: len(rule)] == rule]
        return max(fitting, key=lambda one: len(one[0]), default=(root, self._terms))

    def _place(self, directory: str) -> tuple[list[str], list[str]]:
        """The allowed directory and the components below it."""
        if not directory.startswith("/"):
            raise EffectError(f"not an absolute path: {directory!r}", reason=Reason.BAD_NAME)
        parts = _components(directory)
        for part in parts:
            _check_name(part)
        fitting = [root for root in self._roots if parts[: len(root)] == root]
        if not fitting:
            # With none allowed, this is as if nobody served it.
            status = Status.ACCESS_DENIED if self._roots else Status.FAIL
            raise EffectError(f"not an allowed directory: {directory!r}", status, Reason.NOT_ALLOWED)
        root = max(fitting, key=len)
        return root, parts[len(root) :]


def _counted(rule: list[str], root: list[str]) -> int | str:
    """The directory that a quota of the rule is for, as a wish says it."""
    return "/" + "/".join(rule) if len(rule) < len(root) else len(rule) - len(root)


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
