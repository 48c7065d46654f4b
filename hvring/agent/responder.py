# SPDX-License-Identifier: Apache-2.0
"""One channel and one service: packets in, answers out, nothing lost when the ring is full."""

from __future__ import annotations

import time
from typing import Any, Final

from hvring.agent.channel import InPlace, ServiceChannel
from hvring.agent.stay import NEVER, Stay, looking
from hvring.channel import ROOM_RECHECK
from hvring.errors import BufferTooSmallError, PacketTooLargeError, RingFullError
from hvring.events import Event, EventKind
from hvring.ic.frame import Inbox, Request
from hvring.pending import Pending, is_due, soonest
from hvring.services.base import IntegrationService, Taken
from hvring.services.service import Answer, Reply, Service

BATCH: Final = 64  # packets of one service before the others get their turn,
TURN: Final = 0.0003  # or seconds after which no more packets are begun


class Responder:
    """Answers what comes over ``channel`` by ``service``; whoever has a loop calls :meth:`respond`.

    One request is answered before the next is read, as the in-tree drivers do (PROTOCOL §3.5): reading waits for an
    answer that finds no room, and for one that takes its time.
    """

    def __init__(self, channel: ServiceChannel, service: Service, *, stay: Stay = NEVER) -> None:
        """``stay``: what may be spent on looking for the next packet when one was answered."""
        self.channel: Final = channel
        self.service: Final = service
        self.dropped = 0  # answers that no ring of this size can take
        # Who copies into an inbox and who answers there, if both can.
        self._in_place: tuple[InPlace, IntegrationService[Any]] | None = None
        if isinstance(channel, InPlace) and isinstance(service, IntegrationService) and service.in_place:
            self._in_place = channel, service
        self._inbox = Inbox()
        self._looks = looking(channel, stay)
        self._held: tuple[Reply | Request, int] | None = None
        self._pending: tuple[Pending[Reply | Request | None] | Pending[Reply | None], int] | None = None

    def respond(self, limit: int = BATCH, seconds: float = TURN) -> bool:
        """Answer some packets: ``limit`` at most, and none more after ``seconds``.

        True: call again soon; False: sleep until the channel or one of :meth:`descriptors` is readable.

        Raises ChannelRescindedError and RingCorruptError, after which the channel is of no use.
        """
        channel = self.channel
        channel.mask()
        monotonic = time.monotonic
        until = monotonic() + seconds
        has_answered = False
        for _ in range(limit):
            if (self._held is not None or self._pending is not None) and not self._is_answered():
                channel.arm()  # takes the wake-up; what can be read has to wait
                if self._held is not None and not channel.wants_room:
                    continue  # the room that an answer waits for came meanwhile
                return False
            if self._answer_next():
                has_answered = True
                if monotonic() >= until:
                    break
            elif not (has_answered and self._looks is not None and self._looks.stay(until - monotonic())):
                if channel.arm() == 0:
                    return False
                channel.mask()
        return True

    @property
    def way(self) -> str:
        """How requests come here."""
        return "rings"

    @property
    def recheck_every(self) -> float:
        """Seconds after which to look unasked; 0: never."""
        return self.channel.recheck_every

    def recheck(self) -> None:
        """The kernel may have lost a wake-up."""
        if not self.channel.closed:
            self.channel.recheck()

    @property
    def is_blocked(self) -> bool:
        """Whether an answer is on its way for which the host's next request has to wait."""
        return self._held is not None or self._pending is not None

    def timeout(self) -> float | None:
        """Seconds from now until :meth:`respond` and the service's ``tick`` must be called without any packet."""
        if self._held is None and self._pending is None:
            return self.service.deadline()
        for_room = for_answer = None
        # A host may forget to wake a writer (PROTOCOL §8).
        if self._held is not None:
            for_room = ROOM_RECHECK if self.channel.wants_room else 0.0
        if self._pending is not None:
            for_answer = max(0.0, self._pending[0].at - time.monotonic())
        return soonest(self.service.deadline(), for_room, for_answer)

    def descriptors(self) -> set[int]:
        """What must be waited for beside the channel; not to be watched while something is called here."""
        watched = self.service.watch()
        if self._pending is None:
            return {watched} if watched >= 0 else set()
        found = {watched, self._pending[0].descriptor}
        found.discard(-1)
        return found

    def end(self) -> None:
        """The channel ends: nobody waits for an answer any more, and what was begun is undone."""
        pending, self._pending, self._held = self._pending, None, None
        if pending is not None:
            pending[0].cancel()
        self.service.reset()

    def _is_answered(self) -> bool:
        """Whether the next request may be read: does what is left to do for the one before, if it can be done."""
        if self._pending is not None:
            pending, transaction_id = self._pending
            self._pending = None
            self._take(pending.resume() if is_due(pending) else pending, transaction_id)
        return self._pending is None and (self._held is None or self._send_held())

    def _answer_next(self) -> bool:
        """False: there is no packet."""
        if self._in_place is None:
            return self._answer_copy()
        channel, service = self._in_place
        inbox = self._inbox
        if inbox.is_held:  # something still looks at the packet before this one
            inbox = self._inbox = Inbox()
        try:
            length = channel.recv_into(inbox)
        except BufferTooSmallError:
            return self._answer_copy()
        if length is None:
            return False
        transaction_id = channel.transaction_id
        answer = service.receive_in(inbox, length)
        if type(answer) is Request and answer.then is None:  # most of them; the same, without a detour
            try:
                channel.send(answer, transaction_id=transaction_id)
                return True
            except RingFullError:
                pass
        self._take(answer, transaction_id)
        return True

    def _answer_copy(self) -> bool:
        packet = self.channel.recv()
        if packet is None:
            return False
        self._take(self.service.receive(packet.payload), packet.transaction_id)
        return True

    def _take(self, answer: Taken | Answer, transaction_id: int) -> None:
        if answer is None:
            return
        if isinstance(answer, Pending):
            self._pending = (answer, transaction_id)
        else:
            self._held = (answer, transaction_id)
            self._send_held()

    def _send_held(self) -> bool:
        """False: there is no room; the host was asked for it."""
        assert self._held is not None
        answer, transaction_id = self._held
        payload: Any = answer.payload if isinstance(answer, Reply) else answer
        try:
            self.channel.send(payload, transaction_id=transaction_id)
        except PacketTooLargeError:
            self._drop(len(payload))
        except RingFullError:
            if not self._send_in_room(payload, transaction_id):
                return False
        self._held = None
        if answer.then is not None:
            answer.then()
        return True

    def _send_in_room(self, payload: Any, transaction_id: int) -> bool:
        """Once there is room: a moment later, or when the host says so."""
        try:
            if not self.channel.want_room(len(payload)):
                return False
            self.channel.send(payload, transaction_id=transaction_id)
        except PacketTooLargeError:
            self._drop(len(payload))
        return True

    def _drop(self, size: int) -> None:
        self.dropped += 1
        if self.dropped == 1 and self.service.on_event is not None:
            what = f"an answer of {size} bytes does not fit into the ring"
            self.service.on_event(Event(self.service.name, EventKind.FAILED, what))
