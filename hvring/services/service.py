# SPDX-License-Identifier: Apache-2.0
"""What an agent needs to know about a service: feed it packets, send what it answers, keep its deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from hvring.events import Event
from hvring.ic.negotiate import Negotiated
from hvring.pending import Pending
from hvring.reasons import Reason


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, to go into one in-band packet with the transaction id of the request's packet."""

    payload: bytes
    then: Callable[[], None] | None = None  # run once the answer is on the ring: answer first, act after


Answer = Reply | Pending[Reply | None] | None
"""What a service makes of a packet: a reply, not yet, or silence.

A Pending is resumed before the next packet is read, or cancelled by ``reset``.
"""


@dataclass(slots=True)
class Counters:
    """What happened since the service was made."""

    requests: int = 0
    replies: int = 0
    negotiations: int = 0
    silent: int = 0  # requests that got no answer
    failed: int = 0  # answers with a status other than 0
    short: int = 0  # the message ended before a field that is needed
    malformed: int = 0  # a size or a text in the message cannot be true
    unknown_type: int = 0
    unknown_operation: int = 0
    anomalies: int = 0  # odd headers that do no harm
    effect_errors: int = 0  # what was asked of this machine did not work
    events_suppressed: int = 0  # more than a listener should have to hear
    failures: dict[str, int] = field(default_factory=dict)  # what did not work, and refusals, by reason

    def as_dict(self) -> dict[str, int]:
        """All numbers by their names; the failures are not among them."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "failures"}


@dataclass(slots=True)
class Failure:
    """The newest thing that did not work; ``at`` in seconds since 1970, ``over_at`` once the same thing worked."""

    what: str
    error: Exception
    reason: Reason
    at: float
    over_at: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """As in :meth:`hvring.agent.agent.Agent.stats`."""
        return {
            "last_error": str(self.error) or repr(self.error),
            "last_error_what": self.what,
            "last_error_at": self.at,
            "last_error_over_at": self.over_at,
            "last_reason": self.reason.value,
            "remedy": self.reason.remedy,
        }


class Service(Protocol):
    """One integration service.  No method raises, whatever the bytes."""

    @property
    def name(self) -> str:
        """As everywhere: "shutdown", "timesync", "heartbeat", "kvp", "vss" or "fcopy"."""
        ...

    @property
    def counters(self) -> Counters: ...

    @property
    def negotiated(self) -> Negotiated | None:
        """What the host and this service agreed on; None before that and after a reset."""
        ...

    @property
    def last_error(self) -> Exception | None:
        """The newest error of an effect that became a status or a counter."""
        ...

    @property
    def quiet(self) -> bool:
        """Whether nothing may be written to a log or a terminal now: it may lie on a frozen file system."""
        ...

    on_event: Callable[[Event], None] | None
    """Hears what the host asked for and what came of it; set by whoever owns the service."""

    def receive(self, payload: bytes) -> Answer:
        """The answer to one packet's payload; None is silence."""
        ...

    def reset(self) -> None:
        """The channel was opened anew, closed or rescinded: forget, and undo what is half done."""
        ...

    def deadline(self) -> float | None:
        """Seconds from now until :meth:`tick` must be called; None: not at all."""
        ...

    def watch(self) -> int:
        """A descriptor whose getting readable is a reason for :meth:`tick`, too; -1: none."""
        ...

    def tick(self) -> None:
        """Do what is due; harmless at any time."""
        ...
