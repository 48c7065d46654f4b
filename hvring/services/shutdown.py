# SPDX-License-Identifier: Apache-2.0
"""Shutdown: begun, answered, and only then let go (PROTOCOL §4.1)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvring.errors import EffectError, UnknownOperationError, reason_of
from hvring.events import EventKind
from hvring.guest.power import KnowsObstacles, PowerAction, ShutdownOrder
from hvring.ic import shutdown_reason
from hvring.ic.frame import MessageType, Request
from hvring.ic.shutdown import FRAMEWORKS, SIZE, VERSIONS, ShutdownFlag, ShutdownRequest
from hvring.pending import Pending, Steps, Wait, awaited, steps
from hvring.reasons import Obstacle, Reason
from hvring.services.base import IntegrationService, Response, Result, error_status, inherited
from hvring.status import Status

if TYPE_CHECKING:
    from hvring.guest.power import Begun, Power

PATIENCE: Final = 10.0
_LOOK_EVERY: Final = 0.5  # seconds, while a lock is waited for

_ACTIONS: Final = {
    0: PowerAction.OFF,
    int(ShutdownFlag.RESTART): PowerAction.RESTART,
    int(ShutdownFlag.HIBERNATE): PowerAction.HIBERNATE,
}


def order_of(request: ShutdownRequest) -> ShutdownOrder | None:
    """What a request means; None for flags that mean nothing."""
    # Plain numbers: inverting a member of ShutdownFlag would drop the bits that it does not know.
    action = _ACTIONS.get(request.flags & ~int(ShutdownFlag.FORCE))
    if action is None:
        return None
    force = bool(request.flags & ShutdownFlag.FORCE)
    return ShutdownOrder(action, force, request.reason, request.timeout, request.text)


Drain = Callable[[ShutdownOrder, float], Steps[None]]
"""What is done before the machine goes down, until this monotonic time at the latest; what it raises stops nothing."""


class Shutdown(IntegrationService[ShutdownRequest]):
    """The host is told OK when it is certain that the machine goes down, and that is held up until it was told.

    ``drain`` comes before, then ``on_request``, which hears of every order that is carried out.  A program's lock is
    waited for until the host's own deadline.  ``patience``: seconds for ``drain`` when the host names no deadline.
    """

    name = "shutdown"
    kind = MessageType.SHUTDOWN
    frameworks = FRAMEWORKS
    versions = VERSIONS
    minimum = SIZE
    answers_unknown = True
    in_place = True

    def __init__(
        self,
        power: Power,
        on_request: Callable[[ShutdownOrder], None] | None = None,
        *,
        drain: Drain | None = None,
        patience: float = PATIENCE,
    ) -> None:
        super().__init__()
        self._power = power
        self._on_request = on_request
        self._drain = drain
        self._patience = patience
        self._begun: Begun | None = None

    def adopt(self, fresh: Shutdown) -> None:
        # An order that is under way has its own hold on the power that carries it out.
        self._power, self._on_request = inherited(fresh._power, self._power), fresh._on_request
        self._drain, self._patience = fresh._drain, fresh._patience

    def decode(self, request: Request) -> ShutdownRequest:
        return ShutdownRequest.decode(request.body)

    def handle(self, message: ShutdownRequest) -> Result:
        order = order_of(message)
        if order is None:
            raise UnknownOperationError(f"shutdown flags {message.flags:#x} mean nothing")
        return steps(self._on_record(order, self._carry_out(order, time.monotonic())))

    def reset(self) -> None:
        super().reset()
        self._let_go()  # the answer will not leave any more, and what was begun goes on

    def _on_record(self, order: ShutdownOrder, work: Steps[Response]) -> Steps[Response]:
        try:
            return (yield from work)
        except GeneratorExit:
            what = f"{order.action.value}: nobody waits for the answer any more; what was begun goes on"
            self.record(EventKind.CANCELLED, what, **facts_of(order), result="cancelled")
            raise

    def _carry_out(self, order: ShutdownOrder, asked_at: float) -> Steps[Response]:
        obstacle = self._obstacle(order)
        while obstacle is not None:
            left = asked_at + order.timeout - time.monotonic()
            if left <= 0 or getattr(obstacle, "reason", None) is not Reason.INHIBITED:
                reason = obstacle.reason if isinstance(obstacle, Obstacle) else Reason.NOT_SUPPORTED
                error = EffectError(obstacle, reason=reason)
                self.record_failure(order.action.value, error, facts_of(order), EventKind.REFUSED)
                return Response(Status.FAIL)
            yield Wait(time.monotonic() + min(left, _LOOK_EVERY))
            obstacle = self._obstacle(order)
        self.record(
            EventKind.ASKED, f"{order.action.value}: {order.text!r}", **facts_of(order), result="accepted"
        )
        if self._drain is not None:
            yield from self._drained(self._drain, order, asked_at + (order.timeout or self._patience))
        on_request = self._on_request
        if on_request is not None:
            self.attempt("on_request", lambda: on_request(order))
        what = order.action.value
        try:
            outcome = self._power.act(order)
            begun = (yield from awaited(outcome)) if isinstance(outcome, Pending) else outcome
        except Exception as error:  # of an embedder's own, too
            kind = EventKind.REFUSED if reason_of(error) is Reason.INHIBITED else EventKind.FAILED
            self.record_failure(what, error, facts_of(order), kind)
            return Response(error_status(error))
        self._let_go()  # a lock for an earlier order, whose answer did not leave
        self._begun = begun
        self.worked(what)
        self.record(EventKind.CHANGED, f"{what}: under way", **facts_of(order), result="begun")
        return Response(then=self._let_go)

    def _drained(self, drain: Drain, order: ShutdownOrder, until: float) -> Steps[None]:
        try:
            yield from drain(order, until)
        except Exception as error:
            self.note("drain", error)
        else:
            self.worked("drain")

    def _let_go(self) -> None:
        begun, self._begun = self._begun, None
        if begun is not None:
            self.attempt("let go", begun)

    def _obstacle(self, order: ShutdownOrder) -> str | None:
        if isinstance(self._power, KnowsObstacles):
            return self._power.obstacle(order)
        return None if self._power.supports(order.action) else "not possible here"


def facts_of(order: ShutdownOrder) -> dict[str, str | int | bool]:
    """For the record: ``deadline`` is in seconds, ``code`` one of Windows', ``text`` the host's."""
    return {
        "action": order.action.value,
        "force": order.force,
        "code": f"{order.reason:#010x}",
        "code_says": shutdown_reason.words(order.reason),
        "deadline": order.timeout,
        "text": order.text,
    }
