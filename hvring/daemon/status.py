# SPDX-License-Identifier: Apache-2.0
"""How a running agent is: plain data for programs, and what of it is wrong.

Made from what is in memory: nothing here opens a file, so that it can be asked for while file systems are frozen.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Protocol

import hvring
from hvring.agent.agent import Agent
from hvring.events import Event, EventKind
from hvring.ic.heartbeat import ApplicationState
from hvring.services import Fcopy, TimeSync, Vss
from hvring.services.service import Service
from hvring.vmbus import SERVICE_NAMES

_ILL: Final = ("critical", "stopped")


def name_of(services: Collection[str]) -> str:
    """Of an agent: one for each set of services."""
    return "agent" if len(services) == len(SERVICE_NAMES) else "-".join(services)


class Health(Protocol):
    """How applications are, for the heartbeat: what somebody says beside what was found out."""

    def set(self, state: ApplicationState | None, text: str = "") -> None:
        """What somebody says, until something else is said; None: nothing."""
        ...

    def show(self) -> Mapping[str, Any]:
        """``state``, ``why``, and the ``sources`` that they come from."""
        ...


class Status:
    """``config``: the file that was read, if one was; ``health``: None without heartbeats.

    ``waits``: what each service waits for, as it was told last.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        rehearsal: bool,
        config: str | None = None,
        health: Health | None = None,
        waits: Mapping[str, str] | None = None,
    ) -> None:
        self._agent = agent
        self._rehearsal = rehearsal
        self.health: Final = health
        self._began = time.monotonic()
        self._started_at = time.time()
        self._pid: Final = os.getpid()
        self.name: Final = name_of(agent.services)
        self.config = None if config is None else os.path.abspath(config)
        self.config_read_at: float | None = self._started_at if config is not None else None
        self._waits = {} if waits is None else waits

    def heard(self, event: Event) -> None:
        """For what is known by events only."""
        if event.kind is EventKind.RELOADED and self.config is not None:
            self.config_read_at = event.at

    def snapshot(self) -> dict[str, Any]:
        """Times in seconds, moments in seconds since 1970.  ``problems`` is empty when all is well."""
        services = {
            name: {**self._state(name, stats), **stats, **_more(self._agent.services[name])}
            for name, stats in self._agent.stats().items()
        }
        health = None if self.health is None else dict(self.health.show())
        problems = _problems(services, health)
        return {
            "process": {
                "name": self.name,
                "pid": self._pid,
                "version": hvring.__version__,
                "rehearsal": self._rehearsal,
                "started_at": self._started_at,
                "uptime": time.monotonic() - self._began,
                "config": self.config,
                "config_read_at": self.config_read_at,
            },
            "ok": not problems,
            "problems": problems,
            "quiet": self._agent.quiet,
            "health": health,
            "services": services,
        }

    def _state(self, name: str, stats: Mapping[str, Any]) -> dict[str, Any]:
        if stats["stopped"] is not None:
            return {"state": "stopped", "waits_for": None}
        if stats["open"]:
            return {"state": "open", "waits_for": None}
        return {"state": "waiting", "waits_for": self._waits.get(name)}


def _more(service: Service) -> dict[str, Any]:
    """What only one service has."""
    if isinstance(service, Vss):
        return {
            "backup": service.state.value,
            "frozen_for": service.frozen_for,
            "seconds_frozen": service.seconds_frozen,
            "hooks": {name: dict(tally) for name, tally in service.hooks.items()},
        }
    if isinstance(service, TimeSync):
        found = service.measurement
        return {
            "time": service.facts(),
            "clock": None
            if found is None
            else {
                "offset": found.offset_ns / 1e9,
                "uncertainty": found.uncertainty_ns / 1e9,
                "age": service.age,
                "is_corrected": found.is_corrected,
                "leap": found.leap,
                "stratum": found.stratum,
            },
        }
    if isinstance(service, Fcopy):
        return {"copies": service.copies, "copied_bytes": service.copied_bytes}
    return {}


def _problems(
    services: Mapping[str, Mapping[str, Any]], health: Mapping[str, Any] | None
) -> Sequence[dict[str, Any]]:
    """Each with ``service``, ``what`` in words, ``reason`` (a name that stays) and ``remedy`` or None for these."""
    found: list[dict[str, Any]] = []

    def add(service: str, what: str, reason: str | None = None, remedy: str | None = None) -> None:
        found.append({"service": service, "what": what, "reason": reason, "remedy": remedy})

    for name, one in services.items():
        if one["stopped"] is not None:
            add(name, f"is not served any more: {one['stopped']}", "stopped", "restart the agent")
        elif not one["open"] and one["trouble"] is not None:
            add(name, f"its channel broke: {one['trouble']}")
        if one.get("backup") in ("unthawed", "lapsing"):
            add(name, "a file system does not thaw; it is tried again", "unthawed", "see the kernel's log")
        if one["last_error"] is not None and one["last_error_over_at"] is None:
            add(name, f"{one['last_error_what']}: {one['last_error']}", one["last_reason"], one["remedy"])
    if health is not None and health.get("state") in _ILL:
        why = f": {health['why']}" if health.get("why") else ""
        add("heartbeat", f"applications are {health['state']}{why}", "health")
    return found
