# SPDX-License-Identifier: Apache-2.0
"""Passing events on: to the log and to the agent's owner, and to nobody while file systems are frozen."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection
from typing import Final

from hvring.events import Event, EventKind, level
from hvring.services.service import Service

log = logging.getLogger("hvring.agent")

#: The logger of all events; who writes them himself silences it.
EVENTS_LOG: Final = "hvring.agent.events"
_KEPT: Final = 1000  # events during one freeze; the oldest give way, and are counted

_events_log = logging.getLogger(EVENTS_LOG)


class Reporter:
    """Tells each event to ``listener`` and the log, in order; keeps them while one of ``services`` is quiet.

    ``on_calm`` is called when that is over and all was told.  ``keeps``: False leaves the keeping to the listener.
    """

    def __init__(
        self,
        services: Collection[Service],
        listener: Callable[[Event], None] | None,
        *,
        on_calm: Callable[[], None] | None = None,
        keeps: bool = True,
    ) -> None:
        self._services = services
        self._listener = listener
        self._on_calm = on_calm
        self._keeps = keeps
        self._kept: deque[Event] = deque(maxlen=_KEPT)
        self._lost = 0
        self._was_quiet = False

    @property
    def is_quiet(self) -> bool:
        """Whether nothing may be written now."""
        return any(service.quiet for service in self._services)

    @property
    def is_waiting(self) -> bool:
        """Whether :meth:`flush` may have something to do, be it that a freeze is over."""
        return self._was_quiet or bool(self._kept) or self._lost > 0

    def tell(self, event: Event) -> None:
        """Now, or after the thaw."""
        if self._keeps:
            self._lost += len(self._kept) == _KEPT
            self._kept.append(event)
        else:
            self._tell(event)
        self.flush()

    def flush(self) -> None:
        """Tell what was kept, if that may be done now."""
        if self.is_quiet:
            self._was_quiet = True
            return
        if self._lost:
            lost, self._lost = self._lost, 0
            what = f"{lost} events during the freeze were lost: there were too many"
            self._tell(Event("agent", EventKind.LOST, what, {"events": lost}))
        while self._kept and not self.is_quiet:  # a listener may begin a freeze
            self._tell(self._kept.popleft())
        if self._was_quiet and not self.is_quiet:
            self._was_quiet = False
            if self._on_calm is not None:
                self._call(self._on_calm)

    def _tell(self, event: Event) -> None:
        # An error in an owner's log is a fault of this package: no host can cause one.
        _events_log.log(min(level(event.kind), logging.WARNING), "%s", event)
        listener = self._listener
        if listener is not None:
            self._call(lambda: listener(event))

    def _call(self, listener: Callable[[], None]) -> None:
        try:
            listener()
        except Exception:  # of the listener; the service is not to suffer from it
            log.exception("the listener for events failed")
