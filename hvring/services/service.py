# SPDX-License-Identifier: Apache-2.0
"""What an agent needs to know about a service: feed it packets, send what it answers, keep its deadlines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

from hvring.ic.negotiate import Negotiated


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, to go into one in-band packet with the transaction id of the request's packet."""

    payload: bytes
    then: Callable[[], None] | None = None  # run once the answer is on the ring: answer first, act after


@dataclass(frozen=True, slots=True)
class Later:
    """No answer yet: what the request needs is in use, or takes its time.

    ``again()`` is to be called once, so many seconds from now and before the next request is read; never, if the
    channel ends before.
    """

    seconds: float
    again: Callable[[], Reply | Later | None]


Answer = Reply | Later | None
"""What a service makes of a request; None is silence."""


@dataclass(slots=True)
class Counters:
    """What happened since the service was made."""

    requests: int = 0
    replies: int = 0
    negotiations: int = 0
    silent: int = 0  # requests that got no answer
    failed: int = 0  # answers with a status other than 0
    short: int = 0  # the message ended before a field that is needed
    lying: int = 0  # a size or a text in the message cannot be true
    unknown_type: int = 0
    unknown_operation: int = 0
    anomalies: int = 0  # odd headers that do no harm
    effect_errors: int = 0  # what was asked of this machine did not work

    def as_dict(self) -> dict[str, int]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


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

    def receive(self, payload: bytes) -> Answer:
        """The answer to one packet's payload; None is silence."""
        ...

    def reset(self) -> None:
        """The channel was opened anew, closed or rescinded: forget, and undo what is half done."""
        ...

    def deadline(self) -> float | None:
        """Seconds from now until :meth:`tick` must be called; None: not at all."""
        ...

    def tick(self) -> None:
        """Do what is due; harmless at any time."""
        ...
