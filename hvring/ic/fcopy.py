# SPDX-License-Identifier: Apache-2.0
"""Guest services, that is file copy, message type 7 (PROTOCOL §4.6)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from hvring.errors import LyingLengthError, MessageError, ShortMessageError
from hvring.ic import text
from hvring.ic.fields import exactly, pack
from hvring.ic.frame import Version

FRAMEWORKS: Final = (Version(3, 0),)
VERSIONS: Final = (Version(1, 1),)

CHUNK: Final = 6144  # most file bytes in one WRITE
NAME_FIELD: Final = 520  # bytes: 260 UTF-16 units, NUL included
HEADER_SIZE: Final = 36  # also the whole of COMPLETE and CANCEL
START_SIZE: Final = 1088
WRITE_HEADER: Final = 52
WRITE_SIZE: Final = WRITE_HEADER + CHUNK
NO_ID: Final = bytes(16)

_HEADER: Final = struct.Struct("<I16s16s")
_START_TAIL: Final = struct.Struct("<IQ")
_WRITE: Final = struct.Struct("<IqI")


class FcopyOperation(IntEnum):
    """The field at B+0."""

    START = 0
    WRITE = 1
    COMPLETE = 2
    CANCEL = 3


class FcopyFlag(IntFlag):
    """What START allows the guest to do."""

    OVERWRITE = 1
    CREATE_PATH = 2


def operation(body: bytes) -> int:
    """The operation of a body; ShortMessageError below the 36 bytes that all have."""
    if len(body) < HEADER_SIZE:
        raise ShortMessageError(f"a file copy message of {len(body)} bytes")
    return int.from_bytes(body[:4], "little")


def _head(operation: FcopyOperation, service_id: bytes, session_id: bytes) -> bytes:
    return _HEADER.pack(operation, exactly(service_id, 16, "an id"), exactly(session_id, 16, "an id"))


@dataclass(frozen=True, slots=True)
class StartCopy:
    """Begin a file: to Linux ``path`` is a directory and ``name`` goes into it; ``size`` is to come."""

    name: str
    path: str
    flags: int = 0
    size: int = 0
    service_id: bytes = NO_ID
    session_id: bytes = NO_ID

    def encode(self) -> bytes:
        """Raises ValueError for names that do not fit 259 UTF-16 units or are not Unicode, and for numbers, too."""
        return (
            _head(FcopyOperation.START, self.service_id, self.session_id)
            + text.pack(self.name, NAME_FIELD)
            + text.pack(self.path, NAME_FIELD)
            + pack(_START_TAIL, "a START", self.flags, self.size)
        )

    @classmethod
    def decode(cls, body: bytes) -> StartCopy:
        """Raises ShortMessageError below 1088 bytes, MessageError for names that are no terminated UTF-16."""
        if len(body) < START_SIZE:
            raise ShortMessageError(f"a START of {len(body)} bytes")
        _, service_id, session_id = _HEADER.unpack_from(body)
        name = text.unpack_terminated(body[36:556])
        path = text.unpack_terminated(body[556:1076])
        flags, size = _START_TAIL.unpack_from(body, 1076)
        return cls(name, path, flags, size, service_id, session_id)


@dataclass(frozen=True, slots=True)
class WriteChunk:
    """Up to 6144 bytes for ``offset``, which is signed as in Windows."""

    offset: int
    data: bytes
    service_id: bytes = NO_ID
    session_id: bytes = NO_ID

    def encode(self) -> bytes:
        """Raises ValueError over 6144 bytes, and for an offset that does not fit."""
        if len(self.data) > CHUNK:
            raise ValueError(f"{len(self.data)} bytes in one WRITE, {CHUNK} are the most")
        head = _head(FcopyOperation.WRITE, self.service_id, self.session_id)
        return head + pack(_WRITE, "a WRITE", 0, self.offset, len(self.data)) + self.data.ljust(CHUNK, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> WriteChunk:
        """The last chunk may come short as long as its data is there.

        Raises ShortMessageError, LyingLengthError for a size over 6144 or over the bytes that came,
        MessageError for a range that no file can have.
        """
        if len(body) < WRITE_HEADER:
            raise ShortMessageError(f"a WRITE of {len(body)} bytes")
        _, service_id, session_id = _HEADER.unpack_from(body)
        _, offset, size = _WRITE.unpack_from(body, HEADER_SIZE)
        if size > CHUNK or WRITE_HEADER + size > len(body):
            raise LyingLengthError(f"a WRITE of {size} bytes in a body of {len(body)}")
        if offset < 0 or offset + size >= 2**63:
            raise MessageError(f"no file has {size} bytes at {offset}")
        return cls(offset, bytes(body[WRITE_HEADER : WRITE_HEADER + size]), service_id, session_id)


@dataclass(frozen=True, slots=True)
class CompleteCopy:
    """The file is whole."""

    service_id: bytes = NO_ID
    session_id: bytes = NO_ID

    def encode(self) -> bytes:
        """Raises ValueError for ids that are not 16 bytes."""
        return _head(FcopyOperation.COMPLETE, self.service_id, self.session_id)

    @classmethod
    def decode(cls, body: bytes) -> CompleteCopy:
        """Raises ShortMessageError below 36 bytes."""
        operation(body)
        return cls(*_HEADER.unpack_from(body)[1:])


@dataclass(frozen=True, slots=True)
class CancelCopy:
    """Forget the file and remove what came of it."""

    service_id: bytes = NO_ID
    session_id: bytes = NO_ID

    def encode(self) -> bytes:
        """Raises ValueError for ids that are not 16 bytes."""
        return _head(FcopyOperation.CANCEL, self.service_id, self.session_id)

    @classmethod
    def decode(cls, body: bytes) -> CancelCopy:
        """Raises ShortMessageError below 36 bytes."""
        operation(body)
        return cls(*_HEADER.unpack_from(body)[1:])
