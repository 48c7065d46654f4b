# SPDX-License-Identifier: Apache-2.0
"""Shutdown, message type 3 (PROTOCOL §4.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntFlag
from typing import Final

from hvring.errors import ShortMessageError
from hvring.ic.fields import pack
from hvring.ic.frame import Version

FRAMEWORKS: Final = (Version(3, 0), Version(1, 0))
VERSIONS: Final = (Version(3, 2), Version(3, 1), Version(3, 0), Version(1, 0))

TEXT_SIZE: Final = 2048
SIZE: Final = 12 + TEXT_SIZE
PLANNED: Final = 0x80000000  # reason code that OpenVMM sends

_HEAD: Final = struct.Struct("<III")


class ShutdownFlag(IntFlag):
    """The flags field; any other bit makes the request invalid."""

    FORCE = 1
    RESTART = 2
    HIBERNATE = 4


@dataclass(frozen=True, slots=True)
class ShutdownRequest:
    """What the administrator asked for; ``timeout`` in seconds.

    No source states the encoding of ``text`` (PROTOCOL §7): it is written as UTF-8 and read as whichever of
    UTF-8 and UTF-16LE it looks like; control characters look like UTF-16LE.
    """

    reason: int = PLANNED
    timeout: int = 0
    flags: int = 0  # ShutdownFlag, or whatever the host wrote
    text: str = ""

    def encode(self) -> bytes:
        """Raises ValueError when the text does not fit or cannot be encoded, or a number does not fit."""
        try:
            raw = self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not Unicode: {error.reason}") from None
        if len(raw) >= TEXT_SIZE or b"\0" in raw:
            raise ValueError(f"the text must be shorter than {TEXT_SIZE} bytes, without NUL")
        head = pack(_HEAD, "a shutdown request", self.reason, self.timeout, self.flags)
        return head + raw.ljust(TEXT_SIZE, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> ShutdownRequest:
        """Raises ShortMessageError below 2060 bytes."""
        if len(body) < SIZE:
            raise ShortMessageError(f"a shutdown request of {len(body)} bytes")
        reason, timeout, flags = _HEAD.unpack_from(body)
        return cls(reason, timeout, flags, _read_text(bytes(body[_HEAD.size : SIZE])))


def _read_text(raw: bytes) -> str:
    """Never raises.  Text behind the first NUL byte, or a start that is not UTF-8, speaks for UTF-16LE."""
    head, _, tail = raw.partition(b"\0")
    try:
        text = head.decode()
    except UnicodeDecodeError:
        pass
    else:
        if not any(tail) and all(c >= " " or c in "\t\r\n" for c in text):
            return text
    return raw.decode("utf-16-le", "replace").split("\0", 1)[0]
