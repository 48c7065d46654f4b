# SPDX-License-Identifier: Apache-2.0
"""The host as the administrator sees it, whatever its channels are made of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from hvring.errors import MessageError
from hvring.events import Event
from hvring.host.errors import HostError
from hvring.host.faults import Faults
from hvring.host.fcopy import FcopyVerbs
from hvring.host.heartbeat import HeartbeatVerbs
from hvring.host.kvp import KvpVerbs
from hvring.host.latency import LatencyHistogram
from hvring.host.reports import Reports, Violation
from hvring.host.session import Session
from hvring.host.shutdown import ShutdownVerbs
from hvring.host.timesync import TimesyncVerbs
from hvring.host.timing import Timing
from hvring.host.vss import VssVerbs
from hvring.ic import Negotiated
from hvring.vmbus import SERVICE_NAMES

_LAST_THAW: Final = 5.0  # seconds that a frozen guest has to answer a host that is leaving

_VERBS: Final[dict[str, Callable[[Session], object]]] = {
    "shutdown": ShutdownVerbs,
    "timesync": TimesyncVerbs,
    "heartbeat": HeartbeatVerbs,
    "kvp": KvpVerbs,
    "vss": VssVerbs,
    "fcopy": FcopyVerbs,
}


class Host:
    """The six services and their verbs, without channels: ``sessions[name].opened(link)`` brings one.

    ``on_event`` gets Events as they happen, from the event loop, but never a flood of them. ``violations`` lists the
    first rules that guests broke, ``violation_count`` counts all; a violation never ends the host. The verbs are in
    ``shutdown``, ``timesync``, ``heartbeat``, ``kvp``, ``vss`` and ``fcopy``; they raise HostError and MessageError,
    and every one of them may be cancelled; what cannot be asked at all is a ValueError. ``latency`` has each
    service's numbers.
    """

    # Made from the table above; written down once more for those who check types.
    shutdown: ShutdownVerbs
    timesync: TimesyncVerbs
    heartbeat: HeartbeatVerbs
    kvp: KvpVerbs
    vss: VssVerbs
    fcopy: FcopyVerbs

    def __init__(
        self, *, timing: Timing | None = None, on_event: Callable[[Event], None] | None = None
    ) -> None:
        self.timing: Final = timing or Timing()
        self.reports: Final = Reports(on_event)
        self.sessions: Final = {name: self._session(name) for name in SERVICE_NAMES}
        self.latency: dict[str, LatencyHistogram] = {name: s.latency for name, s in self.sessions.items()}
        for name, verbs in _VERBS.items():
            setattr(self, name, verbs(self.sessions[name]))

    @property
    def violations(self) -> list[Violation]:
        """The first rules that guests broke, in order."""
        return self.reports.violations

    @property
    def violation_count(self) -> int:
        """All rules that guests broke."""
        return self.reports.violation_count

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

    def faults(self, service: str) -> Faults:
        """Say anything to the guest of a service: ``async with host.faults("kvp") as faults:``."""
        return Faults(self._named(service))

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
                self.reports.failed("vss", "not thawed", failure)

    def _service_status(self, session: Session) -> dict[str, Any]:
        agreed = session.negotiated
        return {
            "state": self._state(session),
            "framework": None if agreed is None else str(agreed.framework),
            "version": None if agreed is None else str(agreed.version),
            "failure": session.failure,
            **session.latency.as_dict(),
        }

    def _state(self, session: Session) -> str:
        return session.state

    def _session(self, name: str) -> Session:
        return Session(name, self.timing, self.reports, lambda: self._corrupted(name))

    def _corrupted(self, service: str) -> None:
        """The guest corrupted this service's ring; a host that can take channels back does it."""

    def _named(self, service: str) -> Session:
        try:
            return self.sessions[service]
        except KeyError:
            raise ValueError(f"no such service: {service}; there are {', '.join(SERVICE_NAMES)}") from None
