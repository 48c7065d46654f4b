# SPDX-License-Identifier: Apache-2.0
"""What the host tells about its guests: events as they happen, and the list of broken rules, both with a bound."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from hvring.events import Event, EventKind
from hvring.news import LONGEST, News

MAX_LISTED: Final = 1000  # violations that are kept; further ones are counted

_log = logging.getLogger("hvring.host")


class Violation(str):
    """A rule that a guest broke: a text, with its parts as ``service``, ``request`` and ``what``."""

    __slots__ = ("request", "service", "what")
    service: str
    request: str
    what: str

    def __new__(cls, service: str, request: str, what: str) -> Violation:
        self = super().__new__(cls, f"{service}: {request}: {what}")
        self.service, self.request, self.what = service, request, what
        return self


class Reports:
    """``violations`` are the first ``MAX_LISTED``; ``violation_count`` and ``suppressed`` (events) count on.

    ``on_event`` hears at most a burst of each kind of event of each service, then one now and then with the number of
    those before it (:class:`hvring.news.News`): a guest cannot fill a log.
    """

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self.violations: list[Violation] = []
        self.violation_count = 0
        self.suppressed = 0
        self._on_event = on_event
        self._news: dict[str, News] = {}
        self._timer: asyncio.TimerHandle | None = None

    def tell(self, service: str, kind: EventKind, detail: str = "") -> None:
        """Report an event; ``service`` is one of this host's own names."""
        if not self._of(service).tell(kind, detail):
            self.suppressed += 1
            self._wait()

    def failed(self, service: str, what: str, error: Exception) -> None:
        """Report that ``what`` failed, unless it failed in the same way the last time."""
        if not self._of(service).failed(what, error):
            self.suppressed += 1
            self._wait()

    def worked(self, service: str, what: str) -> None:
        """The next failure of ``what`` is news again."""
        self._of(service).worked(what)

    def violation(self, service: str, request: str, what: str) -> None:
        """List a broken rule, or count it when the list is full."""
        violation = Violation(service, request, what[:LONGEST])
        self.violation_count += 1
        if len(self.violations) < MAX_LISTED:
            self.violations.append(violation)
        self.tell(service, EventKind.VIOLATION, f"{request}: {what}")

    def close(self) -> None:
        """Say nothing any more of what was held back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _of(self, service: str) -> News:
        news = self._news.get(service)
        if news is None:
            news = self._news[service] = News(
                lambda kind, detail, facts: self._said(Event(service, kind, detail, facts))
            )
        return news

    def _said(self, event: Event) -> None:
        _log.debug("%s", event)
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:  # of the listener; the guests are not to suffer from it
                _log.exception("the listener for events failed")

    def _wait(self) -> None:
        if self._timer is None:
            due = [left for news in self._news.values() if (left := news.deadline()) is not None]
            if due:
                self._timer = asyncio.get_running_loop().call_later(min(due), self._tick)

    def _tick(self) -> None:
        self._timer = None
        for news in list(self._news.values()):  # a listener may have the host tell something more
            news.tick()
        self._wait()
