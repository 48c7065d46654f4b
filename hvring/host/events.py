# SPDX-License-Identifier: Apache-2.0
"""What the host tells about its guests: events as they happen, and the list of broken rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

MAX_LISTED: Final = 1000  # violations that are kept; further ones are counted

Kind = Literal["attached", "negotiated", "failed", "contact", "detached", "refused", "offer", "violation"]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; ``str()`` is one line for people."""

    kind: Kind
    service: str
    text: str

    def __str__(self) -> str:
        return f"{self.service}: {self.text}"


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
