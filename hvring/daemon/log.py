# SPDX-License-Identifier: Apache-2.0
"""What `hvring run` says of itself: events, its own words and the records of :mod:`logging`, on one stream.

Nothing is written while file systems are frozen: lines are made when something happens, with that time, and the thread
that writes them waits for the thaw.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from hvring.agent.agent import Agent
from hvring.agent.reporter import EVENTS_LOG
from hvring.daemon import forms
from hvring.daemon.forms import Line
from hvring.daemon.lines import Lines
from hvring.daemon.settings import LogSettings
from hvring.events import Event, EventKind, level
from hvring.guest.power import ShutdownOrder
from hvring.news import Bucket
from hvring.services import TimeSync

_RECORDS: Final = 200  # of one level of logging that may come together,
_RECORDS_REFILL: Final = 0.5  # and seconds until there may be one more
_LATE: Final = 1.0  # seconds after which a stamp of somebody else would be wrong
_FORMS: Final = {"text": forms.text, "json": forms.json, "words": forms.words}
_LEVELS: Final = {name: number for number, name in forms.LEVELS.items()}
_OWN: Final = {kind.value: level(kind) for kind in EventKind}


class Log:
    """Lines of ``settings``' form on ``say``; a rehearsal says so on every line."""

    def __init__(self, say: Lines, settings: LogSettings, *, rehearsal: bool) -> None:
        """ValueError for a form or a level that there is not."""
        self._lines = say
        self._rehearsal = rehearsal
        self._agent: Agent | None = None
        self.waits: dict[str, str] = {}  #: what each service waits for, or waited for last
        self._orders: list[dict[str, Any]] = []
        self._buckets: dict[int, Bucket] = {}
        self._is_journal = is_journal(say.descriptor)
        self.adopt(settings)
        say.lost = self._lost

    def adopt(self, settings: LogSettings) -> None:
        """From here on; ValueError for a form or a level that there is not."""
        form = settings.form
        if form == "auto":
            form = "words" if self._lines.is_terminal else "text"
        if form not in _FORMS or settings.level not in _LEVELS:
            raise ValueError(f"a log has no form {settings.form!r} or no level {settings.level!r}")
        self._form = _FORMS[form]
        self._is_json = form == "json"
        self._level = _LEVELS[settings.level]
        logging.getLogger().setLevel(self._level if self._heard else logging.WARNING)

    _heard = False  # whether this is where the records of logging go

    @contextmanager
    def heard(self) -> Iterator[Log]:
        """The records of :mod:`logging` come here, too, until the end of the block."""
        root, events = logging.getLogger(), logging.getLogger(EVENTS_LOG)
        before = root.handlers[:], root.level, events.level
        root.handlers[:] = [_Handler(self)]
        events.setLevel(logging.CRITICAL + 1)  # they come as events
        self._heard = True
        root.setLevel(self._level)
        try:
            yield self
        finally:
            self._heard = False
            root.handlers[:] = before[0]
            root.setLevel(before[1])
            events.setLevel(before[2])

    def follow(self, agent: Agent) -> None:
        """Be silent while ``agent`` holds a freeze, or may."""
        self._agent = agent
        self._lines.is_held = lambda: agent.quiet

    def calm(self) -> None:
        """What ``agent`` froze is thawed."""
        self._lines.wake()

    # ------------------------------------------------------------------------- what is said

    def event(self, event: Event) -> None:
        """What the agent tells, as it happens."""
        self._write(
            Line(event.at, level(event.kind), event.kind.value, event.service, event.detail, event.facts)
        )

    def tell(self, what: str, service: str, detail: str, **facts: Any) -> None:
        """What this command has to tell itself, in the same form."""
        if what == EventKind.WAITING.value:
            self.waits[service] = detail
        self._write(Line(time.time(), _OWN.get(what, logging.INFO), what, service, detail, facts))

    def say(self, event: str, **facts: Any) -> None:
        """What a program that reads the log relies on: written at any level."""
        self._put(Line(time.time(), logging.INFO, event, facts=facts))

    def shutdown(self, order: ShutdownOrder) -> None:
        """What the host ordered; the newest orders are in the summary."""
        self._orders.append(
            {
                "action": order.action.value,
                "force": order.force,
                "reason": f"{order.reason:#010x}",
                "timeout": order.timeout,
                "text": order.text,
            }
        )
        del self._orders[:-100]  # a host could go on for ever

    def record(self, record: logging.LogRecord) -> None:
        """Of logging, within a limit; how many more there were is in the next one."""
        bucket = self._buckets.get(record.levelno)
        if bucket is None:
            bucket = self._buckets[record.levelno] = Bucket(time.monotonic(), _RECORDS, _RECORDS_REFILL)
        if not bucket.take(time.monotonic()):
            bucket.held_back += 1
            return
        facts: dict[str, Any] = {"logger": record.name}
        if bucket.held_back:
            facts["suppressed"], bucket.held_back = bucket.held_back, 0
        if record.exc_info:
            facts["traceback"] = logging.Formatter().formatException(record.exc_info)
        self._write(Line(record.created, record.levelno, "log", "", record.getMessage(), facts))

    def end(self, agent: Agent) -> None:
        """What was suppressed, and for programs the numbers of this run."""
        for number, bucket in self._buckets.items():
            if bucket.held_back:
                self._write(
                    Line(time.time(), number, "log", "", "more records", {"suppressed": bucket.held_back})
                )
        if not self._is_json:
            return
        time_service = agent.services.get("timesync")
        measured = time_service.measurement if isinstance(time_service, TimeSync) else None
        self.say(
            "summary",
            services=agent.stats(),
            orders=self._orders,
            clock_offset_ns=None if measured is None else measured.offset_ns,
            clock_sample_age=None if measured is None else time.monotonic() - measured.taken,
            clock_uncertainty_ns=None if measured is None else measured.uncertainty_ns,
            clock_delay_known=None if measured is None else measured.is_corrected,
        )

    # ------------------------------------------------------------------------- inside

    def _write(self, line: Line) -> None:
        if line.level >= self._level:
            self._put(line)

    def _put(self, line: Line) -> None:
        self._lines(self._formed(line))

    def _formed(self, line: Line) -> str:
        is_late = (self._agent is not None and self._agent.quiet) or abs(time.time() - line.at) > _LATE
        said = self._form(line, stamped=is_late or not self._is_journal, rehearsal=self._rehearsal)
        return forms.prefixed(line, said) if self._is_journal else said

    def _lost(self, count: int) -> str:
        detail = "" if self._is_json else "nobody read these lines, or there were too many during a freeze"
        return self._formed(Line(time.time(), logging.WARNING, "lost", "", detail, {"lines": count}))


class _Handler(logging.Handler):
    """Holds nothing up: a line that nobody reads is lost."""

    def __init__(self, log: Log) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._log.record(record)
        except Exception:  # a record whose arguments do not fit its words must not end who wrote it
            self._log.tell("log", "", f"a record of {record.name} cannot be shown: {record.msg!r}")


def is_journal(descriptor: int, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the journal is at the other end, which then stamps each line itself."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return environment.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"
