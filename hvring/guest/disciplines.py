# SPDX-License-Identifier: Apache-2.0
"""Who else keeps this machine's clock: what the kernel counts as kept, and the programs that may do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from hvring.guest.holders import Holder, running

#: By their names; phc2sys and ptp4l by a PTP clock, the others over the network, too.
DISCIPLINES: Final = ("chronyd", "ntpd", "systemd-timesyncd", "phc2sys", "ptp4l")

_KEPT: Final = 60.0  # seconds for which an answer holds: a host may ask as often as it likes


@dataclass(frozen=True, slots=True)
class Discipline:
    """Somebody keeps the clock; no ``holders`` where nobody of those that are known is seen."""

    holders: tuple[Holder, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.holders)) or "a program that cannot be seen from here"


def disciplines(proc: str = "/proc") -> list[Holder]:
    """Programs that run and may keep the clock, one process of each: chrony, for one, has two."""
    found = {one.name: one for one in reversed(running(DISCIPLINES, proc))}
    return [*reversed(found.values())]


def is_kept() -> bool:
    """Whether the kernel counts its clock as kept (no STA_UNSYNC); false where it may not be asked.

    After a step by anybody it is not, until the next correction by whoever keeps it.
    """
    from hvring.guest._ntp import kernel_state

    try:
        return kernel_state()[0]
    except OSError:
        return False


class Watch:
    """Asks both, and not again for a while; a clock that is not kept is asked for each time."""

    def __init__(
        self,
        *,
        proc: str = "/proc",
        is_kept: Callable[[], bool] = is_kept,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proc = proc
        self._is_kept = is_kept
        self._monotonic = monotonic
        self._known: tuple[float, Discipline] | None = None

    def __call__(self) -> Discipline | None:
        """Who keeps the clock now; None: nobody, and a program that only runs does not count."""
        if not self._is_kept():
            return None
        now = self._monotonic()
        if self._known is None or now - self._known[0] >= _KEPT:
            try:
                found = disciplines(self._proc)
            except OSError:  # no /proc
                found = []
            self._known = now, Discipline(tuple(found))
        return self._known[1]
