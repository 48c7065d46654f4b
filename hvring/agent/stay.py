# SPDX-License-Identifier: Apache-2.0
"""Staying for the host's next request, instead of a sleep and a wake-up for each (docs/decisions/0017)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, runtime_checkable

from hvring.channel._spinner import Spinner


@dataclass(frozen=True, slots=True)
class Stay:
    """For how long one look may go on, and for how much of the time that passes all looks of one channel."""

    seconds: float = 0.0
    share: float = 0.05


NEVER: Final = Stay()


@runtime_checkable
class Looks(Protocol):
    """A channel that can look for its next packet; as :class:`hvring.Channel`."""

    spin: float
    spin_share: float

    def stay(self, seconds: float, /) -> bool: ...


def looking(channel: object, stay: Stay) -> Looks | None:
    """``channel``, told how to look; None: it does not, because it cannot or may not."""
    if stay.seconds <= 0 or not isinstance(channel, Looks):
        return None
    channel.spin_share, channel.spin = stay.share, stay.seconds
    return channel if channel.spin > 0 else None


class PollingLook:
    """The same where each glance is a call of the kernel, within the same bounds."""

    def __init__(self, stay: Stay, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.spinner: Final = Spinner()
        self._monotonic = monotonic
        self._is_asleep = False
        self.spinner.set(int(stay.seconds * 1e9), stay.share, self._now())

    def stay(self, has_arrived: Callable[[], bool], seconds: float) -> bool:
        """Whether something arrives within what may be spent, and ``seconds``.  Raises what ``has_arrived`` does."""
        now = self._now()
        budget = int(min(self.spinner.budget(now), seconds * 1e9))
        came = False
        if budget > 0:
            until = now + budget
            while not came and now < until:
                came = has_arrived()
                now = self._now()
            self.spinner.seen(came, now, budget)
        self._is_asleep = not came
        return came

    def wake(self, came: bool) -> None:
        """The sleep that followed is over, with or without something that arrived."""
        if self._is_asleep:
            self._is_asleep = False
            self.spinner.slept(self._now(), came)

    def _now(self) -> int:
        return int(self._monotonic() * 1e9)
