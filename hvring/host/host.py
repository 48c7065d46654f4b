# SPDX-License-Identifier: Apache-2.0
"""The host as the administrator sees it, whatever its channels are made of."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from hvring.errors import MessageError
from hvring.host.errors import HostError
from hvring.host.events import MAX_LISTED, Event, Violation
from hvring.host.fcopy import FcopyVerbs
from hvring.host.heartbeat import HeartbeatVerbs
from hvring.host.kvp import KvpVerbs
from hvring.host.measure import Measure
from hvring.host.raw import Raw
from hvring.host.session import Session
from hvring.host.shutdown import ShutdownVerbs
from hvring.host.timesync import TimesyncVerbs
from hvring.host.timing import Timing
from hvring.host.vss import VssVerbs
from hvring.ic import Negotiated
from hvring.vmbus import SERVICE_NAMES

_LAST_THAW: Final = 5.0  # seconds that a frozen guest has to answer a host that is leaving

_log = logging.getLogger("hvring.host")


class Host:
    """The six services and their verbs, without channels: ``sessions[name].opened(link)`` brings one.

    ``on_event`` gets every Event as it happens, from the event loop. ``violations`` lists the rules that
    guests broke; a violation never ends the host. The verbs are in ``shutdown``, ``timesync``,
    ``heartbeat``, ``kvp``, ``vss`` and ``fcopy``; they raise HostError and MessageError, and every one of
    them may be cancelled. ``measure`` has each service's numbers.
    """

    def __init__(
        self, *, timing: Timing | None = None, on_event: Callable[[Event], None] | None = None
    ) -> None:
        self.timing: Final = timing or Timing()
        self.violations: list[Violation] = []
        self.violation_count = 0
        self._on_event = on_event
        self.sessions: Final = {name: self._session(name) for name in SERVICE_NAMES}
        self.measure: dict[str, Measure] = {name: s.measure for name, s in self.sessions.items()}
        self.shutdown = ShutdownVerbs(self.sessions["shutdown"])
        self.timesync = TimesyncVerbs(self.sessions["timesync"])
        self.heartbeat = HeartbeatVerbs(self.sessions["heartbeat"])
        self.kvp = KvpVerbs(self.sessions["kvp"])
        self.vss = VssVerbs(self.sessions["vss"])
        self.fcopy = FcopyVerbs(self.sessions["fcopy"])

    async def wait_ready(self, *services: str, timeout: float | None = None) -> None:
        """Until guests are attached and have agreed to versions, by default for all services.

        Raises TimeoutError.
        """
        async with asyncio.timeout(timeout):
            for name in services or SERVICE_NAMES:
                await self._named(name).wait_ready()

    async def renegotiate(self, service: str) -> Negotiated:
        """Negotiate once more, as a host does after saving and restoring."""
        return await self._named(service).renegotiate()

    def negotiated(self, service: str) -> Negotiated | None:
        """The versions in force, None without a guest that is ready."""
        return self._named(service).negotiated

    def raw(self, service: str) -> Raw:
        """Faults for one service: ``async with host.raw("kvp") as raw:``."""
        return Raw(self._named(service))

    def status(self) -> dict[str, Any]:
        """Everything worth knowing, as plain data."""
        heartbeat = self.heartbeat.status
        return {
            "services": {name: self._service_status(session) for name, session in self.sessions.items()},
            "heartbeat": {
                "contact": heartbeat.contact.value,
                "application": None if heartbeat.application is None else heartbeat.application.name.lower(),
                "misses": heartbeat.misses,
            },
            "frozen": self.vss.frozen,
            "violations": self.violation_count,
        }

    async def thaw(self) -> None:
        """Do not leave a guest frozen: a host that ends calls this while it still has its channels."""
        if self.vss.frozen:
            try:
                async with asyncio.timeout(_LAST_THAW):
                    await self.vss.thaw()
            except (HostError, MessageError, TimeoutError) as failure:
                self._tell(Event("failed", "vss", f"not thawed: {failure or 'no answer'}"))

    def _service_status(self, session: Session) -> dict[str, Any]:
        agreed = session.negotiated
        return {
            "state": self._state(session),
            "framework": None if agreed is None else str(agreed.framework),
            "version": None if agreed is None else str(agreed.version),
            "failure": session.failure,
            **session.measure.as_dict(),
        }

    def _state(self, session: Session) -> str:
        if session.negotiated is not None:
            return "ready"
        if session.link is None:
            return "waiting"
        return "failed" if session.failure else "attached"

    def _session(self, name: str) -> Session:
        def accuse(request: str, what: str) -> None:
            violation = Violation(name, request, what)
            self.violation_count += 1
            if len(self.violations) < MAX_LISTED:
                self.violations.append(violation)
                self._tell(Event("violation", name, f"violation: {request}: {what}"))

        return Session(name, self.timing, tell=self._tell, accuse=accuse, drop=lambda: self._corrupted(name))

    def _corrupted(self, service: str) -> None:
        """The guest corrupted this service's ring; a host that can take channels back does it."""

    def _tell(self, event: Event) -> None:
        _log.debug("%s", event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:  # of the listener; the guests are not to suffer from it
                _log.exception("the listener for events failed")

    def _named(self, service: str) -> Session:
        try:
            return self.sessions[service]
        except KeyError:
            raise ValueError(f"no such service: {service}; there are {', '.join(SERVICE_NAMES)}") from None
