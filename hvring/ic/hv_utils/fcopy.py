# SPDX-License-Identifier: Apache-2.0
"""File copy over ``/dev/vmbus/hv_fcopy``, which kernels up to 6.9 have: 4 bytes of answer (PROTOCOL §10.4.3)."""

from __future__ import annotations

import struct
from typing import Final

from hvring.errors import LyingLengthError, MessageError, ShortMessageError, UnknownOperationError
from hvring.ic.fcopy import (
    HEADER_SIZE,
    NAME_FIELD,
    START_SIZE,
    WRITE_SIZE,
    CancelCopy,
    CompleteCopy,
    FcopyOperation,
    StartCopy,
    WriteChunk,
    operation,
)
from hvring.ic.hv_utils import texts
from hvring.ic.hv_utils.dialect import PATIENCE
from hvring.ic.unreadable import Unreadable

Message = StartCopy | WriteChunk | CompleteCopy | CancelCopy | Unreadable

REGISTER: Final = 1
NAME_LIMIT: Final = 259  # bytes of UTF-8 that the kernel hands out of a name

_WORD: Final = struct.Struct("<I")
_START: Final = struct.Struct(f"<{HEADER_SIZE}x{NAME_FIELD}s{NAME_FIELD}sIQ")
REGISTRATION: Final = _WORD.pack(REGISTER)


def registered(answer: bytes) -> str:
    """Nothing but that it is so."""
    if answer != REGISTRATION:
        raise MessageError(f"hv_utils answers a registration with {len(answer)} bytes, {answer[:4].hex()}")
    return ""


def decode(message: bytes) -> Message:
    """What the host asked for; of COMPLETE and CANCEL only the head counts, behind it is old memory."""
    asked = int.from_bytes(message[:4], "little")
    try:
        return _decode(operation(message), message)
    except MessageError as error:
        return Unreadable(asked, error)


def _decode(asked: int, message: bytes) -> Message:
    match asked:
        case FcopyOperation.START:
            _check_size(message, START_SIZE)
            name, path, flags, size = _START.unpack(message)
            return StartCopy(
                texts.unpack_whole(name, NAME_LIMIT), texts.unpack_whole(path, NAME_LIMIT), flags, size
            )
        case FcopyOperation.WRITE:
            _check_size(message, WRITE_SIZE)
            return WriteChunk.decode(message)
        case FcopyOperation.COMPLETE:
            return CompleteCopy.decode(message[:HEADER_SIZE])
        case FcopyOperation.CANCEL:
            return CancelCopy.decode(message[:HEADER_SIZE])
    raise UnknownOperationError(f"there is no file copy operation {asked}")


def _check_size(message: bytes, size: int) -> None:
    if len(message) != size:
        kind = ShortMessageError if len(message) < size else LyingLengthError
        raise kind(f"hv_utils hands out {len(message)} bytes of a file copy, {size} belong there")


def encode(asked: Message, status: int, message: object) -> bytes:  # noqa: ARG001
    """A status."""
    return _WORD.pack(status)


def patience(asked: Message) -> float:  # noqa: ARG001
    """Seconds within which to answer."""
    return PATIENCE
