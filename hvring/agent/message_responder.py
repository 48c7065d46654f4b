# SPDX-License-Identifier: Apache-2.0
"""One channel of messages and one service, within the patience of the kernel that is between them and the host."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from hvring.agent.channel import MessageChannel, ServiceChannel
from hvring.agent.responder import BATCH, TURN, Responder
from hvring.agent.stay import NEVER, PollingLook, Stay
from hvring.errors import EffectError, HvringError
from hvring.pending import Pending, is_due, soonest
from hvring.reasons import Reason
from hvring.services.base import IntegrationService, Response, Result
from hvring.services.service import Service
from hvring.status import Status


class PacketsOnlyError(HvringError):
    """A service that is no IntegrationService on a channel that brings messages."""

    is_final = True


class MessageResponder:
    """As :class:`~hvring.agent.responder.Responder`, without packets (PROTOCOL §10).

    There is one request at a time. One whose answer is too late, because the next one is there or because the kernel is
    about to lose its patience, is broken off: the service hears that nobody waits any more.
    """

    def __init__(
        self,
        channel: MessageChannel,
        service: IntegrationService[Any],
        *,
        stay: Stay = NEVER,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """``stay``: what may be spent on looking for the next message when one was answered."""
        self.channel: Final = channel
        self.service: Final = service
        self._monotonic = monotonic
        self._pending: Pending[Response | None] | None = None
        self._look = PollingLook(stay, monotonic=monotonic) if stay.seconds > 0 else None

    def respond(self, limit: int = BATCH, seconds: float = TURN) -> bool:
        """Answer some requests: ``limit`` at most, and none more after ``seconds``.

        True: call again soon; False: sleep until the channel or one of :meth:`descriptors` is readable. Raises
        ChannelRescindedError, and DeviceFaultError when the kernel does not take an answer: the channel is of no use
        after both.
        """
        until = self._monotonic() + seconds
        has_answered = False
        if self._look is not None:
            self._look.wake(self.channel.has_arrived())
        for _ in range(limit):
            if self.channel.has_arrived():  # so nobody waits for what is pending
                if self._break_off():
                    self._too_late()
            elif self._pending is not None:
                if not self._go_on():
                    return False
                continue
            message = self.channel.recv()
            if message is not None:
                self._take(self.service.respond(message))
                has_answered = True
                if self._monotonic() >= until:
                    break
            elif not (has_answered and self._stay(until - self._monotonic())):
                return False
        return True

    @property
    def way(self) -> str:
        """How requests come here."""
        return "hv_utils"

    @property
    def recheck_every(self) -> float:
        """Seconds after which to look unasked; 0: never."""
        return 0.0

    def recheck(self) -> None:
        """There is nothing that could be missed."""

    @property
    def is_blocked(self) -> bool:
        """Whether an answer is on its way for which the host's next request has to wait."""
        return self._pending is not None

    def timeout(self) -> float | None:
        """Seconds from now until :meth:`respond` and the service's ``tick`` must be called without any message."""
        at = None
        if self._pending is not None:
            at = soonest(self._pending.at, self.channel.answer_by)
        left = None if at is None else max(0.0, at - self._monotonic())
        return soonest(self.service.deadline(), left)

    def descriptors(self) -> set[int]:
        """What must be waited for beside the channel; not to be watched while something is called here."""
        found = {self.service.watch(), -1 if self._pending is None else self._pending.descriptor}
        found.discard(-1)
        return found

    def end(self) -> None:
        """The channel ends: nobody waits for an answer any more, and what was begun is undone."""
        self._break_off()
        self.service.reset()

    def _stay(self, seconds: float) -> bool:
        return self._look is not None and self._look.stay(self.channel.has_arrived, seconds)

    def _go_on(self) -> bool:
        """With what is pending. False: it takes its time."""
        pending, answer_by = self._pending, self.channel.answer_by
        assert pending is not None
        self._pending = None
        if is_due(pending, self._monotonic()):
            self._take(pending.resume())
        elif answer_by is not None and self._monotonic() >= answer_by:
            pending.cancel()
            self.service.note(
                "answer",
                EffectError("it took longer than the kernel waits for an answer", reason=Reason.TOO_SLOW),
            )
            self._answer(Response(Status.FAIL))
        else:
            self._pending = pending
        return self._pending is None

    def _break_off(self) -> bool:
        """What is pending, if something is."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
        return pending is not None

    def _take(self, result: Result) -> None:
        if isinstance(result, Pending):
            self._pending = result
        else:
            # Silence would be a request that is open until the kernel gives up, and in the way of all others.
            self._answer(Response(Status.FAIL) if result is None else result)

    def _answer(self, response: Response) -> None:
        try:
            in_time = self.channel.answer(response.status, response.message)
        except ValueError as error:  # of a service or an effect that is an embedder's own
            self.service.note("answer", error)
            in_time = self.channel.answer(Status.FAIL)
        if not in_time:
            self._too_late()
        elif response.then is not None:
            response.then()

    def _too_late(self) -> None:
        self.service.note(
            "answer",
            EffectError("it was too late: the kernel had given up on the request", reason=Reason.TOO_SLOW),
        )


def responder_for(
    channel: ServiceChannel | MessageChannel, service: Service, stay: Stay = NEVER
) -> Responder | MessageResponder:
    """What serves ``channel``. Raises HvringError for a service that takes nothing but packets."""
    if not isinstance(channel, MessageChannel):
        return Responder(channel, service, stay=stay)
    if not isinstance(service, IntegrationService):
        raise PacketsOnlyError(f"{service.name} answers packets only: serve it over uio or a virtual host")
    return MessageResponder(channel, service, stay=stay)
