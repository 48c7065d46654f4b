# SPDX-License-Identifier: Apache-2.0
"""What an agent and a virtual host tell their owners, in one form."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final


class EventKind(Enum):
    """The kinds of events.  Each is told once per change, never once per packet."""

    # Of a channel, told by an agent.
    WAITING = "waiting"  # for the host's offer, a device, another program
    OPENED = "opened"
    NEGOTIATED = "negotiated"
    RESCINDED = "rescinded"
    BROKEN = "broken"  # the other side broke a rule, or this machine ran out of something; it is opened again
    STOPPED = "stopped"  # for good: this service is not served any more

    # Of what the host asked for and what came of it, told by a service.
    ASKED = "asked"
    REFUSED = "refused"
    COPIED = "copied"
    FROZEN = "frozen"
    THAWED = "thawed"
    CHANGED = "changed"
    PAUSED = "paused"  # this machine stood still, and goes on
    CANCELLED = "cancelled"  # the host took back what it had asked for, or went away before it was complete
    FAILED = "failed"  # something that was asked of this machine did not work
    RECOVERED = "recovered"  # and now it does again
    RELOADED = "reloaded"  # the configuration was read anew
    LOST = "lost"  # events that nobody will hear of: there were too many to keep

    # Of a guest, told by a virtual host.
    ATTACHED = "attached"
    DETACHED = "detached"
    CONTACT = "contact"
    OFFERED = "offered"
    WITHDRAWN = "withdrawn"
    VIOLATION = "violation"


Facts = Mapping[str, str | int | float | bool | None]
"""What an event is about, by names that programs can rely on; texts may quote the other side."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to one service; ``detail`` is for people and may quote the other side, as ``facts`` may."""

    service: str
    kind: EventKind
    detail: str = ""
    facts: Facts = field(default_factory=dict)
    at: float = field(default_factory=time.time, compare=False)  # seconds since 1970 when it happened

    def __str__(self) -> str:
        """One printable line."""
        return f"{self.service}: {self.kind.value} {printable(self.detail)}".rstrip()


_WARNINGS: Final = frozenset(
    (EventKind.RESCINDED, EventKind.BROKEN, EventKind.REFUSED, EventKind.LOST, EventKind.VIOLATION)
)
_ERRORS: Final = frozenset((EventKind.STOPPED, EventKind.FAILED))


def level(kind: EventKind) -> int:
    """How much it matters, as a number of :mod:`logging`: 20, 30 or 40."""
    return 40 if kind in _ERRORS else 30 if kind in _WARNINGS else 20


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal or a log would obey: for words of the other side."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
