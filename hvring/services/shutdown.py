# SPDX-License-Identifier: Apache-2.0
"""Shutdown: the answer first, the action after it (PROTOCOL §4.1)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from hvring.guest.power import PowerAction, ShutdownOrder
from hvring.ic.frame import MessageType, Request, Status
from hvring.ic.negotiate import Negotiated
from hvring.ic.shutdown import FRAMEWORKS, SIZE, VERSIONS, ShutdownFlag, ShutdownRequest
from hvring.services.intake import Intake
from hvring.services.service import Answer, Counters, Reply

if TYPE_CHECKING:
    from hvring.guest.power import Power

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


class Shutdown:
    """``on_request`` hears of every accepted order, after the answer and before the action."""

    name = "shutdown"

    def __init__(self, power: Power, on_request: Callable[[ShutdownOrder], None] | None = None) -> None:
        self._power = power
        self._on_request = on_request
        self._intake = Intake(MessageType.SHUTDOWN, FRAMEWORKS, VERSIONS, minimum=SIZE, answer_unknown=True)

    @property
    def counters(self) -> Counters:
        return self._intake.counters

    @property
    def negotiated(self) -> Negotiated | None:
        return self._intake.negotiated

    @property
    def last_error(self) -> Exception | None:
        return self._intake.last_error

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._order)

    def reset(self) -> None:
        self._intake.negotiated = None

    def deadline(self) -> float | None:
        return None

    def tick(self) -> None:
        pass

    def _order(self, request: Request) -> Reply:
        order = order_of(ShutdownRequest.decode(request.body))
        if order is None:
            self.counters.unknown_operation += 1
            return Reply(request.answer(Status.FAIL))
        if not self._power.supports(order.action):
            return Reply(request.answer(Status.FAIL))
        return Reply(request.answer(), then=lambda: self._act(order))

    def _act(self, order: ShutdownOrder) -> None:
        on_request = self._on_request
        if on_request is not None:
            self._intake.attempt(lambda: on_request(order))
        self._intake.attempt(lambda: self._power.act(order))
