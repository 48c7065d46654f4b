# SPDX-License-Identifier: Apache-2.0
"""All chosen services on one event loop and in one thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final

from hvring.agent.channel import Opener
from hvring.agent.reporter import Reporter
from hvring.agent.service_loop import ServiceLoop, attend
from hvring.agent.stay import NEVER, Stay
from hvring.events import Event
from hvring.services.base import IntegrationService
from hvring.services.service import Service

_UNDOING: Final = 5.0  # seconds at most that stopping waits for a thaw, which goes on without it, too


class Agent:
    """Serves ``services`` over channels that ``open_channel`` opens; re-opens what the host takes back.

    Embeddable: ``start`` and ``stop`` (or ``async with``) on the running loop; no signal handlers, no logging set-up,
    no threads.  ``on_event`` is called on the loop with each :class:`~hvring.events.Event`; those of a freeze come
    after its thaw, unless ``keeps_events`` is False: then the listener writes nothing while ``quiet``.  ``on_calm`` is
    called when a freeze is over and its events were told.  ``stay``: what each service may spend on looking for the
    host's next request before it sleeps.  ValueError for two services of one name.
    """

    def __init__(
        self,
        services: Iterable[Service],
        open_channel: Opener,
        *,
        on_event: Callable[[Event], None] | None = None,
        on_calm: Callable[[], None] | None = None,
        keeps_events: bool = True,
        stay: Stay = NEVER,
    ) -> None:
        self.services: Final[dict[str, Service]] = {}
        for service in services:
            if service.name in self.services:
                raise ValueError(f"two services are called {service.name!r}")
            self.services[service.name] = service
        self._reporter = Reporter(self.services.values(), on_event, on_calm=on_calm, keeps=keeps_events)
        self._loops = {
            name: ServiceLoop(s, open_channel, self._reporter, stay) for name, s in self.services.items()
        }
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def quiet(self) -> bool:
        """Whether file systems may be frozen, so that nothing may be written; asked by any thread."""
        return self._reporter.is_quiet

    async def start(self) -> None:
        """Begin to serve.  Returns at once; see :meth:`wait_open`.  RuntimeError when it was started before."""
        if self._tasks:
            raise RuntimeError("this agent was started before")
        freezers = [service for service in self.services.values() if _may_freeze(service)]
        for service in self.services.values():
            service.on_event = self._reporter.tell
            if freezers and isinstance(service, IntegrationService):
                service.is_frozen = _asking(freezers)
        self._tasks = [
            asyncio.create_task(loop.run(), name=f"hvring-{name}") for name, loop in self._loops.items()
        ]

    async def stop(self) -> None:
        """Close every channel; each service undoes what is half done (thaws, removes partial files).

        Waits a few seconds for what takes its time.
        """
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        give_up_at = time.monotonic() + _UNDOING
        for service in self.services.values():
            while service.quiet and (left := give_up_at - time.monotonic()) > 0:
                await attend(service, [], left)
        self._reporter.flush()
        for service in self.services.values():
            service.on_event = None  # it may live on; what is left of this agent need not
            if isinstance(service, IntegrationService):
                service.is_frozen = None

    async def run(self) -> None:
        """Start, and serve until cancelled or until every service has stopped for good."""
        await self.start()
        try:
            await asyncio.gather(*self._tasks)
        finally:
            await self.stop()

    async def wait_open(self, service: str) -> None:
        """Until the channel of ``service`` is open.

        ValueError for a service that this agent does not have, HvringError when it is not served any more.
        """
        if service not in self._loops:
            raise ValueError(f"{service!r} is not served here; there are {', '.join(self._loops)}")
        await self._loops[service].wait_open()

    def stats(self) -> dict[str, dict[str, Any]]:
        """Per service: ``open``, ``openings``, the ``way``, the negotiated ``framework`` and ``version``, what the
        ``kernel`` said of itself, ``last_request_age`` in seconds, what ``trouble`` the channel has, why it was
        ``stopped``, the service's and the channel's counters, and ``failures`` by reason.

        Of the newest failure: ``last_error``, ``last_error_what``, ``last_error_at``, ``last_error_over_at`` (seconds
        since 1970; None: not over), ``last_reason`` and its ``remedy``; None where there was none.
        """
        return {name: loop.stats() for name, loop in self._loops.items()}

    async def __aenter__(self) -> Agent:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _asking(freezers: list[Service]) -> Callable[[], bool]:
    if len(freezers) == 1:  # asked for each change of a pool
        (only,) = freezers
        return lambda: only.quiet
    return lambda: any(other.quiet for other in freezers)


def _may_freeze(service: Service) -> bool:
    """Whether it says of itself when nothing may be written."""
    return getattr(type(service), "quiet", None) is not IntegrationService.quiet
