# SPDX-License-Identifier: Apache-2.0
"""File copy: the states of one copy and what each message does in each of them (PROTOCOL §4.6).

=========  ===================  =================  ==================  ==================
state      START                WRITE              COMPLETE            CANCEL
=========  ===================  =================  ==================  ==================
idle       begin: copying       refuse             nothing             nothing
copying    discard, begin       write              publish: idle       discard: idle
broken     discard, begin       write              discard: idle, FAIL discard: idle
=========  ===================  =================  ==================  ==================

A START that fails leads to idle, a WRITE that fails to broken: its file must not be published.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Final

from hvring.ic import fcopy as messages
from hvring.ic.fcopy import FcopyFlag, FcopyOperation, StartCopy, WriteChunk
from hvring.ic.frame import MessageType, Request, Status
from hvring.ic.negotiate import Negotiated
from hvring.services.intake import Intake
from hvring.services.service import Answer, Counters, Reply

if TYPE_CHECKING:
    from hvring.guest.files import FileReceiver, Incoming


class CopyState(Enum):
    IDLE = "idle"
    COPYING = "copying"
    BROKEN = "broken"


_Step = Callable[["Fcopy", bytes], int]


class Fcopy:
    """Receives files through a :class:`~hvring.guest.files.FileReceiver`, one at a time."""

    name = "fcopy"

    def __init__(self, receiver: FileReceiver) -> None:
        self._receiver = receiver
        self._incoming: Incoming | None = None
        self._broken = False
        self._intake = Intake(
            MessageType.FCOPY, messages.FRAMEWORKS, messages.VERSIONS, minimum=messages.HEADER_SIZE
        )

    @property
    def counters(self) -> Counters:
        return self._intake.counters

    @property
    def negotiated(self) -> Negotiated | None:
        return self._intake.negotiated

    @property
    def last_error(self) -> Exception | None:
        return self._intake.last_error

    @property
    def state(self) -> CopyState:
        if self._incoming is None:
            return CopyState.IDLE
        return CopyState.BROKEN if self._broken else CopyState.COPYING

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._step)

    def reset(self) -> None:
        self._intake.negotiated = None
        self._intake.attempt(lambda: self._discard(b""))

    def deadline(self) -> float | None:
        return None

    def tick(self) -> None:
        pass

    def _step(self, request: Request) -> Reply:
        body = request.body
        operation = messages.operation(body)
        step = STEPS.get((self.state, operation))
        if step is None:
            self.counters.unknown_operation += 1
            return Reply(request.answer(Status.FAIL))
        return Reply(request.answer(step(self, body)))

    def _begin(self, body: bytes) -> int:
        asked = StartCopy.decode(body)
        self._incoming = self._receiver.start(
            asked.path,
            asked.name,
            overwrite=bool(asked.flags & FcopyFlag.OVERWRITE),
            create_path=bool(asked.flags & FcopyFlag.CREATE_PATH),
            size=asked.size,
        )
        self._broken = False
        return Status.OK

    def _begin_anew(self, body: bytes) -> int:
        self._intake.attempt(lambda: self._discard(b""))
        return self._begin(body)

    def _write(self, body: bytes) -> int:
        assert self._incoming is not None
        was_broken, self._broken = self._broken, True  # unless it works
        chunk = WriteChunk.decode(body)
        self._incoming.write(chunk.offset, chunk.data)
        self._broken = was_broken
        return Status.OK

    def _publish(self, _: bytes) -> int:
        incoming, self._incoming = self._incoming, None
        assert incoming is not None
        incoming.complete()
        return Status.OK

    def _discard(self, _: bytes) -> int:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.abort()
        return Status.OK

    def _give_up(self, body: bytes) -> int:
        self._discard(body)
        return Status.FAIL

    def _refuse(self, _: bytes) -> int:
        return Status.FAIL

    def _nothing(self, _: bytes) -> int:
        return Status.OK


STEPS: Final[dict[tuple[CopyState, int], _Step]] = {
    (CopyState.IDLE, FcopyOperation.START): Fcopy._begin,
    (CopyState.IDLE, FcopyOperation.WRITE): Fcopy._refuse,
    (CopyState.IDLE, FcopyOperation.COMPLETE): Fcopy._nothing,
    (CopyState.IDLE, FcopyOperation.CANCEL): Fcopy._nothing,
    (CopyState.COPYING, FcopyOperation.START): Fcopy._begin_anew,
    (CopyState.COPYING, FcopyOperation.WRITE): Fcopy._write,
    (CopyState.COPYING, FcopyOperation.COMPLETE): Fcopy._publish,
    (CopyState.COPYING, FcopyOperation.CANCEL): Fcopy._discard,
    (CopyState.BROKEN, FcopyOperation.START): Fcopy._begin_anew,
    (CopyState.BROKEN, FcopyOperation.WRITE): Fcopy._write,
    (CopyState.BROKEN, FcopyOperation.COMPLETE): Fcopy._give_up,
    (CopyState.BROKEN, FcopyOperation.CANCEL): Fcopy._discard,
}
