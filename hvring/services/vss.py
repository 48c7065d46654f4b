# SPDX-License-Identifier: Apache-2.0
"""Backup: hold the file systems still, and never for longer than a bounded time (PROTOCOL §4.5)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvring.errors import EffectBusyError, EffectError
from hvring.ic.frame import MessageType, Request, Status
from hvring.ic.negotiate import Negotiated
from hvring.ic.vss import FRAMEWORKS, MINIMUM, VERSIONS, VssFlags, VssOperation, VssRequest
from hvring.services.intake import Intake, error_status
from hvring.services.service import Answer, Counters, Later, Reply

if TYPE_CHECKING:
    from hvring.guest.freezer import Freezer

MAX_FROZEN: Final = 60.0  # seconds from the first file system that is frozen
FREEZE_PATIENCE: Final = 90.0  # seconds for a freeze; the guardian allows itself less, and hosts wait longer
THAW_PATIENCE: Final = 25.0  # seconds until a THAW is answered in any case; hosts wait for 30
STEP: Final = 0.01  # seconds until the next look at a freeze or thaw that is under way
RETRY: Final = 1.0  # seconds until the next attempt when a thaw failed

_FLAGS_END: Final = 12


class Vss:
    """Freezes and thaws through a :class:`~hvring.guest.freezer.Freezer`.

    ``capability_flags`` is what HOT_BACKUP answers at B+8; without it the host's bytes come back, as seen of
    Linux.  A freeze that nobody ended within ``max_frozen`` seconds is ended by :meth:`tick`, and the THAW
    that comes too late for it is answered FAIL: the backup did not happen inside the freeze.

    A freezer that takes its time (EffectBusyError) is asked again, without holding up anybody else.  A freeze that
    takes too long is broken off and answered FAIL; whatever breaks it off, :meth:`tick` sees to the thaw's end.
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
        self._freezing: _Effect | None = None  # what is under way: one of these two, or neither
        self._thawing: _Effect | None = None
        # When a freeze must end, or a thaw be gone on with; None while nothing is frozen or being thawed.
        self._due: float | None = None
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
        """Whether this service holds a freeze, be it one that is not complete or being thawed."""
        return self._due is not None

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._operate)

    def reset(self) -> None:
        self._intake.negotiated = None
        if self._thawing is None and (self._freezing is not None or self._due is not None):
            self._begin_thaw("the channel was closed")
        self._ended_early = False

    def deadline(self) -> float | None:
        due = self._next()
        return None if due is None else max(0.0, due - self._monotonic())

    def tick(self) -> None:
        due = self._next()
        if due is None or self._monotonic() < due:
            return
        if self._thawing is not None:
            self._go_on_thawing(self._thawing)
        else:
            self._ended_early = self._freezing is None  # else FREEZE is answered FAIL
            self._begin_thaw("it took too long")

    def _next(self) -> float | None:
        """When :meth:`tick` has something to do."""
        times = [self._due, None if self._freezing is None else self._freezing.give_up_at]
        return min((at for at in times if at is not None), default=None)

    def _operate(self, request: Request) -> Answer:
        asked = VssRequest.decode(request.body)
        match asked.operation:
            case VssOperation.HOT_BACKUP:
                return self._hot_backup(request)
            case VssOperation.GET_DM_INFO:
                return Reply(request.answer(body=VssFlags(asked.operation).encode()[:_FLAGS_END]))
            case VssOperation.FREEZE:
                return self._freeze(request, self._monotonic() + FREEZE_PATIENCE)
            case VssOperation.THAW:
                return self._thaw(request)
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

    def _freeze(self, request: Request, give_up_at: float) -> Answer:
        if self._thawing is not None:  # of the freeze before: first things first
            self._go_on_thawing(self._thawing)
            if self._thawing is not None:
                if self._monotonic() >= give_up_at:
                    return Reply(request.answer(Status.FAIL))
                return Later(STEP, lambda: self._freeze(request, give_up_at))
        if self._freezing is None:
            if self._due is not None:
                return Reply(request.answer())  # and the first freeze's time goes on
            self._ended_early = False
            if not self._freezer.ready:
                return Reply(request.answer(Status.FAIL))
            self._freezing = _Effect(give_up_at)
        return self._await_freeze(request, self._freezing)

    def _await_freeze(self, request: Request, freeze: _Effect) -> Answer:
        if freeze is self._freezing:
            self._go_on_freezing(freeze)
        if freeze is self._freezing:
            return Later(STEP, lambda: self._await_freeze(request, freeze))
        return Reply(request.answer(freeze.status))

    def _thaw(self, request: Request) -> Answer:
        late, self._ended_early = self._ended_early, False
        thaw = self._thawing
        if thaw is None:
            if self._freezing is None and self._due is None:
                return Reply(request.answer(Status.FAIL if late else Status.OK))
            thaw = self._begin_thaw("the host thawed before it was complete")
        return self._await_thaw(request, thaw, late, self._monotonic() + THAW_PATIENCE)

    def _await_thaw(self, request: Request, thaw: _Effect, late: bool, give_up_at: float) -> Answer:
        if thaw is self._thawing:
            self._go_on_thawing(thaw)
        if thaw is self._thawing:
            if self._monotonic() >= give_up_at:
                return Reply(request.answer(Status.FAIL))  # and tick() goes on
            return Later(STEP, lambda: self._await_thaw(request, thaw, late, give_up_at))
        return Reply(request.answer(thaw.status or (Status.FAIL if late else Status.OK)))

    def _go_on_freezing(self, freeze: _Effect) -> None:
        try:
            self._freezer.freeze()
            self._freezing = None
        except EffectBusyError:
            if self._monotonic() >= freeze.give_up_at:
                self._begin_thaw("it took too long")
        except Exception as error:
            self._fail(freeze, error)
            self._freezing = None
            if self._freezer.frozen:
                self._begin_thaw("it failed")
        finally:
            if self._thawing is None:
                self._watch()

    def _watch(self) -> None:
        """Note the time of the first file system that is frozen, or forget it."""
        if not self._freezer.frozen:
            self._due = None
        elif self._due is None:
            self._due = self._monotonic() + self._max_frozen

    def _begin_thaw(self, why: str) -> _Effect:
        """Thaw, and break off a freeze that is under way."""
        if self._freezing is not None:
            self._fail(self._freezing, EffectError(f"the freeze was broken off: {why}"))
            self._freezing = None
        self._thawing = thaw = _Effect(self._monotonic() + THAW_PATIENCE)
        self._go_on_thawing(thaw)
        return thaw

    def _go_on_thawing(self, thaw: _Effect) -> None:
        now = self._monotonic()
        self._due = now + RETRY  # unless it works now
        try:
            self._freezer.thaw()
        except EffectBusyError:
            if now < thaw.give_up_at:
                self._due = now + STEP
            return
        except Exception as error:
            self._fail(thaw, error)
        self._thawing = None
        if not self._freezer.frozen:
            self._due = None

    def _fail(self, effect: _Effect, error: Exception) -> None:
        effect.status = error_status(error)
        self._intake.note(error)


class _Effect:
    """A freeze or thaw, which may be under way for a while, and what the requests that wait for it are told then."""

    def __init__(self, give_up_at: float) -> None:
        self.give_up_at = give_up_at
        self.status: int = Status.OK
