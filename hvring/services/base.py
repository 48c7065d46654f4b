# SPDX-License-Identifier: Apache-2.0
"""The part that all services share, on two levels (PROTOCOL §3).

Bytes and messages: parse, count, negotiate, refuse, and turn an answer into bytes.  Between messages there are no
bytes: :meth:`IntegrationService.respond` takes a decoded message and gives a :class:`Response`, and a transport which
brings messages in another form enters there (PROTOCOL §10).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar, runtime_checkable

from hvring.errors import (
    EffectError,
    LyingLengthError,
    MessageError,
    ShortMessageError,
    UnknownOperationError,
    reason_of,
)
from hvring.events import Event, EventKind, Facts
from hvring.ic import negotiate
from hvring.ic.frame import Inbox, MessageType, Request, Version
from hvring.ic.negotiate import Negotiated
from hvring.news import News
from hvring.pending import Pending, then
from hvring.reasons import Reason
from hvring.services.service import Answer, Counters, Failure, Reply, Service
from hvring.status import Status

M = TypeVar("M")
T = TypeVar("T")


@runtime_checkable
class Heir(Protocol):
    """An effect that goes on with what another one of its kind has under way: processes, an action that has begun."""

    def inherit(self, before: Any) -> None:
        """``before``: of the same type, and asked for nothing new any more."""
        ...


class Encodable(Protocol):
    """A message of :mod:`hvring.ic`."""

    def encode(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Response:
    """What a service says to a message: a status and, where there is one, the message that answers it.

    ``then`` is run once the answer is on its way: answer first, act after.
    """

    status: int = Status.OK
    message: Encodable | None = None
    then: Callable[[], None] | None = None


_OK: Final = Response()

Result = Response | Pending[Response | None] | None
"""What :meth:`IntegrationService.handle` makes of a message; None is silence."""

Taken = Reply | Request | Pending[Reply | Request | None] | None
"""An :data:`Answer`, or one that is the request itself, edited where it lies, with its ``then``."""


class IntegrationService(Service, Generic[M]):
    """One service: its name, its versions, its handler, and where needed reset, deadline and tick.

    ``minimum``: body bytes below which Linux stays silent.  ``answers_unknown``: whether another message type is
    answered (with FAIL) or met with silence.  What a handler raises becomes a status by :meth:`refusal`.

    ``in_place``: packets come and are answered in one reused buffer, a :class:`~hvring.ic.frame.Inbox`.  A class says
    so for itself alone: others get bytes by :meth:`receive`, and :meth:`Request.answer` gives them bytes.
    """

    name: ClassVar[str] = ""
    kind: ClassVar[MessageType]
    frameworks: ClassVar[tuple[Version, ...]]
    versions: ClassVar[tuple[Version, ...]]
    minimum: ClassVar[int] = 0
    answers_unknown: ClassVar[bool] = False
    in_place: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "in_place" not in vars(cls):
            cls.in_place = False

    def __init__(self) -> None:
        self._counters = Counters()
        self._negotiated: Negotiated | None = None
        self._last_failure: Failure | None = None
        self._news = News(self._told)
        self._told_of: set[type[MessageError]] = set()  # kinds of requests that were refused on this channel
        self.on_event: Callable[[Event], None] | None = None
        #: Whether file systems may be frozen, by a service beside this one; set by whoever serves both.
        self.is_frozen: Callable[[], bool] | None = None

    # ------------------------------------------------------------------------- what a service is made of

    def least(self, request: Request) -> int:  # noqa: ARG002
        """Body bytes of this request below which Linux stays silent."""
        return self.minimum

    def decode(self, request: Request) -> M:
        """The message in a request of this service's type.  Raises MessageError."""
        raise NotImplementedError

    def handle(self, message: M) -> Result:
        """What to say to a message.  May raise MessageError and whatever its effects raise."""
        raise NotImplementedError

    def encode(self, request: Request, response: Response) -> bytes | Request:
        """The request, edited (decision 0002): by :meth:`Request.answer`, after which its old bytes are gone."""
        body = None if response.message is None else response.message.encode()
        return request.answer(response.status, body)

    def refusal(self, error: Exception) -> int:
        """The status for what decoding or handling raised."""
        return error_status(error)

    def adopt(self, fresh: Self) -> None:
        """Go on with the effects and settings of ``fresh``, which is not served and is not used any more.

        What is under way ends with the old ones, and the new ones know of it (:func:`inherited`).  NotImplementedError
        where there is nothing to take.
        """
        raise NotImplementedError

    # ------------------------------------------------------------------------- what an agent sees

    @property
    def counters(self) -> Counters:
        return self._counters

    @property
    def negotiated(self) -> Negotiated | None:
        return self._negotiated

    @property
    def last_error(self) -> Exception | None:
        return None if self._last_failure is None else self._last_failure.error

    @property
    def last_failure(self) -> Failure | None:
        """The newest error with its reason and time, also of what is refused before it is tried."""
        return self._last_failure

    @property
    def quiet(self) -> bool:
        return False

    def receive(self, payload: bytes) -> Answer:
        """One packet through the common checks and then to the handler; counts what comes out."""
        try:
            request = Request.parse(payload)
        except ShortMessageError:
            self._count_no_headers()
            return None
        return self.take(request)  # type: ignore[return-value]  # to bytes, bytes

    def receive_in(self, inbox: Inbox, length: int) -> Taken:
        """As :meth:`receive`, for a packet of ``length`` bytes in an inbox: the answer is the request, edited there."""
        try:
            request = inbox.request(length)
        except ShortMessageError:
            self._count_no_headers()
            return None
        return self.take(request)

    def take(self, request: Request) -> Taken:
        """As :meth:`receive`, for a packet whose headers were read."""
        counters = self._counters
        counters.requests += 1
        if request.is_odd:
            counters.anomalies += 1
        if request.type != self.kind or request.overrun:
            return self._take_apart(request)
        if request.size < self.least(request):
            counters.short += 1
            counters.silent += 1
            return None
        try:
            message = self.decode(request)
        except Exception as error:
            return self.conclude(request, "message", error)
        what = type(message).__name__
        try:
            result = self.handle(message)
        except Exception as error:  # effects may be an embedder's own code
            return self.conclude(request, what, error)
        return self.conclude(request, what, result)

    def conclude(self, request: Request, what: str, result: Result | Exception) -> Taken:
        """The end of :meth:`take`: the answer, once ``what`` was asked for gave a result, or raised."""
        if result is _OK or isinstance(result, Response):
            if self._last_failure is not None:
                self.worked(what)
            return self._reply(request, result)
        if isinstance(result, Pending):
            later: Response | Pending[Response | None] | None = self._settled(what, result)
            return then(later, lambda response: self._reply(request, response))
        if isinstance(result, Exception):
            return self._reply(request, self._turned_down(what, result))
        self.worked(what)
        return self._reply(request, result)

    def accept(self, request: Request, what: str, body: bytes | None = None) -> Reply | Request:
        """As :meth:`conclude` for what worked, with nothing to say but ``body``: the short way of frequent messages."""
        if self._last_failure is not None:
            self.worked(what)
        self._counters.replies += 1
        payload = request.answer(0, body)
        return Reply(payload) if isinstance(payload, bytes) else payload

    def respond(self, message: M) -> Result:
        """As :meth:`receive`, for a message that came without headers.  Never raises."""
        self._counters.requests += 1
        return then(self._settle(type(message).__name__, lambda: self.handle(message)), self._count_response)

    def reset(self) -> None:
        self._negotiated = None
        self._told_of.clear()

    def deadline(self) -> float | None:
        return self._news.deadline()

    def watch(self) -> int:
        return -1

    def tick(self) -> None:
        self._news.tick()

    # ------------------------------------------------------------------------- for handlers

    def tell(self, kind: EventKind, detail: str = "", **facts: str | int | float | bool | None) -> None:
        """One event, unless there were too many of its kind just now."""
        self._counters.events_suppressed += not self._news.tell(kind, detail, facts)

    def record(self, kind: EventKind, detail: str = "", **facts: str | int | float | bool | None) -> None:
        """One event for the record of what the host did to this machine: told each time, within generous limits."""
        self._counters.events_suppressed += not self._news.tell(kind, detail, facts, audit=True)

    def note(self, what: str, error: Exception) -> None:
        """``what`` failed: count it, remember it, and tell it if it did not fail in this way the last time."""
        self.remember(what, error)
        self._counters.events_suppressed += not self._news.failed(what, error)

    def remember(self, what: str, error: Exception) -> None:
        """``what`` failed: count it and remember it; for who tells it himself."""
        self._counters.effect_errors += 1
        reason = reason_of(error)
        self._count_failure(reason)
        self._last_failure = Failure(what, error, reason, time.time())

    def record_failure(
        self, what: str, error: Exception, facts: Facts, kind: EventKind = EventKind.FAILED
    ) -> None:
        """``what`` came to nothing: as :meth:`note`, but told each time, with the ``facts`` that are for the record.

        Another ``kind`` than FAILED: it was not this machine's fault, and no effect was tried.
        """
        self._counters.effect_errors += kind is EventKind.FAILED
        reason = reason_of(error)
        self._count_failure(reason)
        if kind is not EventKind.CANCELLED:
            self._last_failure = Failure(what, error, reason, time.time())
        told = {"what": what, **facts, "result": kind.value, "reason": reason.value, "remedy": reason.remedy}
        self.record(kind, f"{what}: {str(error) or repr(error)}", **told)

    def worked(self, what: str) -> None:
        """``what`` worked: its next failure is news again."""
        failure = self._last_failure
        if failure is not None and failure.what == what and failure.over_at is None:
            failure.over_at = time.time()
        self._counters.events_suppressed += not self._news.worked(what)

    def attempt(self, what: str, effect: Callable[[], object]) -> bool:
        """Run an effect that no answer waits for; False, and noted, when it failed."""
        try:
            effect()
        except Exception as error:
            self.note(what, error)
            return False
        self.worked(what)
        return True

    # ------------------------------------------------------------------------- inside

    def _count_failure(self, reason: Reason) -> None:
        failures = self._counters.failures
        failures[reason.value] = failures.get(reason.value, 0) + 1

    def _told(self, kind: EventKind, detail: str, facts: Facts) -> None:
        if self.on_event is not None:
            self.on_event(Event(self.name, kind, detail, facts))

    def _count_response(self, response: Response | None) -> Response | None:
        if response is None:
            self._counters.silent += 1
            return None
        self._counters.replies += 1
        self._counters.failed += response.status != Status.OK
        return response

    def _count_no_headers(self) -> None:
        self._counters.requests += 1
        self._counters.short += 1
        self._counters.silent += 1

    def _take_apart(self, request: Request) -> Taken:
        """What is no message for the handler: negotiations, messages of other services, lies."""
        counters = self._counters
        if request.type not in (MessageType.NEGOTIATE, self.kind):
            counters.unknown_type += 1
            if not self.answers_unknown:
                counters.silent += 1
                return None
            return self._answer(request.answer(Status.FAIL), Status.FAIL)
        if request.overrun:
            lie = LyingLengthError("its headers claim bytes that did not come")
            return self.conclude(request, "message", lie)
        counters.negotiations += 1
        agreed, self._negotiated = negotiate.answer(request, self.frameworks, self.versions)
        return self._answer(agreed, Status.FAIL if self._negotiated is None else Status.OK)

    def _settle(self, what: str, work: Callable[[], Result], /) -> Result:
        """Go on with the work; what it raises becomes a status."""
        try:
            result = work()
        except Exception as error:  # effects may be an embedder's own code
            return self._turned_down(what, error)
        if isinstance(result, Pending):
            return self._settled(what, result)
        self.worked(what)
        return result

    def _settled(self, what: str, pending: Pending[Response | None]) -> Pending[Response | None]:
        resume = pending.resume
        return Pending(lambda: self._settle(what, resume), pending.at, pending.descriptor, pending.cancel)

    def _reply(self, request: Request, response: Response | None) -> Reply | Request | None:
        if response is None:
            self._counters.silent += 1
            return None
        status = response.status
        try:
            payload = self.encode(request, response)
        except Exception as error:  # what an effect gave fits no message
            status = self._turned_down("answer", error).status
            payload, response = request.answer(status), _OK
        return self._answer(payload, status, response.then)

    def _answer(
        self, payload: bytes | Request, status: int, do: Callable[[], None] | None = None
    ) -> Reply | Request:
        self._counters.replies += 1
        if status:
            self._counters.failed += 1
        if isinstance(payload, bytes):
            return Reply(payload, do)
        payload.then = do
        return payload

    def _turned_down(self, what: str, error: Exception) -> Response:
        if isinstance(error, UnknownOperationError):
            self._counters.unknown_operation += 1
        elif isinstance(error, ShortMessageError):
            self._counters.short += 1
        elif isinstance(error, MessageError):
            self._counters.malformed += 1
        if isinstance(error, MessageError):
            self._tell_of(error)
        else:
            self.note(what, error)
        return Response(_failure(self.refusal(error)))

    def _tell_of(self, error: MessageError) -> None:
        """A request that cannot be used is told once of each kind; all are counted."""
        if type(error) not in self._told_of:
            self._told_of.add(type(error))
            self.tell(EventKind.REFUSED, f"a request that cannot be used: {error}")


def error_status(error: Exception) -> int:
    """What a host is told about a failed effect: never 0, always 32 bits."""
    return _failure(error.status) if isinstance(error, EffectError) else Status.FAIL


def _failure(status: int) -> int:
    """A status that an embedder's own code chose."""
    return status if 0 < status < 2**32 else Status.FAIL


def inherited(fresh: T, before: object) -> T:
    """``fresh``, which has taken from ``before`` what is under way, if it can and both are of one type."""
    if type(fresh) is type(before) and isinstance(fresh, Heir):
        fresh.inherit(before)
    return fresh
