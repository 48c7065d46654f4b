# SPDX-License-Identifier: Apache-2.0
"""Backup: hold the file systems still, and never for longer than a bounded time (PROTOCOL §4.5)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvring.ic.frame import MessageType, Request, Status
from hvring.ic.negotiate import Negotiated
from hvring.ic.vss import FRAMEWORKS, MINIMUM, VERSIONS, VssFlags, VssOperation, VssRequest
from hvring.services.intake import Intake
from hvring.services.service import Answer, Counters, Reply

if TYPE_CHECKING:
    from hvring.guest.freezer import Freezer

MAX_FROZEN: Final = 60.0  # seconds
RETRY: Final = 1.0  # seconds until the next attempt when a thaw failed

_FLAGS_END: Final = 12


class Vss:
    """Freezes and thaws through a :class:`~hvring.guest.freezer.Freezer`.

    ``capability_flags`` is what HOT_BACKUP answers at B+8; without it the host's bytes come back, as seen of
    Linux.  A freeze that nobody ended within ``max_frozen`` seconds is ended by :meth:`tick`, and the THAW
    that comes too late for it is answered FAIL: the backup did not happen inside the freeze.
    """

    name = "vss"

    def __init__(
        self,
        freezer: Freezer,
        capability_flags: int | None = None,
        *,
        max_frozen: float = MAX_FROZEN,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._freezer = freezer
        self._capability_flags = capability_flags
        self._max_frozen = max_frozen
        self._monotonic = monotonic
        self._due: float | None = None  # when a freeze must end; None while nothing is frozen
        self._ended_early = False
        self._intake = Intake(MessageType.VSS, FRAMEWORKS, VERSIONS, minimum=MINIMUM)

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
    def frozen(self) -> bool:
        """Whether this service holds a freeze."""
        return self._due is not None

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._operate)

    def reset(self) -> None:
        self._intake.negotiated = None
        if self._due is not None:
            self._end_early()
        self._ended_early = False

    def deadline(self) -> float | None:
        return None if self._due is None else max(0.0, self._due - self._monotonic())

    def tick(self) -> None:
        if self._due is not None and self._monotonic() >= self._due:
            self._end_early()

    def _operate(self, request: Request) -> Reply:
        asked = VssRequest.decode(request.body)
        match asked.operation:
            case VssOperation.HOT_BACKUP:
                return self._hot_backup(request)
            case VssOperation.GET_DM_INFO:
                return Reply(request.answer(body=VssFlags(asked.operation).encode()[:_FLAGS_END]))
            case VssOperation.FREEZE:
                return Reply(request.answer(self._freeze()))
            case VssOperation.THAW:
                return Reply(request.answer(self._thaw()))
        if asked.operation > VssOperation.QUERY_CLUSTER:
            self.counters.unknown_operation += 1
        return Reply(request.answer())  # nothing to do, and Linux says OK to it

    def _hot_backup(self, request: Request) -> Reply:
        if not self._freezer.ready:
            return Reply(request.answer(Status.FAIL))
        if self._capability_flags is None:
            return Reply(request.answer())
        flags = VssFlags(VssOperation.HOT_BACKUP, self._capability_flags).encode()[:_FLAGS_END]
        return Reply(request.answer(body=flags))

    def _freeze(self) -> int:
        if self._due is not None:
            return Status.OK  # and the first freeze's time goes on
        self._ended_early = False
        if not self._freezer.ready:
            return Status.FAIL
        try:
            self._freezer.freeze()
        finally:
            if self._freezer.frozen:
                self._due = self._monotonic() + self._max_frozen
        return Status.OK

    def _thaw(self) -> int:
        if self._due is None:
            late, self._ended_early = self._ended_early, False
            return Status.FAIL if late else Status.OK
        self._release()
        return Status.OK

    def _end_early(self) -> None:
        self._ended_early = True
        self._intake.attempt(self._release)

    def _release(self) -> None:
        self._due = self._monotonic() + RETRY  # unless it works now
        try:
            self._freezer.thaw()
        finally:
            if not self._freezer.frozen:
                self._due = None
