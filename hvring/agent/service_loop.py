# SPDX-License-Identifier: Apache-2.0
"""One service's life on an event loop: open, serve, lose, open again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from hvring.agent.channel import MessageChannel, Opener, ServiceChannel
from hvring.agent.message_responder import responder_for
from hvring.agent.reporter import Reporter, log
from hvring.agent.stay import NEVER, Stay
from hvring.errors import ChannelRescindedError, HvringError
from hvring.events import Event, EventKind
from hvring.news import News
from hvring.pending import soonest
from hvring.reasons import Reason
from hvring.services.base import IntegrationService
from hvring.services.service import Failure, Service

# Seconds before a channel that broke at once is opened again: doubled each time, up to the last.
FIRST_PAUSE: Final = 0.05
LAST_PAUSE: Final = 5.0
SETTLED: Final = 1.0  # seconds that a channel must have lived to count as good

_FAILURE: Final = tuple(Failure("", Exception(), Reason.FAILED, 0.0).as_dict())


class ServiceLoop:
    """Nothing that the host does ends it: what fails is tried again, with a growing pause."""

    def __init__(self, service: Service, opener: Opener, reporter: Reporter, stay: Stay = NEVER) -> None:
        self.service = service
        self.openings = 0
        self.stopped: str | None = None  # why it is not served any more
        self._open_channel = opener
        self._stay = stay
        self._reporter = reporter
        self._news = News(lambda kind, detail, facts: reporter.tell(Event(service.name, kind, detail, facts)))
        self._failure: tuple[EventKind, str] | None = None  # the last one, as long as it goes on
        self._changed = asyncio.Event()
        self._is_open = False
        self._turns: _Turns | None = None
        self._told: object = None  # the versions, once they are
        self._seen = 0  # requests, until that turn
        self._asked_at: float | None = None

    async def run(self) -> None:
        """Until cancelled, or until the service or its opener has an error of its own."""
        try:
            await self._live()
        except Exception as error:  # of a service or an opener that is an embedder's own, at whatever moment
            is_ours = isinstance(error, HvringError) and error.is_final
            if not is_ours:
                log.exception("%s", self.service.name)
            self._stop(str(error) if is_ours else repr(error))

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        self.service.tick()  # what is useful without a host, such as pools for other programs
        while True:
            since = loop.time()
            try:
                channel = await self._open()
                since = loop.time()
                await self._serve(channel)
            except ChannelRescindedError:
                self._failed(EventKind.RESCINDED, "")
            except (HvringError, OSError) as error:  # of the host, of this machine for a while, or of both
                if isinstance(error, HvringError) and error.is_final:
                    raise
                self._failed(EventKind.BROKEN, str(error))
            if loop.time() - since >= SETTLED:
                self._failure = None
                pause = FIRST_PAUSE
            else:
                pause = min(2 * pause, LAST_PAUSE)
                await self._meanwhile(asyncio.ensure_future(asyncio.sleep(pause - FIRST_PAUSE)))

    async def wait_open(self) -> None:
        """Until the channel is open.  Raises HvringError when it never will be."""
        while not self._is_open:
            if self.stopped is not None:
                raise HvringError(f"{self.service.name} is not served any more: {self.stopped}")
            self._changed.clear()
            await self._changed.wait()

    def stats(self) -> dict[str, Any]:
        """As of :meth:`hvring.agent.agent.Agent.stats`, for this service."""
        negotiated = self.service.negotiated
        channel = None if self._turns is None else self._turns.responder.channel
        asked = self._asked_at
        return {
            "open": self._is_open,
            "openings": self.openings,
            "way": None if self._turns is None else self._turns.responder.way,
            "framework": None if negotiated is None else str(negotiated.framework),
            "version": None if negotiated is None else str(negotiated.version),
            "kernel": None if channel is None else getattr(channel, "greeting", None),
            "last_request_age": None if asked is None else time.monotonic() - asked,
            "trouble": None if self._failure is None else self._failure[1] or self._failure[0].value,
            **_last_failure(self.service),
            "stopped": self.stopped,
            "counters": self.service.counters.as_dict(),
            "failures": dict(self.service.counters.failures),
            "channel": {} if channel is None else channel.stats(),
        }

    async def _open(self) -> ServiceChannel | MessageChannel:
        opening = asyncio.ensure_future(self._open_channel(self.service.name))
        try:
            await self._meanwhile(opening)
            return opening.result()
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            raise

    async def _meanwhile(self, work: asyncio.Future[Any]) -> None:
        """Until ``work`` is done; keeps the service's deadline, for a thaw that has to be tried again."""
        try:
            while not work.done():
                await attend(self.service, [work])
                self._reporter.flush()
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _serve(self, channel: ServiceChannel | MessageChannel) -> None:
        try:
            self._turns = turns = _Turns(channel, self.service, self._after_turn, self._stay)
        except BaseException:
            channel.close()
            raise
        self._told = None
        self.openings += 1
        self.service.reset()
        self._tell(EventKind.OPENED, "by hv_utils" if isinstance(channel, MessageChannel) else "")
        self._is_open = True
        self._changed.set()
        try:
            await turns.run()
        finally:
            self._is_open = False
            channel.close()
            self._reporter.flush()

    def _after_turn(self) -> None:
        self._news.tick()
        requests = self.service.counters.requests
        if requests != self._seen:
            self._seen = requests
            self._asked_at = time.monotonic()
        negotiated = self.service.negotiated
        if negotiated is not self._told:
            self._told = negotiated
            if negotiated is not None:
                self._failure = None
                self._tell(EventKind.NEGOTIATED, str(negotiated.version))
        if self.service.quiet or self._reporter.is_waiting:
            self._reporter.flush()

    def _stop(self, why: str) -> None:
        self.stopped = why
        self._changed.set()
        self._tell(EventKind.STOPPED, why)

    def _failed(self, kind: EventKind, detail: str) -> None:
        """Told once, however often it is tried again with the same result."""
        if (kind, detail) != self._failure:
            self._failure = (kind, detail)
            self._tell(kind, detail)

    def _tell(self, kind: EventKind, detail: str = "") -> None:
        self._news.tell(kind, detail)


