# SPDX-License-Identifier: Apache-2.0
"""Heartbeat: every number comes back one higher (PROTOCOL §4.3)."""

from __future__ import annotations

from collections.abc import Callable

from hvring.ic.frame import MessageType, Request
from hvring.ic.heartbeat import FRAMEWORKS, MINIMUM, STATE_END, VERSIONS, ApplicationState
from hvring.ic.heartbeat import Heartbeat as Beat
from hvring.ic.negotiate import Negotiated
from hvring.services.intake import Intake
from hvring.services.service import Answer, Counters, Reply


class Heartbeat:
    """``health`` says how the applications are; without it the host's state field is echoed, as in Linux.

    A ``health`` that raises counts as CRITICAL and never stops the beat.
    """

    name = "heartbeat"

    def __init__(self, health: Callable[[], ApplicationState] | None = None) -> None:
        self._health = health
        self._intake = Intake(
            MessageType.HEARTBEAT, FRAMEWORKS, VERSIONS, minimum=MINIMUM, answer_unknown=True
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

    def receive(self, payload: bytes) -> Answer:
        return self._intake.receive(payload, self._beat)

    def reset(self) -> None:
        self._intake.negotiated = None

    def deadline(self) -> float | None:
        return None

    def tick(self) -> None:
        pass

    def _beat(self, request: Request) -> Reply:
        body = request.body
        answer = Beat.decode(body).next().encode()[: len(body)]
        # The state may be missing, and what is there then is rounding, not a field.
        if self._health is not None and min(len(body), request.body_size) >= STATE_END:
            answer = answer[:MINIMUM] + self._state().to_bytes(4, "little") + answer[STATE_END:]
        return Reply(request.answer(body=answer))

    def _state(self) -> ApplicationState:
        assert self._health is not None
        try:
            return ApplicationState(self._health())
        except Exception as error:
            self._intake.note(error)
            return ApplicationState.CRITICAL
