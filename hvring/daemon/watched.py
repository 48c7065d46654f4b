# SPDX-License-Identifier: Apache-2.0
"""A check for the heartbeat, and what is believed of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from hvring.daemon.health import Finding
from hvring.events import printable
from hvring.ic.heartbeat import ApplicationState

_UNKNOWN, _HEALTHY, _CRITICAL = ApplicationState.UNKNOWN, ApplicationState.HEALTHY, ApplicationState.CRITICAL
_LONGEST: Final = 200  # characters of a reason, which may be a stranger's


class Check(Protocol):
    """Something to look at; what it raises counts as CRITICAL."""

    @property
    def name(self) -> str:
        """What is looked at, as ``unit nginx.service``."""
        ...

    async def find(self) -> Finding:
        """Look at it now.  It is cancelled when it takes too long."""
        ...


@dataclass(frozen=True, slots=True)
class Pace:
    """``interval`` and ``timeout`` in seconds; so many findings that are ``bad`` or ``good`` in a row are believed."""

    interval: float = 10.0
    timeout: float = 5.0
    bad: int = 2
    good: int = 2


class Watched:
    """One check and what is believed of it: a few findings in a row, so that a single one changes nothing."""

    def __init__(self, check: Check, pace: Pace, monotonic: Callable[[], float]) -> None:
        self.check: Final = check
        self.finding = Finding(_UNKNOWN, "not looked at yet")
        self._pace = pace
        self._monotonic = monotonic
        self._due = float("-inf")
        self._task: asyncio.Task[None] | None = None
        self._row: tuple[bool, int] = (True, 0)

    def start_if_due(self) -> None:
        """Look, if the last look was long enough ago; it goes on by itself."""
        now = self._monotonic()
        if self._task is None and now >= self._due:
            self._due = now + self._pace.interval
            self._task = asyncio.get_running_loop().create_task(self._look())

    def cancel(self) -> None:
        """Nobody wants to know any more."""
        if self._task is not None:
            self._task.cancel()

    async def _look(self) -> None:
        try:
            found = await asyncio.wait_for(self.check.find(), self._pace.timeout)
        except TimeoutError:
            found = Finding(_CRITICAL, f"no answer within {self._pace.timeout:g} s")
        except Exception as error:  # an embedder's own check, too
            found = Finding(_CRITICAL, str(error) or repr(error))
        finally:
            self._task = None
        self._believe(Finding(found.state, printable(found.why[:_LONGEST])))

    def _believe(self, found: Finding) -> None:
        is_good = found.state is _HEALTHY
        row = self._row[1] + 1 if is_good is self._row[0] else 1
        self._row = (is_good, row)
        needed = self._pace.good if is_good else self._pace.bad
        if is_good and self.finding.state is _UNKNOWN:
            needed = 1  # nothing is contradicted
        if row >= needed or is_good is (self.finding.state is _HEALTHY):
            self.finding = found
