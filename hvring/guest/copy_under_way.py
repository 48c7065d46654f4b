# SPDX-License-Identifier: Apache-2.0
"""One file on its way into this machine: what is given to the worker that writes it, when, and what became of it."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from hvring.errors import EffectError
from hvring.guest import file_worker
from hvring.guest.extents import Extents
from hvring.guest.workers import Worker, Workers
from hvring.pending import Pending, then
from hvring.reasons import Reason, of_errno
from hvring.status import Status

T = TypeVar("T")

#: Bytes in one write that are not gathered with others; a host's are fewer.
_LARGE: Final = 8192
_FULL: Final = file_worker.LARGEST_WRITE - _LARGE  # bytes from which there may be no room for another


class Copy:
    """A file that a worker writes.

    Small pieces that come in order, as those of a host, are gathered and written while the next ones come: what goes
    wrong then is raised by a later call.
    """

    def __init__(
        self,
        path: str,
        workers: Workers,
        worker: Worker,
        extents: Extents,
        timeout: float,
        sync_timeout: float,
        root: str,
        sync: bool,
    ) -> None:
        """``root``: the allowed directory that the path is below; ``sync``: whether its name is to be on the disk."""
        self.path: Final = path
        self._root = root
        self._sync = sync
        self.sha256: str | None = None
        self._workers = workers
        self._worker = worker
        self._extents = extents
        self._timeout = timeout
        self._sync_timeout = sync_timeout
        self._is_over = False
        self._has_worker = True
        self._gathered = memoryview(b"")  # memory for bytes that the worker does not have,
        self._used = 0  # how many there are,
        self._gathered_at = 0  # and the offset of the first one
        self._behind: Pending[str] | None = None  # a write that nobody waits for yet
        self._problem: EffectError | None = None  # what became of one

    def write(self, offset: int, data: bytes | memoryview) -> Pending[None] | None:
        """Write all of ``data``; EffectError with status DISK_FULL or FAIL, perhaps for a write before this one.

        After an error there is only :meth:`abort`: the file will not be whole.
        """
        size = len(data)
        if (
            size < _LARGE
            and not self._is_over
            and self._problem is None
            and self._extents.follow(offset, size)
        ):
            return self._gather(offset, data, size)
        return self._write_apart(offset, data)

    def _write_apart(self, offset: int, data: bytes | memoryview) -> Pending[None] | None:
        """What is large, comes in another order, or comes in vain."""
        self._check_open()
        if self._problem is not None:
            raise self._problem
        try:
            self._extents.check(offset, len(data))
        except EffectError as problem:
            raise EffectError(f"{self.path}: {problem}", reason=problem.reason) from None
        is_next = offset == self._extents.length
        self._extents.add(offset, len(data))
        if is_next and len(data) < _LARGE:
            return self._gather(offset, data, len(data))
        return then(self._flushed(), lambda _: self._write_out(offset, memoryview(data)))

    def complete(self) -> str | Pending[str]:
        """Give the file its name and return its path; EffectError, e.g. ALREADY_EXISTS, removes it."""
        self._check_open()
        until = time.monotonic() + self._sync_timeout
        return _rescued(lambda: then(self._flushed(), lambda _: self._publish(until)), self._undo)

    def abort(self) -> Pending[None] | None:
        """Remove the file; harmless after the end.

        EffectError if the file system does not answer: the file is removed when it does.
        """
        if self._is_over:
            return None
        self._is_over = True
        self._used = 0
        return then(_rescued(self._drain, _nothing), lambda _: self._take_back())

    def _gather(self, offset: int, data: bytes | memoryview, size: int) -> Pending[None] | None:
        used = self._used
        if not used:
            self._gathered_at = offset
            if not self._gathered:
                self._gathered = memoryview(bytearray(file_worker.LARGEST_WRITE))
        self._used = end = used + size
        self._gathered[used:end] = data
        return self._flush() if end > _FULL else None

    def _flush(self) -> Pending[None] | None:
        """Have the worker begin with what was gathered, once it is done with what it has."""
        return then(self._drain(), lambda _: self._hand_over())

    def _hand_over(self) -> None:
        if self._used:
            data, self._used = self._gathered[: self._used], 0  # it is sent, or lost, before this returns
            step = partial(
                self._ask, file_worker.WRITE, self._gathered_at, data, self._timeout, self._lose, False
            )
            outcome = _rescued(step, self._remember)
            self._behind = outcome if isinstance(outcome, Pending) else None

    def _drain(self) -> Pending[None] | None:
        """Until the worker is done with what it was given."""
        behind, self._behind = self._behind, None
        if behind is None:
            return None
        self._worker.linger()
        return then(_rescued(behind.resume, self._remember), _nothing)

    def _remember(self, problem: EffectError) -> str:
        self._problem = problem
        raise problem

    def _write_out(self, offset: int, data: memoryview) -> Pending[None] | None:
        while len(data):
            piece, data = data[: file_worker.LARGEST_WRITE], data[file_worker.LARGEST_WRITE :]
            step = partial(self._ask, file_worker.WRITE, offset, piece, self._timeout, self._lose)
            offset += len(piece)
            outcome = _rescued(step, self._remember)
            if isinstance(outcome, Pending):
                return then(outcome, partial(self._go_on, offset, data))
        return None

    def _go_on(self, offset: int, data: memoryview, _: str) -> Pending[None] | None:
        return self._write_out(offset, data)

    def _flushed(self) -> Pending[None] | None:
        return then(self._flush(), lambda _: self._drain())

    def _publish(self, until: float) -> str | Pending[str]:
        if self._problem is not None:
            raise self._problem
        try:
            self._extents.check_whole()
        except EffectError as problem:
            raise EffectError(f"{self.path}: {problem}", reason=problem.reason) from None
        # Two steps: whoever gave up before the second one can be sure that no file will come.
        prepared = self._ask_until(until, file_worker.PREPARE, self._extents.length)
        return then(prepared, lambda file: then(self._name(file, until), self._published))

    def _name(self, prepared: str, until: float) -> str | Pending[str]:
        device, number, digest = prepared.split(" ")
        self.sha256 = digest or None
        return _rescued(
            lambda: self._ask_until(until, file_worker.PUBLISH, 0),
            lambda problem: self._find(int(device, 16), int(number, 16), problem),
        )

    def _find(self, device: int, number: int, problem: EffectError) -> str | Pending[str]:
        """A process that was lost at that moment: what counts is whether the file has its name."""
        if problem.reason is not Reason.WORKER_LOST:
            raise problem
        self._worker, self._has_worker = self._workers.take(), True
        name, *below = (part for part in self.path[len(self._root) :].split("/")[::-1] if part)
        where = file_worker.pack_names(self._root, name, *reversed(below))
        file = file_worker.FILE.pack(self._sync, device, number) + where
        found = self._ask(file_worker.FIND, 0, file, self._timeout, self._end)
        return then(found, lambda answer: "0 " if answer else self._missing(problem))

    def _missing(self, problem: EffectError) -> str:
        self._end()
        raise problem

    def _ask_until(self, until: float, what: bytes, number: int) -> str | Pending[str]:
        return self._ask(what, number, b"", max(0.0, until - time.monotonic()), self._end)

    def _published(self, answer: str) -> str | Pending[str]:
        is_replacement, _, trouble = answer.partition(" ")
        if trouble:
            import logging

            logging.getLogger("hvring.guest").warning("%s: %s", self.path, trouble)
        if is_replacement == "1":
            step = partial(self._ask, file_worker.KEEP, 1, b"", self._timeout, self._end)
            return then(_rescued(step, lambda _: ""), lambda _: self._kept())
        self._worker.tell(file_worker.KEEP)
        return self._kept()

    def _kept(self) -> str:
        """From here on it stays, whoever ends."""
        self._end()
        return self.path

    def _undo(self, problem: EffectError) -> str | Pending[str]:
        return then(_rescued(self.abort, _nothing), lambda _: _raise(problem))

    def _take_back(self) -> Pending[None] | None:
        aborted = self._ask(file_worker.ABORT, 0, b"", self._timeout, self._give_back)
        return then(aborted, lambda _: self._give_back())

    def _ask(
        self,
        what: bytes,
        number: int,
        rest: bytes | bytearray | memoryview,
        timeout: float,
        failed: Callable[[], None],
        is_urgent: bool = True,
    ) -> str | Pending[str]:
        return explained(
            self.path,
            lambda: self._worker.ask(what, number, rest, timeout, is_urgent=is_urgent),
            failed,
        )

    def _check_open(self) -> None:
        if self._is_over:
            raise EffectError(f"{self.path}: the copy has ended")

    def _lose(self) -> None:
        """After a write that failed: the file may still be there, to be removed."""
        if not self._worker.is_open:
            self._end()

    def _end(self) -> None:
        self._is_over = True
        self._give_back()

    def _give_back(self) -> None:
        if self._has_worker:
            self._has_worker = False
            self._workers.give_back(self._worker)


def _rescued(
    step: Callable[[], T | Pending[T]], rescue: Callable[[EffectError], T | Pending[T]]
) -> T | Pending[T]:
    """``rescue`` in place of what ``step`` raises, now or later."""
    try:
        outcome = step()
    except EffectError as problem:
        return rescue(problem)
    if not isinstance(outcome, Pending):
        return outcome
    pending: Pending[T] = outcome
    return Pending(lambda: _rescued(pending.resume, rescue), pending.at, pending.descriptor, pending.cancel)


def _nothing(_: object) -> None:
    """That was all."""


def explained(path: str, step: Callable[[], T | Pending[T]], failed: Callable[[], None]) -> T | Pending[T]:
    """Turn what ``step`` raises into an EffectError with the status for the host; ``failed`` is called before."""
    try:
        outcome = step()
    except OSError as problem:
        failed()
        raise _explanation(path, problem) from problem
    except EffectError as problem:
        failed()
        raise EffectError(f"{path}: {problem}", problem.status, problem.reason) from problem
    if not isinstance(outcome, Pending):
        return outcome
    pending: Pending[T] = outcome

    def cancel() -> None:
        pending.cancel()
        failed()

    return Pending(lambda: explained(path, pending.resume, failed), pending.at, pending.descriptor, cancel)


def _explanation(path: str, problem: OSError) -> EffectError:
    status: int = Status.FAIL
    if problem.errno == errno.EEXIST:
        status = Status.ALREADY_EXISTS
    elif problem.errno in (errno.ENOSPC, errno.EDQUOT):
        status = Status.DISK_FULL
    elif problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        status = Status.ACCESS_DENIED
    reason = (
        Reason.NO_DIRECTORY if problem.errno in (errno.ENOENT, errno.ENOTDIR) else of_errno(problem.errno)
    )
    return EffectError(f"{path}: {problem.strerror}", status, reason)


def _raise(error: EffectError) -> str:
    raise error
