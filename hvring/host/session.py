# SPDX-License-Identifier: Apache-2.0
"""The host's conversation with the guest of one service: one request at a time, every reply checked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from hvring.errors import (
    HvringError,
    MessageError,
    PacketTooLargeError,
    ReplyError,
    RingFullError,
)
from hvring.host.errors import HostError, NoAnswerError, NotReadyError
from hvring.host.events import Event, Kind
from hvring.host.link import Link, Packet
from hvring.host.measure import Measure
from hvring.host.offers import DIALECTS
from hvring.host.reply import judge
from hvring.host.timing import Timing
from hvring.ic import Frame, MessageType, Negotiated, NegotiateReply, NegotiateRequest
from hvring.ic.frame import NO_VERSION
from hvring.vmbus.packets import PacketType

_GRACE: Final = 0.1  # seconds that may lie between a guest's publishing and its signalling
_REMEMBERED: Final = 64  # unanswered requests whose late answers are still known
_NOTHING_AGREED: Final = Negotiated(NO_VERSION, NO_VERSION)

_log = logging.getLogger("hvring.host")
T = TypeVar("T")


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


class Session:
    """What the host knows of one service, and how it asks the guest.

    ``tell`` gets events; ``accuse(request, what)`` gets broken rules; ``drop()`` is called when the channel
    cannot be used any more. ``background`` runs while a guest is attached and has agreed to a version.
    """

    def __init__(
        self,
        name: str,
        timing: Timing,
        *,
        tell: Callable[[Event], None],
        accuse: Callable[[str, str], None],
        drop: Callable[[], None],
    ) -> None:
        self.name = name
        self.dialect = DIALECTS[name]
        self.timing = timing
        self.accuse = accuse
        self.link: Link | None = None
        self.negotiated: Negotiated | None = None
        self.failure: str | None = None  # why negotiation came to nothing
        self.measure = Measure()
        self.background: Callable[[], Awaitable[None]] | None = None
        self.lock = asyncio.Lock()
        self.tap: Callable[[Packet], None] | None = None  # gets every packet instead of this session
        self._tell, self._drop = tell, drop
        self._ready = asyncio.Event()
        self._serial = 0
        self._asked: _Asked | None = None
        self._late: dict[int, _Asked] = {}
        self._given_up: _Asked | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def tell(self, kind: Kind, text: str) -> None:
        """Report an event of this service."""
        self._tell(Event(kind, self.name, text))

    # ---------------------------------------------------------------------------------- attaching

    def opened(self, link: Link) -> None:
        """A guest attached: negotiate, then start what runs in the background."""
        self.link = link
        self.failure = None
        self._spawn(self._begin())

    def closed(self, why: str) -> None:
        """The guest is gone, or the channel was taken back; whoever waits for an answer hears ``why``."""
        link = self.link
        if link is None:
            return
        link.close()  # an answer may be the last thing that a guest sends
        self.link = self.negotiated = None
        self._ready.clear()
        for task in self._tasks:
            task.cancel()
        self._late.clear()
        if self._asked is not None and not self._asked.answer.done():
            self._asked.answer.set_exception(
                NotReadyError(f"{self.name}: {why} during {self._asked.request}")
            )
        if self._given_up is not None:
            self._given_up.settle()

    async def finished(self) -> None:
        """Wait for the background to end after :meth:`closed`."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def wait_ready(self) -> Negotiated:
        """Until a guest is attached and has agreed to a version."""
        while self.negotiated is None:
            await self._ready.wait()
        return self.negotiated

    async def renegotiate(self) -> Negotiated:
        """Negotiate once more, as hosts do at any time, and start the background anew."""
        for task in self._tasks:
            task.cancel()
        await self.finished()
        agreed = await self._negotiate()
        self._start_background()
        return agreed

    async def _begin(self) -> None:
        try:
            await self._negotiate()
        except (HostError, MessageError):  # told and, where a rule was broken, listed
            return
        self._start_background()

    def _start_background(self) -> None:
        if self.background is not None and self.link is not None:
            self._spawn(self.background())

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("%s: the background ended: %r", self.name, error, exc_info=error)

    async def _negotiate(self) -> Negotiated:
        offer = NegotiateRequest(self.dialect.frameworks, self.dialect.versions)
        async with self.lock:
            link, self.negotiated = self.link, None
            self._ready.clear()
            try:
                reply = await self._exchange(
                    "negotiation",
                    MessageType.NEGOTIATE,
                    offer.encode(),
                    _NOTHING_AGREED,
                    self.timing.negotiation,
                )
                agreed = self.parse("negotiation", reply, NegotiateReply.decode)
                if agreed.framework not in offer.frameworks or agreed.version not in offer.versions:
                    what = f"chose versions that were not offered: {agreed.framework}, {agreed.version}"
                    self.accuse("negotiation", what)
                    raise ReplyError(f"{self.name}: negotiation: the guest {what}")
                if reply.status:
                    self.accuse("negotiation", f"status {reply.status:#010x} in an answer that agrees")
                if self.link is not link:  # the answer was the last thing it did
                    raise NotReadyError(f"{self.name}: the guest left after negotiation")
            except (HostError, MessageError) as error:
                self.failure = str(error)
                if self.link is not None:
                    self.tell("failed", f"negotiation failed: {error}")
                raise
            self.negotiated = Negotiated(agreed.framework, agreed.version)
            self.failure = None
            self._ready.set()
            self.tell("negotiated", f"negotiated framework {agreed.framework}, version {agreed.version}")
            return self.negotiated

    # ---------------------------------------------------------------------------------- asking

    async def ask(
        self, request: str, body: bytes, *, timeout: float | None = None, limit: float | None = None
    ) -> Frame:
        """Send one request and return its checked reply, whatever its status.

        ``limit``: seconds after which an answer breaks the rules, by default ``timing.answer``;
        ``timeout``: how long this caller waits, by default as long. Raises NotReadyError, NoAnswerError,
        ReplyError. When it is cancelled, the next request still waits for the answer to this one.
        """
        async with self.lock:
            agreed = self.require()
            return await self._exchange(
                request,
                self.dialect.type,
                body,
                agreed,
                self.timing.answer if limit is None else limit,
                timeout,
            )

    def require(self) -> Negotiated:
        """The versions in force; NotReadyError says why there are none."""
        if self.negotiated is not None:
            return self.negotiated
        if self.link is None:
            raise NotReadyError(
                f"{self.name}: no guest is attached: start one with `hvring run {self.name} --virtual PATH`"
            )
        why = self.failure or "negotiation is not finished"
        raise NotReadyError(f"{self.name}: the guest is not ready: {why}")

    def parse(self, request: str, reply: Frame, decode: Callable[[bytes], T]) -> T:
        """Decode the body of a reply; a body that breaks the rules is listed and raises ReplyError."""
        try:
            return decode(reply.body)
        except MessageError as error:
            self.accuse(request, str(error))
            raise ReplyError(f"{self.name}: {request}: {error}") from error

    async def _exchange(
        self,
        request: str,
        message_type: MessageType,
        body: bytes,
        agreed: Negotiated,
        limit: float,
        timeout: float | None = None,
    ) -> Frame:
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
            self.accuse(asked.request, "the answer is in the ring but the guest did not signal it")
            link.look()
            if asked.answer.done():
                return
        read = "did not even read the request" if link.unread() else "read the request and did not answer"
        what = f"no answer within {timeout:g} s, the guest {read}"
        if timeout >= asked.limit:
            self.accuse(asked.request, what)
        asked.answer.set_exception(NoAnswerError(f"{self.name}: {asked.request}: {what}"))

    # ---------------------------------------------------------------------------------- hearing

    def received(self, packet: Packet) -> None:
        """Called by the link for every packet."""
        if self.tap is not None:
            self.tap(packet)
            return
        if packet.type != PacketType.IN_BAND:
            self.accuse(
                "packet", f"packet type {packet.type}, integration services use {PacketType.IN_BAND:d}"
            )
            return
        now = asyncio.get_running_loop().time()
        asked = self._asked
        if (late := self._find_late(packet)) is not None:
            self._answered_late(late, now - late.sent_at)
            return
        if asked is None or asked.answered or not asked.sent_at:
            self.accuse("packet", f"an answer of {len(packet.payload)} bytes that no request waits for")
            return
        asked.answered = True
        verdict = judge(packet, asked.frame, asked.transaction_id)
        for complaint in verdict.complaints:
            self.accuse(asked.request, complaint)
        self.measure.record(asked.size, len(packet.payload), now - asked.sent_at)
        if asked.answer.done():  # the time is over at this very moment, or the caller has just gone
            return
        if verdict.frame is not None:
            asked.answer.set_result(verdict.frame)
        else:
            asked.answer.set_exception(ReplyError(f"{self.name}: {asked.request}: {verdict.complaints[0]}"))

    def needless(self, count: int) -> None:
        """Called by the link for signals that no rule allows."""
        request = self._asked.request if self._asked is not None else "idle"
        self.accuse(request, f"needless signal, {count} more than the rules allow")

    def broken(self, error: HvringError) -> None:
        """Called by the link when the guest corrupted a ring."""
        self.accuse("ring", str(error))
        self._drop()

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
            self.accuse(asked.request, f"late answer, after {seconds:.1f} s")
