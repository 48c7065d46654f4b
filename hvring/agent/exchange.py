# SPDX-License-Identifier: Apache-2.0
"""One channel and one service: packets in, answers out, nothing lost when the ring is full."""

from __future__ import annotations

import logging
import time
from typing import Final

from hvring.channel import Channel
from hvring.errors import PacketTooLargeError, RingFullError
from hvring.ring import Packet
from hvring.services import Answer, Later, Reply, Service

log = logging.getLogger("hvring.agent")

BATCH: Final = 64  # packets of one service before the others get their turn,
TURN: Final = 0.001  # or seconds after which no more packets are begun
ROOM_RECHECK: Final = 0.05  # seconds; a host may forget to wake a writer (PROTOCOL §8)


class Exchange:
    """Moves packets between ``channel`` and ``service``; whoever has a loop calls :meth:`pump`.

    One request is answered before the next is read, as the in-tree drivers do (PROTOCOL §3.5): reading waits for an
    answer that finds no room, and for one that takes its time because something is in use.
    """

    def __init__(self, channel: Channel, service: Service) -> None:
        self.channel: Final = channel
        self.service: Final = service
        self.dropped = 0  # answers that no ring of this size can take
        self._held: tuple[Reply, int] | None = None
        self._later: tuple[Later, int, float] | None = None  # and when to ask again, monotonic

    def pump(self, limit: int = BATCH, seconds: float = TURN) -> bool:
        """Answer some packets: ``limit`` at most, and none more after ``seconds``.

        True: call again soon; False: sleep until the channel is readable.

        Raises ChannelRescindedError and RingCorruptError, after which the channel is of no use.
        """
        channel = self.channel
        channel.mask()
        until = time.monotonic() + seconds
        for _ in range(limit):
            if not self._is_answered():
                channel.arm()  # takes the wake-up; what can be read has to wait
                return False
            packet = channel.recv()
            if packet is None:
                if channel.arm() == 0:
                    return False
                channel.mask()
            else:
                self._answer(packet)
                if time.monotonic() >= until:
                    break
        return True

    @property
    def is_blocked(self) -> bool:
        """Whether an answer is on its way for which the host's next request has to wait."""
        return self._held is not None or self._later is not None

    def patience(self) -> float | None:
        """Seconds from now until :meth:`pump` and the service's ``tick`` must be called without any packet."""
        waits = [self.service.deadline()]
        if self._held is not None:
            waits.append(ROOM_RECHECK)
        if self._later is not None:
            waits.append(max(0.0, self._later[2] - time.monotonic()))
        return min((wait for wait in waits if wait is not None), default=None)

    def _is_answered(self) -> bool:
        """Whether the next request may be read: does what is left to do for the one before, if it can be done."""
        if self._later is not None and not self._ask_again():
            return False
        return self._held is None or self._send_held()

    def _answer(self, packet: Packet) -> None:
        self._take(self.service.receive(packet.payload), packet.transaction_id)

    def _take(self, answer: Answer, transaction_id: int) -> None:
        if isinstance(answer, Later):
            self._later = (answer, transaction_id, time.monotonic() + answer.seconds)
        elif answer is not None:
            self._held = (answer, transaction_id)
            self._send_held()

    def _ask_again(self) -> bool:
        """False: it is too early, or what the request needs is still in use."""
        assert self._later is not None
        later, transaction_id, due = self._later
        if time.monotonic() < due:
            return False
        self._later = None
        self._take(later.again(), transaction_id)
        return self._later is None

    def _send_held(self) -> bool:
        """False: there is no room; the host was asked for it."""
        assert self._held is not None
        reply, transaction_id = self._held
        try:
            try:
                self.channel.send(reply.payload, transaction_id=transaction_id)
            except PacketTooLargeError:
                raise
            except RingFullError:
                if not self.channel.want_room(len(reply.payload)):
                    return False
                self.channel.send(
                    reply.payload, transaction_id=transaction_id
                )  # there was room a moment later
        except PacketTooLargeError:
            self.dropped += 1
            log.error(
                "%s: an answer of %d bytes does not fit into the ring", self.service.name, len(reply.payload)
            )
        self._held = None
        if reply.then is not None:
            reply.then()
        return True
