# SPDX-License-Identifier: Apache-2.0
"""File copy: the states of one copy and what each message does in each of them (PROTOCOL §4.6).

=========  ===================  =================  ==================  ==================
state      START                WRITE              COMPLETE            CANCEL
=========  ===================  =================  ==================  ==================
idle       begin: copying       refuse             nothing             nothing
starting   discard, begin       refuse             discard: idle, FAIL discard: idle
copying    discard, begin       write              publish: idle       discard: idle
broken     discard, begin       write              discard: idle, FAIL discard: idle
=========  ===================  =================  ==================  ==================

A START that fails leads to idle, a WRITE that fails to broken: its file must not be published.  Nor is one published
that is not whole.  A message that comes while an effect is at work on the one before breaks that off.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hvring.errors import EffectError, MessageError, UnknownOperationError, reason_of
from hvring.events import EventKind
from hvring.guest.extents import Extents
from hvring.guest.files import KnowsDigest, Sweeper
from hvring.ic import fcopy as messages
from hvring.ic.fcopy import CancelCopy, CompleteCopy, FcopyFlag, FcopyOperation, StartCopy, WriteChunk
from hvring.ic.frame import MessageType, Request, plain_chunk
from hvring.ic.unreadable import Unreadable
from hvring.pending import Pending, is_due, soonest
from hvring.reasons import Reason
from hvring.services.base import IntegrationService, Response, Result, Taken, inherited
from hvring.services.held import when_thawed
from hvring.status import Status

if TYPE_CHECKING:
    from hvring.guest.files import FileReceiver, Incoming

#: Seconds after the start in which there is more to do than to look for what earlier copies left.
SWEEP_AFTER: Final = 2.0
LOST_SWEEP_AFTER: Final = 30.0  #: the same after a process that could not do it itself

T = TypeVar("T")
_OK: Final = Response()
_CHUNK: Final = WriteChunk.__name__
FcopyMessage = StartCopy | WriteChunk | CompleteCopy | CancelCopy
ReadMessage = FcopyMessage | Unreadable


class CopyState(Enum):
    """Where a copy is; the table above says what each message does there."""

    IDLE = "idle"
    STARTING = "starting"
    COPYING = "copying"
    BROKEN = "broken"


# Enum's own way to a member is a long one.
_COPYING: Final = CopyState.COPYING
_BROKEN: Final = CopyState.BROKEN


class Fcopy(IntegrationService[ReadMessage]):
    """Receives files through a :class:`~hvring.guest.files.FileReceiver`, one at a time."""

    name = "fcopy"
    kind = MessageType.FCOPY
    frameworks = messages.FRAMEWORKS
    versions = messages.VERSIONS
    minimum = messages.HEADER_SIZE
    in_place = True

    def __init__(self, receiver: FileReceiver) -> None:
        super().__init__()
        self._receiver = receiver
        self._state = CopyState.IDLE
        self._incoming: Incoming | None = None
        self._extents = Extents()
        self._work: Pending[Any] | None = None
        self._asked: _Asked | None = None  # the copy whose outcome is not on record yet
        self.copies = 0  # files that are whole and in their place,
        self.copied_bytes = 0  # and what they hold
        self._sweeping: Pending[int] | None = None
        self._sweep_at: float | None = None  # when it is begun, or gone on with
        self._is_to_sweep = isinstance(receiver, Sweeper)

    def adopt(self, fresh: Fcopy) -> None:
        # A file that is on its way in has its own hold on the old one.
        self._receiver = inherited(fresh._receiver, self._receiver)
        self._sweep_in(SWEEP_AFTER)

    def deadline(self) -> float | None:
        due = super().deadline()
        if self._sweep_at is None:
            return due
        return soonest(due, max(0.0, self._sweep_at - time.monotonic()))

    def watch(self) -> int:
        return -1 if self._sweeping is None else self._sweeping.descriptor

    def tick(self) -> None:
        super().tick()
        if self._is_to_sweep:
            self._see_to_sweep()

    @property
    def state(self) -> CopyState:
        """Where the copy is."""
        return self._state

    def decode(self, request: Request) -> ReadMessage:
        operation = messages.operation(request.body)
        decode = _DECODERS.get(operation)
        if decode is None:
            raise UnknownOperationError(f"there is no file copy operation {operation}")
        try:
            return decode(request.body)
        except MessageError as error:
            return Unreadable(operation, error)

    def take(self, request: Request) -> Taken:
        """The next bytes of a file that comes in order, as all but a few messages are, take a short way."""
        incoming, extents = self._incoming, self._extents
        chunk = plain_chunk(request, extents.front, extents.limit) if self._state is _COPYING else None
        if chunk is None or incoming is None or self._work is not None:
            return super().take(request)
        self._counters.requests += 1
        self._state = _BROKEN  # unless it works
        offset = extents.front
        try:
            outcome = incoming.write(offset, chunk)
        except Exception as error:  # effects may be an embedder's own code
            return self.conclude(request, _CHUNK, error)
        self._state = _COPYING
        if outcome is None:
            extents.follow(offset, len(chunk))
            return self.accept(request, _CHUNK)
        written = self._written(offset, len(chunk))
        self._state = _BROKEN
        return self.conclude(request, _CHUNK, self._follow(lambda: outcome, written, _BROKEN))

    def handle(self, message: ReadMessage) -> Result:
        if isinstance(message, Unreadable):
            self._spoil(message.operation)
            raise message.error
        if self._work is not None and self._state is not CopyState.STARTING:
            self._break_off()
        return STEPS[self._state, type(message)](self, message)

    def reset(self) -> None:
        super().reset()
        self._fail("the channel ended before the file was complete", Reason.BROKEN_OFF)
        self._break_off()
        self._forget()

    def note(self, what: str, error: Exception) -> None:
        """The first error of a copy is its outcome."""
        if self._asked is None or isinstance(error, _BrokenOffError):
            super().note(what, error)
        else:
            self._end_record(error, EventKind.FAILED)

    def _sweep_in(self, seconds: float) -> None:
        if self._sweeping is None and isinstance(self._receiver, Sweeper):
            self._is_to_sweep = True
            self._sweep_at = time.monotonic() + seconds

    def _see_to_sweep(self) -> None:
        """Beside all else; a copy has no part in it."""
        if self._sweeping is not None:
            if is_due(self._sweeping):
                self._sweep(self._sweeping.resume)
        elif self._sweep_at is None:
            self._sweep_in(SWEEP_AFTER)
        elif time.monotonic() >= self._sweep_at and isinstance(self._receiver, Sweeper):
            self._sweep(self._receiver.sweep)

    def _sweep(self, step: Callable[[], int | Pending[int]]) -> None:
        self._sweeping = self._sweep_at = None
        self._is_to_sweep = False
        try:
            outcome = step()
        except Exception as error:  # the receiver may be an embedder's own
            super().note("sweep", error)
            return
        if isinstance(outcome, Pending):
            self._sweeping, self._sweep_at, self._is_to_sweep = outcome, outcome.at, True
            return
        self.worked("sweep")
        if outcome:
            what = f"{outcome} unfinished files of earlier copies were removed"
            self.tell(EventKind.CHANGED, what, removed=outcome)

    def _fail(self, why: str, reason: Reason) -> None:
        """The host's own doing ended the copy that is under way, if there is one."""
        if self._asked is not None:
            self._end_record(EffectError(why, reason=reason), EventKind.CANCELLED)

    def _end_record(self, error: Exception, kind: EventKind) -> None:
        asked, self._asked = self._asked, None
        if asked is not None:
            if reason_of(error) in (Reason.WORKER_LOST, Reason.FILE_SYSTEM_HANGS):
                self._sweep_in(LOST_SWEEP_AFTER)  # what nobody took back
            self.record_failure("copy", error, {**asked.facts(), "bytes": self._extents.length}, kind)

    def _spoil(self, operation: int) -> None:
        """A message that cannot be read ends what it was about: no file is published around a hole."""
        if operation in (FcopyOperation.WRITE, FcopyOperation.START):
            self._fail("the host sent a message that cannot be read", Reason.BAD_REQUEST)
        if operation == FcopyOperation.WRITE:
            if self._work is not None:
                self._break_off()
            if self._state is CopyState.COPYING:
                self._state = CopyState.BROKEN
        elif operation == FcopyOperation.START:
            self._break_off()
            self._forget()

    def _begin(self, asked: StartCopy) -> Result:
        self._asked = _Asked(asked, time.monotonic())
        what = f"copy {asked.name!r} to {asked.path!r}, {asked.size} bytes"
        self.tell(EventKind.ASKED, what, path=asked.path, name=asked.name, size=asked.size)
        self._extents = Extents(asked.size)
        self._state = CopyState.STARTING

        def start() -> Pending[Incoming] | Incoming:
            return self._receiver.start(
                asked.path,
                asked.name,
                overwrite=bool(asked.flags & FcopyFlag.OVERWRITE),
                create_path=bool(asked.flags & FcopyFlag.CREATE_PATH),
                size=asked.size,
            )

        return self._follow(lambda: when_thawed(self.is_frozen, start), self._begun, CopyState.IDLE)

    def _begun(self, incoming: Incoming) -> Response:
        self._incoming = incoming
        self._state = CopyState.COPYING
        return Response()

    def _begin_anew(self, asked: StartCopy) -> Result:
        self._fail("the host began another copy before this one was complete", Reason.BROKEN_OFF)
        self._break_off()
        incoming, self._incoming = self._incoming, None
        self._state = CopyState.IDLE
        if incoming is None:
            return self._begin(asked)
        return self._follow(lambda: self._aborted(incoming), lambda _: self._begin(asked), CopyState.IDLE)

    def _write(self, chunk: WriteChunk) -> Result:
        if self._incoming is None:  # it was broken off
            return Response(Status.FAIL)
        written = self._written(chunk.offset, len(chunk.data))
        self._state = _BROKEN  # unless it works
        self._extents.check(chunk.offset, len(chunk.data))
        incoming = self._incoming
        return self._follow(lambda: incoming.write(chunk.offset, chunk.data), written, _BROKEN)

    def _written(self, offset: int, size: int) -> Callable[[object], Response]:
        """What is to be done once these bytes are written."""
        before = self._state

        def written(_: object) -> Response:
            self._extents.add(offset, size)
            self._state = before
            return _OK

        return written

    def _publish(self, _: object) -> Result:
        incoming = self._incoming
        assert incoming is not None
        try:
            self._extents.check_whole()
        except EffectError as error:
            self.note("complete", error)
            return self._give_up(None)
        self._incoming = None
        self._state = CopyState.IDLE
        return self._follow(incoming.complete, lambda path: self._published(path, incoming), CopyState.IDLE)

    def _published(self, path: str, incoming: Incoming) -> Response:
        facts = {} if self._asked is None else self._asked.facts()
        self._asked = None
        size = self._extents.length
        facts.update(path=path, size=size, result="copied")
        facts["sha256"] = incoming.sha256 if isinstance(incoming, KnowsDigest) else None
        self.copies += 1
        self.copied_bytes += size
        self.worked("copy")
        self.record(EventKind.COPIED, f"{path}, {size} bytes", **facts)
        return Response()

    def _discard(self, _: object) -> Result:
        self._fail("the host cancelled it", Reason.CANCELLED)
        return self._abort(Response())

    def _give_up(self, _: object) -> Result:
        self._fail("the host ended the copy before the file was begun", Reason.INCOMPLETE)
        return self._abort(Response(Status.FAIL))

    def _refuse(self, _: object) -> Result:
        return Response(Status.FAIL)

    def _nothing(self, _: object) -> Result:
        return Response()

    def _abort(self, response: Response) -> Result:
        self._break_off()
        incoming, self._incoming = self._incoming, None
        self._state = CopyState.IDLE
        if incoming is None:
            return response
        return self._follow(incoming.abort, lambda _: response, CopyState.IDLE)

    def _aborted(self, incoming: Incoming) -> Pending[None] | None:
        """What becomes of an old file is noted and no reason not to begin a new one."""

        def step(work: Callable[[], Pending[None] | None]) -> Pending[None] | None:
            try:
                outcome = work()
            except Exception as error:
                self.note("discard", error)
                return None
            if outcome is None:
                return None
            pending = outcome
            return Pending(lambda: step(pending.resume), pending.at, pending.descriptor, pending.cancel)

        return step(incoming.abort)

    def _forget(self) -> None:
        """Discard without anybody who would wait for it."""
        incoming, self._incoming = self._incoming, None
        self._state = CopyState.IDLE
        if incoming is not None:
            outcome = self._aborted(incoming)
            if outcome is not None:
                outcome.cancel()

    def _break_off(self) -> None:
        """Cancel what an effect is at work on; the copy that it was for is lost."""
        work, self._work = self._work, None
        if work is not None:
            self._fail("it was broken off by another message", Reason.BROKEN_OFF)
            work.cancel()
            self._forget()
            self._state = CopyState.BROKEN

    def _follow(
        self, step: Callable[[], T | Pending[T]], done: Callable[[T], Result], failed: CopyState
    ) -> Result:
        """Go on with ``done`` once the effect is; ``failed`` is the state if it raises."""
        self._work = None
        try:
            outcome = step()
        except Exception:
            self._state = failed
            raise
        if not isinstance(outcome, Pending):
            return done(outcome)
        pending: Pending[T] = outcome
        self._work = pending

        def resume() -> Result:
            if self._work is not pending:
                raise _BrokenOffError("it was broken off by another message", reason=Reason.BROKEN_OFF)
            return self._follow(pending.resume, done, failed)

        def cancel() -> None:
            if self._work is pending:
                self._break_off()

        return Pending(resume, pending.at, pending.descriptor, cancel)


