# SPDX-License-Identifier: Apache-2.0
"""All chosen services on one event loop and in one thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Final

from hvring.agent.exchange import Exchange
from hvring.channel import Channel
from hvring.errors import ChannelRescindedError, HvringError, RingError
from hvring.services import Service

log = logging.getLogger("hvring.agent")

Opener = Callable[[str], Awaitable[Channel]]
"""Opens the channel of the service with this name, waiting until the host offers it."""

_FIRST_PAUSE: Final = (
    0.05  # seconds before a channel that broke at once is opened again; doubles up to the last
)
_LAST_PAUSE: Final = 5.0
_UNDOING: Final = 5.0  # seconds at most that stopping waits for a thaw, which goes on without it, too
_SETTLED: Final = 1.0  # seconds that a channel must have lived to count as good


class EventKind(Enum):
    """What an agent tells its owner."""

    OPENED = "opened"
    NEGOTIATED = "negotiated"
    RESCINDED = "rescinded"
    BROKEN = "broken"  # the host broke the ring, or this machine ran out of something; it is opened again
    FAILED = "failed"  # it cannot be opened, or has an error of its own; this service is not served any more


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to one service; ``detail`` is for people."""

    service: str
    kind: EventKind
    detail: str = ""


class Agent:
    """Serves ``services`` over channels that ``open_channel`` opens; re-opens what the host takes back.

    Embeddable: ``start`` and ``stop`` (or ``async with``) on the running loop; no signal handlers, no logging set-up,
    no threads.  ``on_event`` is called on the loop with each :class:`Event`.
    """

    def __init__(
        self,
        services: Iterable[Service],
        open_channel: Opener,
        *,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.services: Final = {service.name: service for service in services}
        self._lines = {name: _Line(s, open_channel, on_event) for name, s in self.services.items()}
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Begin to serve.  Returns at once; see :meth:`wait_open`.  RuntimeError when it was started before."""
        if self._tasks:
            raise RuntimeError("this agent was started before")
        self._tasks = [
            asyncio.create_task(line.run(), name=f"hvring-{name}") for name, line in self._lines.items()
        ]

    async def stop(self) -> None:
        """Close every channel; each service undoes what is half done (thaws, removes partial files).

        Waits a few seconds for what takes its time."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        give_up_at = time.monotonic() + _UNDOING
        for service in self.services.values():
            while (due := service.deadline()) is not None and (left := give_up_at - time.monotonic()) > 0:
                await asyncio.sleep(min(due, left))
                service.tick()

    async def run(self) -> None:
        """Start, and serve until cancelled or until every service has failed for good."""
        await self.start()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self.stop()

    async def wait_open(self, service: str) -> None:
        """Until the channel of ``service`` is open."""
        await self._lines[service].opened.wait()

    def stats(self) -> dict[str, dict[str, Any]]:
        """Per service: ``open``, ``openings``, the negotiated version, the service's and the channel's counters."""
        return {name: line.stats() for name, line in self._lines.items()}

    async def __aenter__(self) -> Agent:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


class _Line:
    """One service's life: open, serve, lose, open again."""

    def __init__(self, service: Service, opener: Opener, on_event: Callable[[Event], None] | None) -> None:
        self.service = service
        self.opened = asyncio.Event()
        self.openings = 0
        self._open_channel = opener
        self._on_event = on_event
        self._exchange: Exchange | None = None
        self._told: object = None
        self._ended: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = (
            None  # the turn that comes after the other channels have had theirs
        )

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        pause = _FIRST_PAUSE
        while True:
            since = loop.time()
            channel: Channel | None = None
            try:
                channel = await self._open()
                since = loop.time()
                await self._serve(channel)
            except ChannelRescindedError:
                self._tell(EventKind.RESCINDED)
            except (RingError, OSError) as error:  # OSError: out of descriptors or memory, for a while
                self._tell(EventKind.BROKEN, str(error))
            except HvringError as error:
                if channel is None:
                    self._tell(EventKind.FAILED, str(error))
                    return
                self._tell(EventKind.BROKEN, str(error))
            except Exception as error:  # of a service or an opener that is an embedder's own
                log.exception("%s", self.service.name)
                self._tell(EventKind.FAILED, repr(error))
                return
            pause = _FIRST_PAUSE if loop.time() - since >= _SETTLED else min(2 * pause, _LAST_PAUSE)
            if pause > _FIRST_PAUSE:
                await self._meanwhile(asyncio.ensure_future(asyncio.sleep(pause - _FIRST_PAUSE)))

    async def _meanwhile(self, work: asyncio.Future[Any]) -> None:
        """Until ``work`` is done; keeps the service's deadline, for a thaw that has to be tried again."""
        try:
            while not work.done():
                await asyncio.wait([work], timeout=self.service.deadline())
                self.service.tick()
        except asyncio.CancelledError:
            work.cancel()
            raise

    async def _open(self) -> Channel:
        opening = asyncio.ensure_future(self._open_channel(self.service.name))
        try:
            await self._meanwhile(opening)
            return opening.result()
        except asyncio.CancelledError:
            await asyncio.wait([opening])
            if not opening.cancelled() and opening.exception() is None:
                opening.result().close()
            raise

    def stats(self) -> dict[str, Any]:
        negotiated = self.service.negotiated
        return {
            "open": self.opened.is_set(),
            "openings": self.openings,
            "version": None if negotiated is None else str(negotiated.version),
            "counters": self.service.counters.as_dict(),
            "channel": {} if self._exchange is None else self._exchange.channel.stats(),
        }

    async def _serve(self, channel: Channel) -> None:
        loop = asyncio.get_running_loop()
        self._exchange = Exchange(channel, self.service)
        self._ended = loop.create_future()
        self.openings += 1
        self.service.reset()
        self._tell(EventKind.OPENED)
        descriptor = channel.fileno()
        loop.add_reader(descriptor, self._readable)
        self.opened.set()
        try:
            self._ready()  # the host may have spoken before anybody listened (PROTOCOL §1.7)
            await self._ended
        finally:
            self.opened.clear()
            self._told = None
            self._ended.cancel()
            loop.remove_reader(descriptor)
            for handle in (self._timer, self._again):
                if handle is not None:
                    handle.cancel()
            self._timer = self._again = None
            try:
                self.service.reset()
            finally:
                channel.close()

    def _readable(self) -> None:
        """The doorbell rang, and goes on ringing until the channel is armed: that makes no more turns."""
        if self._again is None:
            self._ready()

    def _ready(self) -> None:
        """The channel is readable, or time is up: go on.  Never raises; an end goes to whoever awaits it."""
        if self._again is not None:
            self._again.cancel()  # a timer may have been faster: one chain of turns, never two
            self._again = None
        exchange, ended = self._exchange, self._ended
        if exchange is None or ended is None or ended.done():
            return
        loop = ended.get_loop()
        try:
            self.service.tick()
            if exchange.pump():
                self._again = loop.call_soon(self._ready)
            elif self.service.negotiated is not self._told:
                self._told = self.service.negotiated
                if self.service.negotiated is not None:
                    self._tell(EventKind.NEGOTIATED, str(self.service.negotiated.version))
        except Exception as error:
            ended.set_exception(error)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        patience, recheck = exchange.patience(), exchange.channel.recheck_every
        if recheck > 0 and (patience is None or patience > recheck):
            self._timer = loop.call_later(recheck, self._recheck)
        elif patience is not None:
            self._timer = loop.call_later(patience, self._ready)

    def _recheck(self) -> None:
        """Nothing came for a while from a kernel that can lose a wake-up: look unasked."""
        if self._exchange is not None and not self._exchange.channel.closed:
            self._exchange.channel.recheck()
        self._ready()

    def _tell(self, kind: EventKind, detail: str = "") -> None:
        level = logging.INFO if kind in (EventKind.OPENED, EventKind.NEGOTIATED) else logging.WARNING
        log.log(level, "%s: %s%s", self.service.name, kind.value, f" ({detail})" if detail else "")
        if self._on_event is not None:
            try:
                self._on_event(Event(self.service.name, kind, detail))
            except Exception:  # of the listener; the service is not to suffer from it
                log.exception("the listener for events failed")
