# SPDX-License-Identifier: Apache-2.0
"""The host's conversation with the guest of one service, from attaching and negotiation to the end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from hvring.errors import HvringError, MessageError, ReplyError
from hvring.events import EventKind
from hvring.host.asking import Asker
from hvring.host.errors import HostError, NotReadyError
from hvring.host.latency import LatencyHistogram
from hvring.host.link import Link, Packet
from hvring.host.offers import message_type, offer
from hvring.host.reports import Reports
from hvring.host.timing import Timing
from hvring.ic import Frame, MessageType, Negotiated, NegotiateReply
from hvring.ic.frame import NO_VERSION

_NOTHING_AGREED: Final = Negotiated(NO_VERSION, NO_VERSION)

_log = logging.getLogger("hvring.host")
T = TypeVar("T")


class Session:
    """What the host knows of one service, and how it asks the guest.

    ``drop()`` is called when the channel cannot be used any more.  ``background`` runs while a guest is attached and
    has agreed to a version.  ``tap`` gets every packet instead of this session while it is set.
    """

    def __init__(self, name: str, timing: Timing, reports: Reports, drop: Callable[[], None]) -> None:
        self.name = name
        self.timing = timing
        self.negotiated: Negotiated | None = None
        self.failure: str | None = None  # why negotiation came to nothing
        self.background: Callable[[], Awaitable[None]] | None = None
        self.lock = asyncio.Lock()
        self.tap: Callable[[Packet], None] | None = None
        self._asker = Asker(name, self.violation)
        self._reports, self._drop = reports, drop
        self._ready = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def link(self) -> Link | None:
        """The open channel."""
        return self._asker.link

    @property
    def latency(self) -> LatencyHistogram:
        """The numbers of all answered requests."""
        return self._asker.latency

    @property
    def state(self) -> str:
        """``ready``, ``waiting`` for a guest, ``failed`` to negotiate, or ``attached``, not yet more."""
        if self.negotiated is not None:
            return "ready"
        if self.link is None:
            return "waiting"
        return "failed" if self.failure else "attached"

    def tell(self, kind: EventKind, detail: str = "") -> None:
        """Report an event of this service."""
        self._reports.tell(self.name, kind, detail)

    def violation(self, request: str, what: str) -> None:
        """Report that the guest broke a rule."""
        self._reports.violation(self.name, request, what)

    def failed(self, what: str, error: Exception) -> None:
        """Report that ``what`` failed, unless it failed in the same way the last time."""
        self._reports.failed(self.name, what, error)

    def worked(self, what: str) -> None:
        """The next failure of ``what`` is news again."""
        self._reports.worked(self.name, what)

    # ---------------------------------------------------------------------------------- attaching

    def opened(self, link: Link) -> None:
        """A guest attached: negotiate, then start what runs in the background."""
        self._asker.link = link
        self.failure = None
        self._spawn(self._begin())

    def closed(self, why: str) -> None:
        """The guest is gone, or the channel was taken back; whoever waits for an answer hears ``why``."""
        if self.link is None:
            return
        self.link.close()  # an answer may be the last thing that a guest sends
        self.negotiated = None
        self._ready.clear()
        for task in self._tasks:
            task.cancel()
        self._asker.closed(why)

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
        offered = offer(self.name)
        async with self.lock:
            link, self.negotiated = self.link, None
            self._ready.clear()
            try:
                reply = await self._asker.ask(
                    "negotiation",
                    MessageType.NEGOTIATE,
                    offered.encode(),
                    _NOTHING_AGREED,
                    self.timing.negotiation,
                )
                agreed = self.parse("negotiation", reply, NegotiateReply.decode)
                if agreed.framework not in offered.frameworks or agreed.version not in offered.versions:
                    what = f"chose versions that were not offered: {agreed.framework}, {agreed.version}"
                    self.violation("negotiation", what)
                    raise ReplyError(f"{self.name}: negotiation: the guest {what}")
                if reply.status:
                    self.violation("negotiation", f"status {reply.status:#010x} in an answer that agrees")
                if self.link is not link:  # the answer was the last thing it did
                    raise NotReadyError(f"{self.name}: the guest left after negotiation")
            except (HostError, MessageError) as error:
                self.failure = str(error)
                if self.link is not None:
                    self.tell(EventKind.FAILED, f"negotiation failed: {error}")
                raise
            self.negotiated = Negotiated(agreed.framework, agreed.version)
            self.failure = None
            self._ready.set()
            self.tell(EventKind.NEGOTIATED, f"framework {agreed.framework}, version {agreed.version}")
            return self.negotiated

    # ---------------------------------------------------------------------------------- asking

    async def ask(
        self, request: str, body: bytes, *, timeout: float | None = None, limit: float | None = None
    ) -> Frame:
        """Send one request and return its checked reply, whatever its status.

        ``limit``: seconds after which an answer breaks the rules, by default ``timing.answer``; ``timeout``: how long
        this caller waits, by default as long.  Raises NotReadyError, NoAnswerError, ReplyError.  When it is cancelled,
        the next request still waits for the answer to this one.
        """
        async with self.lock:
            agreed = self.require()
            return await self._asker.ask(
                request,
                message_type(self.name),
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
            self.violation(request, str(error))
            raise ReplyError(f"{self.name}: {request}: {error}") from error

    # ---------------------------------------------------------------------------------- hearing

    def received(self, packet: Packet) -> None:
        """Called by the link for every packet."""
        if self.tap is not None:
            self.tap(packet)
        else:
            self._asker.received(packet)

    def needless(self, count: int) -> None:
        """Called by the link for signals that no rule allows."""
        self.violation(self._asker.under_way or "idle", f"needless signal, {count} more than the rules allow")

    def broken(self, error: HvringError) -> None:
        """Called by the link when the guest corrupted a ring."""
        self.violation("ring", str(error))
        self._drop()
