# SPDX-License-Identifier: Apache-2.0
r"""A line of the log in its three forms: one line whatever the other side wrote, and nothing in it that obeys.

``text``: `key=value` with a value in quotes where it needs them; `\\`, `\"` and the escapes of Python's strings
are in it.  ``json``: an object in ASCII.  ``words``: for a person at a terminal.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from hvring.events import printable

LEVELS: Final = {10: "debug", 20: "info", 30: "warning", 40: "error"}
_FIRST: Final = frozenset(("time", "level", "rehearsal", "event", "service", "detail"))
_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_./:+@%,-")
#: What the journal makes of `<N>` at the start of a line, by syslog's numbers.
_PRIORITIES: Final = {"debug": 7, "info": 6, "warning": 4, "error": 3}


@dataclass(frozen=True, slots=True)
class Line:
    """``at`` in seconds since 1970; ``level`` as of :mod:`logging`; ``facts`` in the order in which they are shown."""

    at: float
    level: int
    event: str
    service: str = ""
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def level_name(self) -> str:
        """The next one below it that has a name."""
        return LEVELS.get(max(10, min(40, self.level // 10 * 10)), "info")


def text(line: Line, *, stamped: bool, rehearsal: bool) -> str:
    """`time=… level=… event=… service=…`, the facts, `detail=…`; what is None or empty is left out."""
    return " ".join(
        f"{_name(key)}={_quoted(value)}"
        for key, value in _pairs(line, stamped, rehearsal)
        if value is not None and value not in ("", [])
    )


def json(line: Line, *, stamped: bool, rehearsal: bool) -> str:
    """The same as an object; ``rehearsal`` and what is None are always in it."""
    from json import dumps

    fields = dict(_pairs(line, stamped, rehearsal), rehearsal=rehearsal)
    if not line.detail:
        fields["detail"] = ""
    # DEL is the one control character that JSON leaves as it is.
    return dumps(clean(fields), allow_nan=False).replace("\x7f", "\\u007f")


def words(line: Line, *, stamped: bool, rehearsal: bool) -> str:
    """For people: what is in the facts only is left out when there is a text for them."""
    said = line.detail or "  ".join(f"{key}: {_flat(value)}" for key, value in line.facts.items() if value)
    head = f"{iso(line.at)} " if stamped else ""
    mark = "rehearsal: " if rehearsal else ""
    who = f"{line.service}: " if line.service else ""
    return printable(f"{head}{mark}{who}{line.event} {said}").rstrip()


def prefixed(line: Line, said: str) -> str:
    """As the journal reads it from a program's output."""
    return f"<{_PRIORITIES[line.level_name]}>{said}"


def iso(at: float) -> str:
    """ISO 8601 in UTC, with milliseconds."""
    whole, thousandths = divmod(int(at * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03d}Z"


def _pairs(line: Line, stamped: bool, rehearsal: bool) -> Iterator[tuple[str, Any]]:
    if stamped:
        yield "time", iso(line.at)
    yield "level", line.level_name
    if rehearsal:
        yield "rehearsal", True
    yield "event", line.event
    if line.service:
        yield "service", line.service
    for key, value in line.facts.items():
        yield f"{key}_" if key in _FIRST else key, value
    if line.detail:
        yield "detail", line.detail


def _name(key: str) -> str:
    return "".join(c if c in _PLAIN else "_" for c in key)


def _flat(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _quoted(value: Any) -> str:
    flat = _flat(value)
    if flat and _PLAIN.issuperset(flat):
        return flat
    return '"' + printable(flat.replace("\\", "\\\\")).replace('"', '\\"') + '"'


def clean(value: Any) -> Any:
    """What JSON can say and every reader of it understands: no half of a character, no number that is none."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean(each) for each in value]
    return value
