# SPDX-License-Identifier: Apache-2.0
"""What every integration-service message has in common: pipe header, IC header, body (PROTOCOL §3.1).

Two views of it.  :class:`Frame` is a whole message with exact sizes: what a host sends, and how it reads
an answer.  :class:`Request`, in C, is a message as a guest finds it on the ring, 8-rounded and with whatever its
sizes claim, together with the only way to answer it: the received bytes, edited in place (Appendix B).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from hvring.errors import LyingLengthError, ShortMessageError
from hvring.ic._request import Inbox as Inbox
from hvring.ic._request import Request as Request
from hvring.ic._request import plain_chunk as plain_chunk
from hvring.ic.fields import pack
from hvring.ic.version import Version as Version

PIPE_HEADER: Final = 8
HEADER: Final = 28  # pipe header + IC header: where the body begins, P+28
MAX_MESSAGE: Final = 13312  # IC header + body
MAX_BODY: Final = MAX_MESSAGE - (HEADER - PIPE_HEADER)
DATA: Final = 1  # the only pipe packet type that integration services use

_FRAME: Final = struct.Struct("<IIHHHHHHIBBH")


class MessageType(IntEnum):
    """The field at P+12 (PROTOCOL §3.2)."""

    NEGOTIATE = 0
    HEARTBEAT = 1
    KVP = 2
    SHUTDOWN = 3
    TIMESYNC = 4
    VSS = 5
    RDV = 6
    FCOPY = 7
    SESSION = 8


class HeaderFlag(IntFlag):
    """The byte at P+25."""

    TRANSACTION = 1
    REQUEST = 2
    RESPONSE = 4


REQUEST_FLAGS: Final = 3  # TRANSACTION | REQUEST
RESPONSE_FLAGS: Final = 5  # TRANSACTION | RESPONSE
NO_VERSION: Final = Version(0, 0)


def round8(n: int) -> int:
    """The size that ``n`` bytes take on a ring."""
    return (n + 7) & ~7


@dataclass(frozen=True, slots=True)
class Frame:
    """One message with sizes that are exact and true."""

    type: int
    body: bytes = b""
    framework: Version = NO_VERSION
    version: Version = NO_VERSION
    status: int = 0
    transaction_id: int = 0
    flags: int = REQUEST_FLAGS
    pipe_type: int = DATA

    def encode(self) -> bytes:
        """The payload of one in-band packet, not rounded up.  Raises ValueError for what does not fit."""
        if len(self.body) > MAX_BODY:
            raise ValueError(f"a body of {len(self.body)} bytes is over the limit of {MAX_BODY}")
        size = len(self.body)
        head = pack(
            _FRAME,
            "a message",
            self.pipe_type,
            HEADER - PIPE_HEADER + size,
            *self.framework,
            self.type,
            *self.version,
            size,
            self.status,
            self.transaction_id,
            self.flags,
            0,
        )
        return head + self.body

    @classmethod
    def decode(cls, payload: bytes | bytearray | memoryview) -> Frame:
        """Read a payload whose sizes must be true; padding behind them is cut off.

        Raises ShortMessageError when the headers are not whole, LyingLengthError when a size claims too much.
        """
        if len(payload) < HEADER:
            raise ShortMessageError(f"{len(payload)} bytes cannot hold the {HEADER} bytes of headers")
        pipe_type, pipe_size, f0, f1, kind, v0, v1, size, status, tid, flags, _ = _FRAME.unpack_from(payload)
        if pipe_size < HEADER - PIPE_HEADER:
            raise LyingLengthError(f"pipe size {pipe_size} does not cover the IC header")
        if PIPE_HEADER + pipe_size > len(payload):
            raise LyingLengthError(f"pipe size {pipe_size} in a payload of {len(payload)} bytes")
        if HEADER + size > PIPE_HEADER + pipe_size:
            raise LyingLengthError(f"body size {size} in a pipe message of {pipe_size} bytes")
        body = bytes(payload[HEADER : HEADER + size])
        return cls(kind, body, Version(f0, f1), Version(v0, v1), status, tid, flags, pipe_type)