def _last_failure(service: Service) -> dict[str, Any]:
    if isinstance(service, IntegrationService):
        failure = service.last_failure
        return dict.fromkeys(_FAILURE) if failure is None else failure.as_dict()
    error = service.last_error  # of an embedder's own service
    return {**dict.fromkeys(_FAILURE), "last_error": None if error is None else str(error) or repr(error)}


async def attend(service: Service, work: list[asyncio.Future[Any]], limit: float | None = None) -> None:
    """Until some of ``work`` is done, or the service's ``tick`` was due and called, or ``limit`` seconds passed."""
    loop = asyncio.get_running_loop()
    due, descriptor = service.deadline(), service.watch()
    ready = loop.create_future()
    if descriptor >= 0:
        loop.add_reader(descriptor, _wake, ready)
    try:
        await asyncio.wait([*work, ready], timeout=soonest(due, limit), return_when=asyncio.FIRST_COMPLETED)
    finally:
        if descriptor >= 0:
            loop.remove_reader(descriptor)
        ready.cancel()
    service.tick()


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)


class _Turns:
    """The turns of one open channel among the others of its loop."""

    def __init__(
        self,
        channel: ServiceChannel | MessageChannel,
        service: Service,
        after_turn: Callable[[], None],
        stay: Stay = NEVER,
    ) -> None:
        self.responder = responder_for(channel, service, stay)
        self._service = service
        self._after_turn = after_turn
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._watched: set[int] = set()
        self._timer: asyncio.TimerHandle | None = None
        # The turn that comes after the other channels have had theirs.
        self._again: asyncio.Handle | None = None

    async def run(self) -> None:
        """Until the channel ends, which raises."""
        descriptor = self.responder.channel.fileno()
        self._loop.add_reader(descriptor, self._readable)
        try:
            self._turn()  # the host may have spoken before anybody listened (PROTOCOL §1.7)
            await self._ended
        finally:
            self._ended.cancel()
            self._loop.remove_reader(descriptor)
            self._unwatch()
            for handle in (self._timer, self._again):
                if handle is not None:
                    handle.cancel()
            self.responder.end()

    def _readable(self) -> None:
        """The doorbell rang, and goes on ringing until the channel is armed: that makes no more turns."""
        if self._again is None:
            self._turn()

    def _turn(self) -> None:
        """Something is readable, or time is up: go on.  Never raises; an end goes to whoever awaits it."""
        if self._again is not None:
            self._again.cancel()  # a timer may have been faster: one chain of turns, never two
            self._again = None
        if self._ended.done():
            return
        if self._watched:
            self._unwatch()  # what is called now may close these descriptors
        try:
            self._service.tick()
            if self.responder.respond():
                # Not call_soon: that comes before what has become readable meanwhile.
                self._again = self._loop.call_later(0, self._turn)
            self._after_turn()
            self._watch()
        except Exception as error:
            self._ended.set_exception(error)
            return
        self._set_timer()

    def _watch(self) -> None:
        if watched := self.responder.descriptors():
            self._watched = watched
            for descriptor in watched:
                self._loop.add_reader(descriptor, self._turn)

    def _unwatch(self) -> None:
        for descriptor in self._watched:
            self._loop.remove_reader(descriptor)
        self._watched = set()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        timeout, recheck = self.responder.timeout(), self.responder.recheck_every
        if recheck > 0 and (timeout is None or timeout > recheck):
            self._timer = self._loop.call_later(recheck, self._recheck)
        elif timeout is not None:
            self._timer = self._loop.call_later(timeout, self._turn)

    def _recheck(self) -> None:
        """Nothing came for a while from a kernel that can lose a wake-up: look unasked."""
        self.responder.recheck()
        self._turn()
