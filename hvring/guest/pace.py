# SPDX-License-Identifier: Apache-2.0
"""A rest after work that took long, so that whoever asks for it again and again does not get all of the time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from hvring.pending import Pending

LONG: Final = 0.005  # seconds; what is shorter needs no rest
SHARE: Final = 10  # times as long as the work is the rest after it,
LONGEST: Final = 1.0  # but not longer than so many seconds

T = TypeVar("T")


class Pace:
    """Begins no step before the rest after the last one is over."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._rests_until = monotonic()

    def go(self, step: Callable[[], T | Pending[T]]) -> T | Pending[T]:
        """What ``step`` gives or raises, now or after the rest; so, too, with what it leaves to be done later."""
        began = self._monotonic()
        if began < self._rests_until:
            return Pending(lambda: self.go(step), self._rests_until)
        return self._timed(step, began)

    def _timed(self, step: Callable[[], T | Pending[T]], began: float) -> T | Pending[T]:
        try:
            outcome = step()
        finally:
            ended = self._monotonic()
            if ended - began > LONG:
                self._rests_until = ended + min(SHARE * (ended - began), LONGEST)
        if not isinstance(outcome, Pending):
            return outcome
        pending: Pending[T] = outcome
        return Pending(
            lambda: self._timed(pending.resume, self._monotonic()),
            pending.at,
            pending.descriptor,
            pending.cancel,
        )
