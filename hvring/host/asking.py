# SPDX-License-Identifier: Apache-2.0
"""Asking a guest: one request at a time, a time limit for each, and every answer checked, late ones too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvring.errors import PacketTooLargeError, ReplyError, RingFullError
from hvring.host.errors import HostError, NoAnswerError, NotReadyError
from hvring.host.latency import LatencyHistogram
from hvring.host.link import Link, Packet
from hvring.host.reply import judge
from hvring.ic import Frame, MessageType, Negotiated
from hvring.vmbus.packets import PacketType

_GRACE: Final = 0.1  # seconds that may lie between a guest's publishing and its signalling
_REMEMBERED: Final = 64  # unanswered requests whose late answers are still known


@dataclass(slots=True, eq=False)
class _Asked:
    """A request on its way."""

    request: str  # for people
    frame: Frame
    transaction_id: int  # of the ring descriptor
    limit: float  # seconds that the rules give the guest
    answer: asyncio.Future[Frame]
    settled: asyncio.Event | None = None  # set when the answer to a request that was given up came
    sent_at: float = 0.0  # 0: not on the ring yet
    size: int = 0
    answered: bool = False

    def settle(self) -> None:
        """Whoever waits for the answer to a request that was given up may go on."""
        if self.settled is not None:
            self.settled.set()


class Asker:
    """Requests and answers of one service; the caller sees to it that there is one :meth:`ask` at a time.

    ``violation(request, what)`` gets broken rules.  ``latency`` has the numbers of all answered requests.
    """

    def __init__(self, name: str, violation: Callable[[str, str], None]) -> None:
        self.name = name
        self.latency = LatencyHistogram()
        self.link: Link | None = None
        self._violation = violation
        self._serial = 0
        self._asked: _Asked | None = None
        self._late: dict[int, _Asked] = {}
        self._given_up: _Asked | None = None

    def closed(self, why: str) -> None:
        """The link is gone; whoever waits for an answer hears ``why``."""
        self.link = None
        self._late.clear()
        if self._asked is not None and not self._asked.answer.done():
            self._asked.answer.set_exception(
                NotReadyError(f"{self.name}: {why} during {self._asked.request}")
            )
        if self._given_up is not None:
            self._given_up.settle()

    @property
    def under_way(self) -> str | None:
        """The request whose answer is waited for, for people."""
        return None if self._asked is None else self._asked.request

    # ---------------------------------------------------------------------------------- asking

    async def ask(
        self,
        request: str,
        message_type: MessageType,
        body: bytes,
        agreed: Negotiated,
        limit: float,
        timeout: float | None = None,
    ) -> Frame:
        """The checked answer to one request; times as for ``Session.ask``.

        Raises NotReadyError, NoAnswerError, ReplyError, and HostError for a request that fits no ring.
        """
        await self._settle()
        link = self.link
        if link is None:
            raise NotReadyError(f"{self.name}: no guest is attached")
        loop = asyncio.get_running_loop()
        self._serial += 1
        # The byte that is the transaction's number changes, to find out who does not echo it.
        frame = Frame(message_type, body, agreed.framework, agreed.version, 0, self._serial & 0xFF)
        asked = _Asked(request, frame, self._serial, limit, loop.create_future())
        self._asked = asked
        timeout = limit if timeout is None else timeout
        try:
            await self._put(link, asked, timeout)
            timer = loop.call_later(timeout, self._overdue, link, asked, timeout)
            try:
                return await asked.answer
            finally:
                timer.cancel()
        except asyncio.CancelledError:
            if asked.sent_at and not asked.answered and self.link is link:
                asked.settled = asyncio.Event()
                self._given_up = asked
            raise
        finally:
            self._asked = None
            if asked.sent_at and not asked.answered and self.link is link:
                self._late[asked.transaction_id] = asked
                if len(self._late) > _REMEMBERED:
                    del self._late[next(iter(self._late))]
            # An error that came through the answer keeps this frame, and the frame would keep the error and the memory
            # of the channel until the next collection: a guest that leaves often would use the descriptors up.
            del asked, link

    async def _put(self, link: Link, asked: _Asked, timeout: float) -> None:
        payload = asked.frame.encode()
        asked.size = len(payload)
        asked.sent_at = asyncio.get_running_loop().time()  # before: the answer may come at once
        try:
            try:
                link.send(payload, transaction_id=asked.transaction_id)
            except PacketTooLargeError:
                raise
            except RingFullError:
                async with asyncio.timeout(timeout):
                    await link.send_when_room(payload, transaction_id=asked.transaction_id)
        except BaseException as error:
            asked.sent_at = 0.0
            if isinstance(error, TimeoutError):
                raise NoAnswerError(
                    f"{self.name}: the guest made no room for {asked.request} in {timeout:g} s"
                )
            if isinstance(error, NotReadyError):
                raise NotReadyError(f"{self.name}: {error}")
            if isinstance(error, PacketTooLargeError):
                raise HostError(f"{self.name}: {asked.request}: {error}")
            raise

    async def _settle(self) -> None:
        """A request that was given up still occupies the guest; it has the time that it would have had."""
        asked, self._given_up = self._given_up, None
        if asked is None or asked.settled is None:
            return
        left = asked.sent_at + asked.limit - asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(left):
                await asked.settled.wait()
        except TimeoutError:
            pass
        except asyncio.CancelledError:
            self._given_up = asked
            raise

    def _overdue(self, link: Link, asked: _Asked, timeout: float, suspect: bool = False) -> None:
        if asked.answer.done():
            return
        if link.silent():
            if not suspect:
                loop = asyncio.get_running_loop()
                loop.call_later(_GRACE, self._overdue, link, asked, timeout, True)
                return
            self._violation(asked.request, "the answer is in the ring but the guest did not signal it")
            link.look()
            if asked.answer.done():
                return
        read = "did not even read the request" if link.unread() else "read the request and did not answer"
        what = f"no answer within {timeout:g} s, the guest {read}"
        if timeout >= asked.limit:
            self._violation(asked.request, what)
        asked.answer.set_exception(NoAnswerError(f"{self.name}: {asked.request}: {what}"))

    # ---------------------------------------------------------------------------------- hearing

    def received(self, packet: Packet) -> None:
        """A packet from the guest: the answer, a late one, or a broken rule."""
        if packet.type != PacketType.IN_BAND:
            self._violation(
                "packet", f"packet type {packet.type}, integration services use {PacketType.IN_BAND:d}"
            )
            return
        now = asyncio.get_running_loop().time()
        asked = self._asked
        if (late := self._find_late(packet)) is not None:
            self._answered_late(late, now - late.sent_at)
            return
        if asked is None or asked.answered or not asked.sent_at:
            self._violation("packet", f"an answer of {len(packet.payload)} bytes that no request waits for")
            return
        asked.answered = True
        verdict = judge(packet, asked.frame, asked.transaction_id)
        for complaint in verdict.complaints:
            self._violation(asked.request, complaint)
        self.latency.record(asked.size, len(packet.payload), now - asked.sent_at)
        if asked.answer.done():  # the time is over at this very moment, or the caller has just gone
            return
        if verdict.frame is not None:
            asked.answer.set_result(verdict.frame)
        else:
            asked.answer.set_exception(ReplyError(f"{self.name}: {asked.request}: {verdict.complaints[0]}"))

    def _find_late(self, packet: Packet) -> _Asked | None:
        """The given-up request that this answers, by its descriptor's id or else by the IC's."""
        late = self._late.pop(packet.transaction_id, None)
        asked = self._asked
        if late is not None or (asked is not None and packet.transaction_id == asked.transaction_id):
            return late
        echoed = packet.payload[24] if len(packet.payload) > 24 else -1
        if asked is not None and echoed == asked.frame.transaction_id:
            return None
        for serial, candidate in self._late.items():
            if candidate.frame.transaction_id == echoed:
                return self._late.pop(serial)
        return None

    def _answered_late(self, asked: _Asked, seconds: float) -> None:
        asked.answered = True
        asked.settle()
        if seconds > asked.limit:
            self._violation(asked.request, f"late answer, after {seconds:.1f} s")
