# SPDX-License-Identifier: Apache-2.0
"""The states of a service, its limits, and the clock that these are on (PROTOCOL §10.3)."""

from __future__ import annotations

from collections.abc import Collection
from enum import IntEnum
from typing import Final, Protocol

FAIL: Final = 0x80004005
LIMIT: Final = 30.0
FREEZE_LIMIT: Final = 900.0
PAGE: Final = 4096
HEADER: Final = 28


class State(IntEnum):
    """In the kernel's order, which is compared with < and >."""

    INIT = 0
    READY = 1
    HOSTMSG_RECEIVED = 2
    USERSPACE_REQ = 3
    USERSPACE_RECV = 4
    DYING = 5


class Mode(IntEnum):
    """Of the file: nobody has it, somebody has it, the driver leaves."""

    INIT = 0
    CHARDEV = 1
    DESTROY = 2


class Timed(Protocol):
    """What has a limit."""

    deadline: float | None

    def time_out(self) -> None: ...


class Clock:
    """Seconds since the start of the model."""

    def __init__(self) -> None:
        self.now = 0.0

    def advance(self, seconds: float, devices: Collection[Timed]) -> None:
        until = self.now + seconds
        while due := [d for d in devices if d.deadline is not None and d.deadline <= until]:
            first = min(due, key=lambda d: d.deadline or 0.0)
            self.now = max(self.now, first.deadline or 0.0)
            first.time_out()
        self.now = until
