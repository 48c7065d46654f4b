# SPDX-License-Identifier: Apache-2.0
"""Time synchronization, message type 4, in its two layouts (PROTOCOL §4.2)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from hvring.errors import ShortMessageError
from hvring.ic.fields import pack
from hvring.ic.frame import Version

FRAMEWORKS: Final = (Version(3, 0), Version(1, 0))
VERSIONS: Final = (Version(4, 0), Version(3, 0), Version(1, 0))

EPOCH: Final = 116444736000000000  # 1601-01-01 to 1970-01-01 in units of 100 ns

V3_SIZE: Final = 28
V3_LINUX_SIZE: Final = 25  # through the flags
V4_SIZE: Final = 24
V4_LINUX_SIZE: Final = 22
V4_MINIMUM: Final = 17  # through the flags

_V3: Final = struct.Struct("<QQQB")
_V4: Final = struct.Struct("<QQBBB")


class SampleFlag(IntFlag):
    """Neither bit is a probe."""

    SYNC = 1
    SAMPLE = 2


def to_unix_ns(hyperv: int) -> int:
    """Nanoseconds since 1970 from Hyper-V's 100 ns units since 1601."""
    return (hyperv - EPOCH) * 100


def from_unix_ns(unix_ns: int) -> int:
    """Hyper-V's 100 ns units since 1601 from nanoseconds since 1970, rounded down."""
    return unix_ns // 100 + EPOCH


@dataclass(frozen=True, slots=True)
class TimeSampleV3:
    """The body for message versions before 4.0; times in 100 ns units."""

    parent: int  # host time since 1601
    flags: int = 0
    child: int = 0
    round_trip: int = 0

    def encode(self) -> bytes:
        """Raises ValueError for a number that does not fit."""
        raw = pack(_V3, "a time sample", self.parent, self.child, self.round_trip, self.flags)
        return raw.ljust(V3_SIZE, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> TimeSampleV3:
        """Raises ShortMessageError below 25 bytes."""
        if len(body) < V3_LINUX_SIZE:
            raise ShortMessageError(f"a version 3 time sample of {len(body)} bytes")
        parent, child, round_trip, flags = _V3.unpack_from(body)
        return cls(parent, flags, child, round_trip)


@dataclass(frozen=True, slots=True)
class TimeSampleV4:
    """The body for message version 4.0; times in 100 ns units."""

    parent: int  # host time since 1601
    reference: int  # the guest's reference counter when the host looked at its clock
    flags: int = 0
    leap: int = 0
    stratum: int = 0

    def encode(self) -> bytes:
        """Raises ValueError for a number that does not fit."""
        raw = pack(_V4, "a time sample", self.parent, self.reference, self.flags, self.leap, self.stratum)
        return raw.ljust(V4_SIZE, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> TimeSampleV4:
        """Fields behind the flags may be missing and are 0 then; ShortMessageError below 17 bytes."""
        if len(body) < V4_MINIMUM:
            raise ShortMessageError(f"a version 4 time sample of {len(body)} bytes")
        return cls(*_V4.unpack(body[: _V4.size].ljust(_V4.size, b"\0")))
