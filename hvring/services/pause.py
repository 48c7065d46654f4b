# SPDX-License-Identifier: Apache-2.0
"""A machine that stood still: how it is seen, and when a time sample may act as SYNC then (PROTOCOL §4.2, pitfall 67).

A pause leaves traces that nothing else leaves: the host's time went on further than this machine's steady clock, or
Hyper-V's reference counter did otherwise than that clock, or the kernel counts time that it was suspended.  Drift does
not do that, nor does whoever sets or slews the wall clock here, nor a message that was late.  A host that lies so may
as well send SYNC, where it is allowed to set the clock.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

THRESHOLD: Final = 5.0  # seconds behind the host, as Linux' timesync_implicit has it
SHORTEST: Final = 1.0  # seconds; what is less is jitter, or drift
MEMORY: Final = 8  # messages that are compared
REST: Final = 60.0  # seconds from one setting of this kind to the next
AGREEING: Final = 3  # messages that must go together before they are taken for the host's time again
JITTER: Final = 0.01  # seconds between two messages that go together,
DRIFT: Final = 1e-3  # and as much for each second between them: twice what crystals do

_NS: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Look:
    """What one message of the host showed; times in nanoseconds, the others in seconds.

    ``taken``: of a clock that nobody slews, and that stands still with this machine.  ``delay_ns``: how much older than
    it was taken for the host's time may have been.  ``suspended``: how long the kernel says that it was, since its
    start.  ``counter``: the reference counter; None where it cannot be read.
    """

    host_ns: int
    behind_ns: int
    taken: float
    delay_ns: int
    suspended: float = 0.0
    counter: float | None = None

    @property
    def ahead(self) -> float:
        """Seconds from the steady clock to the host's; the bigger, the longer this machine stood still."""
        return self.host_ns / _NS - self.taken


@dataclass(frozen=True, slots=True)
class Pause:
    """``seconds``: None where it is only known that there was one.  ``seen_by``: host, kernel or counter."""

    seconds: float | None
    seen_by: str


class PauseWatch:
    """Sees pauses; lets a sample act as SYNC forwards only, and not again within :data:`REST` seconds.

    ``threshold``: seconds behind the host from which a pause matters; None: no sample acts as SYNC.  ValueError for one
    that is no time above 0.
    """

    def __init__(self, threshold: float | None = THRESHOLD) -> None:
        if threshold is not None and not 0 < threshold < math.inf:
            raise ValueError(f"a threshold of {threshold} seconds is no time above 0")
        self._threshold_ns = math.inf if threshold is None else threshold * _NS
        self._tolerance_ns = min(self._threshold_ns, THRESHOLD * _NS)
        # How far the host's clock was ahead lately, at most.  Kept when the channel is opened anew: a machine that was
        # saved, restored or moved is often offered another one.
        self._known: deque[float] = deque(maxlen=MEMORY)
        self._before: Look | None = None
        self._paused = 0.0  # seconds that nobody made up for yet
        self._foretold = (
            0.0  # seconds of it that the host's time did not show yet: a message may be from before
        )
        self._acted_at = -math.inf
        self._agreed = 0

    @property
    def paused(self) -> float:
        """Seconds that this machine stood still and that nobody made up for yet."""
        return self._paused

    @property
    def is_coherent(self) -> bool:
        """Whether the last messages told one time: the first after a pause may be from before it."""
        return self._agreed >= AGREEING

    def adopt(self, fresh: PauseWatch) -> None:
        """Its threshold; what is known of this machine stays."""
        self._threshold_ns, self._tolerance_ns = fresh._threshold_ns, fresh._tolerance_ns

    def settle(self) -> None:
        """The clock was set."""
        self._paused = self._foretold = 0.0

    def reset(self) -> None:
        """Another channel: its first messages must go together anew."""
        self._agreed = 0

    def see(self, look: Look) -> Pause | None:
        """Take a message into account; the pause since the one before, if there was one."""
        before, self._before = self._before, look
        found = None if before is None else _by_machine(before, look)
        if found is not None:
            self._foretold += found.seconds or 0.0
            self._paused += found.seconds or 0.0
        gap = self._gap(look)
        pause = self._by_host(gap) or found
        is_one = before is not None and pause is None and _go_together(before, look)
        self._agreed = self._agreed + 1 if is_one else 1
        if look.behind_ns < self._tolerance_ns:
            self._paused = 0.0  # too short to matter, or somebody else made up for it
        return pause

    def due(self, look: Look) -> float | None:
        """Seconds that this machine stood still, if its clock is to be set now by the SAMPLE that was just seen."""
        if not self._paused or look.behind_ns < self._threshold_ns or look.taken - self._acted_at < REST:
            return None
        self._acted_at = look.taken
        return self._paused

    def _gap(self, look: Look) -> float:
        # A message that was late, or a lie, made it look less; so the most of them counts.
        gap = look.ahead - max(self._known, default=math.inf)
        self._known.append(look.ahead + look.delay_ns / _NS)
        return gap

    def _by_host(self, gap: float) -> Pause | None:
        """What nothing on this machine had shown."""
        if gap < SHORTEST:
            return None
        news, self._foretold = gap - self._foretold, max(0.0, self._foretold - gap)
        if news < SHORTEST:
            return None
        self._paused += news
        return Pause(news, "host")


def _by_machine(before: Look, look: Look) -> Pause | None:
    """What the host's time does not show, or not yet: its newest message may be from before the pause."""
    suspended = look.suspended - before.suspended
    if suspended >= SHORTEST:
        return Pause(suspended, "kernel")
    if before.counter is None or look.counter is None:
        return None
    went = (look.counter - before.counter) - (look.taken - before.taken)
    if abs(went) < SHORTEST + DRIFT * abs(look.taken - before.taken):
        return None
    # It goes on where only the guest was suspended, and begins anew in another VM.
    return Pause(went if went > 0 else None, "counter")


def _go_together(before: Look, look: Look) -> bool:
    allowed = JITTER + DRIFT * (look.taken - before.taken) + (before.delay_ns + look.delay_ns) / _NS
    return abs(look.ahead - before.ahead) <= allowed
