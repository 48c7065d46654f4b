# SPDX-License-Identifier: Apache-2.0
"""What is told to an owner: each change once, and never a flood, whatever the other side does."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Final

from hvring.errors import reason_of
from hvring.events import EventKind, Facts

BURST: Final = 32  # events of one kind that may come together,
REFILL: Final = 60.0  # and seconds until there may be one more
LONGEST: Final = 500  # characters of a detail, which may quote the other side
# What the host did to this machine is written down each time: it costs the host more than it costs the log.
AUDIT_BURST: Final = 1000
AUDIT_REFILL: Final = 1.0
_NONE: Final[Facts] = MappingProxyType({})
_KINDS_OF_FAILURE: Final = 64  # that are remembered: a host chooses what fails


class News:
    """Passes events on to ``listener``, at most ``BURST`` of a kind and then one in ``REFILL`` seconds.

    What is held back is counted and said with the next one, or by :meth:`tick`.  Records of what the host did have
    limits of their own, :data:`AUDIT_BURST` and :data:`AUDIT_REFILL`.
    """

    def __init__(
        self,
        listener: Callable[[EventKind, str, Facts], None],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._listener = listener
        self._monotonic = monotonic
        self._buckets: dict[tuple[EventKind, bool], Bucket] = {}
        self._failures: dict[str, tuple[object, ...]] = {}
        self._holds_back = False  # perhaps: while it does not, there is nothing to look at

    def tell(self, kind: EventKind, detail: str, facts: Facts = _NONE, *, audit: bool = False) -> bool:
        """``audit``: a record of what the host did.  False: it was held back."""
        bucket = self._buckets.get((kind, audit))
        if bucket is None:
            limits = (AUDIT_BURST, AUDIT_REFILL) if audit else (BURST, REFILL)
            bucket = self._buckets[kind, audit] = Bucket(self._monotonic(), *limits)
        if not bucket.take(self._monotonic()):
            bucket.held_back += 1
            self._holds_back = True
            return False
        held_back, bucket.held_back = bucket.held_back, 0
        if len(detail) > LONGEST:
            detail = f"{detail[:LONGEST]}…"
        if held_back:
            detail, facts = f"{detail} (and {held_back} more before it)", {**facts, "suppressed": held_back}
        self._listener(kind, detail, facts)
        return True

    def failed(self, what: str, error: Exception) -> bool:
        """Tell a failure unless ``what`` failed in the same way the last time.  False: it was held back."""
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        reason = reason_of(error)
        kind = (type(error), reason, getattr(error, "status", None), getattr(cause, "errno", None))
        if self._failures.get(what) == kind:
            return True
        if len(self._failures) >= _KINDS_OF_FAILURE:
            self._failures.clear()
        self._failures[what] = kind
        return self.tell(
            EventKind.FAILED,
            f"{what}: {error}" if str(error) else f"{what}: {error!r}",
            {"what": what, "reason": reason.value, "remedy": reason.remedy},
        )

    def worked(self, what: str) -> bool:
        """The next failure of ``what`` is news again.  False: that it works again was held back."""
        if self._failures.pop(what, None) is None:
            return True
        return self.tell(EventKind.RECOVERED, f"{what} works again", {"what": what})

    def deadline(self) -> float | None:
        """Seconds until :meth:`tick` can say what was held back; None: nothing was."""
        if not self._holds_back:
            return None
        now = self._monotonic()
        return min((b.due(now) for b in self._buckets.values() if b.held_back), default=None)

    def tick(self) -> None:
        """Say what was held back, as soon as that may be said."""
        if not self._holds_back:
            return
        now = self._monotonic()
        for (kind, _), bucket in list(self._buckets.items()):  # a listener may tell something itself
            if bucket.held_back and bucket.take(now):
                held_back, bucket.held_back = bucket.held_back, 0
                self._listener(kind, f"{held_back} more times", {"suppressed": held_back})
        self._holds_back = any(bucket.held_back for bucket in self._buckets.values())


class Bucket:
    """As many tokens as events that may be told now: ``burst``, and one more each ``refill`` seconds."""

    def __init__(self, now: float, burst: int, refill: float) -> None:
        self.held_back = 0
        self._burst = float(burst)
        self._refill = refill
        self._tokens = self._burst
        self._filled_at = now

    def take(self, now: float) -> bool:
        """False: not now; the caller counts that in ``held_back``."""
        self._fill(now)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def due(self, now: float) -> float:
        """Seconds until there is one."""
        self._fill(now)
        return max(0.0, (1 - self._tokens) * self._refill)

    def _fill(self, now: float) -> None:
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) / self._refill)
        self._filled_at = now