class _BrokenOffError(EffectError):
    """Of a message whose copy is over, and on record."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """A copy, for the record."""

    message: StartCopy
    since: float

    def facts(self) -> dict[str, str | int | float | bool | None]:
        """``path`` and ``name`` as the host gave them, ``seconds`` until now."""
        asked = self.message
        return {
            "path": asked.path,
            "name": asked.name,
            "size": asked.size,
            "overwrite": bool(asked.flags & FcopyFlag.OVERWRITE),
            "create_path": bool(asked.flags & FcopyFlag.CREATE_PATH),
            "seconds": round(time.monotonic() - self.since, 3),
        }


_DECODERS: Final[dict[int, Callable[[bytes], FcopyMessage]]] = {
    FcopyOperation.START: StartCopy.decode,
    FcopyOperation.WRITE: WriteChunk.decode,
    FcopyOperation.COMPLETE: CompleteCopy.decode,
    FcopyOperation.CANCEL: CancelCopy.decode,
}

STEPS: Final[dict[tuple[CopyState, type[FcopyMessage]], Callable[[Fcopy, Any], Result]]] = {
    (CopyState.IDLE, StartCopy): Fcopy._begin,
    (CopyState.IDLE, WriteChunk): Fcopy._refuse,
    (CopyState.IDLE, CompleteCopy): Fcopy._nothing,
    (CopyState.IDLE, CancelCopy): Fcopy._nothing,
    (CopyState.STARTING, StartCopy): Fcopy._begin_anew,
    (CopyState.STARTING, WriteChunk): Fcopy._refuse,
    (CopyState.STARTING, CompleteCopy): Fcopy._give_up,
    (CopyState.STARTING, CancelCopy): Fcopy._discard,
    (CopyState.COPYING, StartCopy): Fcopy._begin_anew,
    (CopyState.COPYING, WriteChunk): Fcopy._write,
    (CopyState.COPYING, CompleteCopy): Fcopy._publish,
    (CopyState.COPYING, CancelCopy): Fcopy._discard,
    (CopyState.BROKEN, StartCopy): Fcopy._begin_anew,
    (CopyState.BROKEN, WriteChunk): Fcopy._write,
    (CopyState.BROKEN, CompleteCopy): Fcopy._give_up,
    (CopyState.BROKEN, CancelCopy): Fcopy._discard,
}
