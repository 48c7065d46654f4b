# SPDX-License-Identifier: Apache-2.0
"""Heartbeat, message type 1 (PROTOCOL §4.3)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hvring.errors import ShortMessageError
from hvring.ic.fields import pack
from hvring.ic.frame import Version

FRAMEWORKS: Final = (Version(3, 0), Version(1, 0))
VERSIONS: Final = (Version(3, 0), Version(1, 0))  # those of Linux, newest first

MINIMUM: Final = 8  # the sequence number
STATE_END: Final = 12
SHORT_SIZE: Final = 16  # Windows' struct
LINUX_SIZE: Final = 40

_HEAD: Final = struct.Struct("<QI")


class ApplicationState(IntEnum):
    """How the guest says its applications are."""

    UNKNOWN = 0
    HEALTHY = 1
    CRITICAL = 2
    STOPPED = 3


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """One beat; ``rest`` is what follows the state, reserved, and decides the size."""

    sequence: int
    state: int = ApplicationState.UNKNOWN  # may be a number that ApplicationState does not know
    rest: bytes = bytes(LINUX_SIZE - STATE_END)

    def encode(self) -> bytes:
        """Raises ValueError for a number that does not fit."""
        return pack(_HEAD, "a heartbeat", self.sequence, self.state) + self.rest

    @classmethod
    def decode(cls, body: bytes) -> Heartbeat:
        """A body that ends before the state has state 0; ShortMessageError below 8 bytes."""
        if len(body) < MINIMUM:
            raise ShortMessageError(f"a heartbeat of {len(body)} bytes")
        sequence, state = _HEAD.unpack(body[:STATE_END].ljust(STATE_END, b"\0"))
        return cls(sequence, state, bytes(body[STATE_END:]))

    def next(self) -> Heartbeat:
        """The beat that answers this one: one higher, modulo 2^64."""
        return Heartbeat((self.sequence + 1) % 2**64, self.state, self.rest)
