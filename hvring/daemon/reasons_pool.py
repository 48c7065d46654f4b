# SPDX-License-Identifier: Apache-2.0
"""Why a service failed, where the host's administrator can read it: `hvring.vss.last_error` and others in pool 1.

Nothing is written while file systems are frozen, and nothing by the clock while nothing fails.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final

from hvring.agent.agent import Agent
from hvring.agent.settings import Settings
from hvring.daemon.forms import iso
from hvring.errors import HvringError
from hvring.events import Event, EventKind, printable
from hvring.pending import Pending
from hvring.services import IntegrationService
from hvring.services.service import Failure

POOL: Final = 1  # what this machine tells the host
LARGEST: Final = 1022  # bytes of a value that every host can read
PAUSE: Final = (
    5.0  # seconds between two writes for one service; of what comes between them the last one counts
)

#: What shows that a service does its work again, whatever an earlier run of this program left in the pool.
_GOOD: Final = (EventKind.THAWED, EventKind.COPIED, EventKind.CHANGED, EventKind.RECOVERED)


class ReasonsPool:
    """Keeps the keys of ``agent``'s services; ``settings`` gives what holds now.  For one event loop."""

    def __init__(
        self,
        agent: Agent,
        settings: Callable[[], Settings],
        tell: Callable[[str, str, str], None],
        *,
        pause: float = PAUSE,
    ) -> None:
        self._agent = agent
        self._settings = settings
        self._tell = tell
        self._pause = pause
        self._written: dict[str, str | None] = {}
        self._at: dict[str, float] = {}
        self._waiting: dict[str, asyncio.TimerHandle] = {}
        self._has_failed = False

    def heard(self, event: Event) -> None:
        """Something happened."""
        service = self._agent.services.get(event.service)
        if isinstance(service, IntegrationService) and service.last_failure is None:
            if event.kind in _GOOD:
                self._want(event.service, None)
            return
        self.look()

    def look(self) -> None:
        """Write what is new, as soon as that may be done."""
        for name, service in self._agent.services.items():
            failure = service.last_failure if isinstance(service, IntegrationService) else None
            if failure is not None:
                self._want(name, value(failure) if failure.over_at is None else None)

    async def __aenter__(self) -> ReasonsPool:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What waits for its time is not written any more."""
        for timer in self._waiting.values():
            timer.cancel()
        self._waiting.clear()

    def _want(self, name: str, text: str | None) -> None:
        if name in self._waiting or self._agent.quiet or not self._is_wanted():
            return
        if name in self._written and self._written[name] == text:
            return
        left = self._at.get(name, -self._pause) + self._pause - time.monotonic()
        if left > 0:
            self._later(name, left, lambda: None)
            return
        self._at[name] = time.monotonic()
        self._written[name] = text
        self._go_on(name, lambda: self._write(name, text))

    def _is_wanted(self) -> bool:
        settings = self._settings()
        wanted = settings.kvp.publish_errors
        return settings.real if wanted is None else wanted

    def _write(self, name: str, text: str | None) -> object:
        from hvring.guest.pool import Pool

        directory = os.fspath(self._settings().kvp.pool_directory)
        if not os.path.isdir(directory):  # nobody here exchanges data with the host
            return None
        pool = Pool(os.path.join(directory, f".kvp_pool_{POOL}"), timeout=self._settings().kvp.timeout)
        key = f"hvring.{name}.last_error"
        return pool.begin_delete(key) if text is None else pool.begin_set(key, text)

    def _go_on(self, name: str, step: Callable[[], object]) -> None:
        try:
            outcome = step()
        except (HvringError, OSError) as error:
            if not self._has_failed:  # once: who reads this knows where to look
                self._has_failed = True
                self._tell("failed", name, f"the host cannot be told why in pool {POOL}: {error}")
            return
        if isinstance(outcome, Pending):
            resume = outcome.resume
            self._later(name, outcome.at - time.monotonic(), lambda: self._go_on(name, resume))

    def _later(self, name: str, seconds: float, step: Callable[[], None]) -> None:
        def go_on() -> None:
            del self._waiting[name]
            if self._agent.quiet:  # it is looked at anew after the thaw
                self._written.pop(name, None)
                return
            step()
            self.look()

        self._waiting[name] = asyncio.get_running_loop().call_later(max(0.0, seconds), go_on)


def value(failure: Failure) -> str:
    """When, the name, the error and the remedy, in at most :data:`LARGEST` bytes."""
    reason = failure.reason
    head = f"{iso(failure.at)} {reason.value}: "
    tail = f" [{reason.remedy}]"
    words = printable(f"{failure.what}: {failure.error}" if str(failure.error) else repr(failure.error))
    room = LARGEST - len(head.encode()) - len(tail.encode())
    return head + words.encode()[:room].decode(errors="ignore") + tail
