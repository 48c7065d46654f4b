# SPDX-License-Identifier: Apache-2.0
"""The part of receiving that all services share: parse, count, negotiate, refuse (PROTOCOL §3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from hvring.errors import EffectError, MessageError, ShortMessageError
from hvring.ic import negotiate
from hvring.ic.frame import MessageType, Request, Status, Version
from hvring.ic.negotiate import Negotiated
from hvring.services.service import Answer, Counters, Later, Reply

Handler = Callable[[Request], Answer]

_STATUS: Final = slice(20, 24)


class Intake:
    """Stands before a service's handler, which sees whole requests of its own type only.

    ``minimum``: body bytes below which Linux stays silent.  ``answer_unknown``: whether another message type
    is answered (with FAIL) or met with silence.  What the handler raises becomes a status: EffectError its
    own, anything else FAIL.
    """

    def __init__(
        self,
        kind: MessageType,
        frameworks: Sequence[Version],
        versions: Sequence[Version],
        *,
        minimum: int = 0,
        answer_unknown: bool = False,
    ) -> None:
        self.counters: Final = Counters()
        self.negotiated: Negotiated | None = None
        self.last_error: Exception | None = None
        self._kind = kind
        self._frameworks = tuple(frameworks)
        self._versions = tuple(versions)
        self._minimum = minimum
        self._answer_unknown = answer_unknown

    def receive(self, payload: bytes, handle: Handler) -> Answer:
        """One packet through the common checks and then to ``handle``; counts what comes out."""
        self.counters.requests += 1
        return self._count(self._decide(payload, handle))

    def _count(self, reply: Answer) -> Answer:
        if isinstance(reply, Later):
            again = reply.again
            return Later(reply.seconds, lambda: self._count(again()))
        if reply is None:
            self.counters.silent += 1
        else:
            self.counters.replies += 1
            self.counters.failed += any(reply.payload[_STATUS])
        return reply

    def note(self, error: Exception) -> None:
        """Remember that an effect failed."""
        self.counters.effect_errors += 1
        self.last_error = error

    def attempt(self, effect: Callable[[], object]) -> bool:
        """Run an effect that no answer waits for; False, and noted, when it failed."""
        try:
            effect()
        except Exception as error:
            self.note(error)
            return False
        return True

    def _decide(self, payload: bytes, handle: Handler) -> Answer:
        try:
            request = Request.parse(payload)
        except ShortMessageError:
            self.counters.short += 1
            return None
        self.counters.anomalies += bool(request.anomalies)
        if request.type not in (MessageType.NEGOTIATE, self._kind):
            self.counters.unknown_type += 1
            return Reply(request.answer(Status.FAIL)) if self._answer_unknown else None
        if request.overrun:
            self.counters.lying += 1
            return Reply(request.answer(Status.FAIL))
        if request.type == MessageType.NEGOTIATE:
            return self._negotiate(request)
        if len(request.body) < self._minimum:
            self.counters.short += 1
            return None
        return self._handle(request, handle)

    def _negotiate(self, request: Request) -> Reply:
        self.counters.negotiations += 1
        payload, self.negotiated = negotiate.answer(request, self._frameworks, self._versions)
        return Reply(payload)

    def _handle(self, request: Request, handle: Handler) -> Answer:
        try:
            reply = handle(request)
            if isinstance(reply, Later):
                again = reply.again
                return Later(reply.seconds, lambda: self._handle(request, lambda _: again()))
            return reply
        except ShortMessageError:
            self.counters.short += 1
            status: int = Status.FAIL
        except MessageError:
            self.counters.lying += 1
            status = Status.FAIL
        except Exception as error:  # effects may be an embedder's own code
            self.note(error)
            status = error_status(error)
        return Reply(request.answer(status))


def error_status(error: Exception) -> int:
    """What a host is told about a failed effect: never 0, always 32 bits."""
    status = error.status if isinstance(error, EffectError) else Status.FAIL
    return status if 0 < status < 2**32 else Status.FAIL
