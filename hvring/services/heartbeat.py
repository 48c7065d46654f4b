# SPDX-License-Identifier: Apache-2.0
"""Heartbeat: every number comes back one higher (PROTOCOL §4.3)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol, runtime_checkable

from hvring.events import EventKind
from hvring.ic.frame import MessageType, Request
from hvring.ic.heartbeat import FRAMEWORKS, MINIMUM, STATE_END, VERSIONS, ApplicationState
from hvring.ic.heartbeat import Heartbeat as Beat
from hvring.services.base import IntegrationService, Response, Taken

_HEARTBEAT: Final = int(MessageType.HEARTBEAT)
_NUMBER: Final = struct.Struct("<Q")
_LAST: Final = 2**64 - 1

Health = Callable[[], ApplicationState | None]
"""How the applications are; None where nobody says: the host's state field is echoed."""


@runtime_checkable
class KnowsWhy(Protocol):
    """A :data:`Health` that has a reason."""

    @property
    def why(self) -> str:
        """The reason for what it said last, for people."""
        ...


class Heartbeat(IntegrationService[Beat]):
    """``health`` says how the applications are; without it the host's state field is echoed, as in Linux.

    A ``health`` that raises counts as CRITICAL and never stops the beat.
    """

    name = "heartbeat"
    kind = MessageType.HEARTBEAT
    frameworks = FRAMEWORKS
    versions = VERSIONS
    minimum = MINIMUM
    answers_unknown = True
    in_place = True

    def __init__(self, health: Health | None = None) -> None:
        super().__init__()
        self._health = health
        self._told_state: ApplicationState | None = None

    def adopt(self, fresh: Heartbeat) -> None:
        self._health = fresh._health

    def take(self, request: Request) -> Taken:
        """A beat that nobody has to be asked about is its own answer, but for the number."""
        if (
            self._health is not None
            or request.type != _HEARTBEAT
            or request.overrun
            or request.size < MINIMUM
        ):
            return super().take(request)
        counters = self._counters
        counters.requests += 1
        if request.is_odd:
            counters.anomalies += 1
        (number,) = _NUMBER.unpack_from(request.view)
        return self.accept(request, "Heartbeat", _NUMBER.pack((number + 1) & _LAST))

    def decode(self, request: Request) -> Beat:
        return Beat.decode(request.body)

    def handle(self, message: Beat) -> Response:
        answer = message.next()
        if self._health is not None and (state := self._state(self._health)) is not None:
            answer = replace(answer, state=state)
        return Response(message=answer)

    def encode(self, request: Request, response: Response) -> bytes | Request:
        body = b"" if response.message is None else response.message.encode()
        # The state may be missing, and what is there then is rounding, not a field.
        if min(len(request.body), request.body_size) < STATE_END:
            body = body[:MINIMUM] + request.body[MINIMUM:]
        return request.answer(response.status, body)

    def _state(self, health: Health) -> ApplicationState | None:
        found: ApplicationState | None = ApplicationState.CRITICAL
        why = "nobody could say"

        def ask() -> None:
            nonlocal found, why
            state = health()
            found = None if state is None else ApplicationState(state)
            why = health.why if isinstance(health, KnowsWhy) else ""

        self.attempt("health", ask)
        if found is not self._told_state:
            self._tell_change(self._told_state, found, why)
            self._told_state = found
        return found

    def _tell_change(self, before: ApplicationState | None, now: ApplicationState | None, why: str) -> None:
        was, to = ("not said" if state is None else state.name.lower() for state in (before, now))
        because = f": {why}" if why else ""
        facts = {"from": was, "to": to, "why": why}
        self.tell(EventKind.CHANGED, f"health is {to} (was {was}){because}", **facts)
