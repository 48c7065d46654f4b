# SPDX-License-Identifier: Apache-2.0
"""Backup over ``/dev/vmbus/hv_vss``: 12 bytes each way (PROTOCOL §10.4.2)."""

from __future__ import annotations

import struct
from typing import Final

from hvring.errors import LyingLengthError, MessageError, ShortMessageError
from hvring.ic.hv_utils.dialect import PATIENCE
from hvring.ic.unreadable import Unreadable
from hvring.ic.vss import VssOperation, VssRequest
from hvring.status import Status

Message = VssRequest | Unreadable

SIZE: Final = 12
REGISTER: Final = 129
_REGISTER_OLD: Final = 128
REGISTRATION: Final = bytes([REGISTER]).ljust(SIZE, b"\0")
_REGISTERED: Final = bytes([REGISTER, 0, 0, 0])
FREEZE_PATIENCE: Final = 870.0  # the kernel waits for 15 minutes

_ANSWER: Final = struct.Struct("<I8x")


def registered(answer: bytes) -> str:
    """Nothing but that it is so."""
    if answer != _REGISTERED:
        raise MessageError(f"hv_utils answers a registration with {len(answer)} bytes, {answer[:4].hex()}")
    return ""


def decode(message: bytes) -> Message:
    """The operation; the kernel tells nothing else."""
    if len(message) != SIZE:
        kind = ShortMessageError if len(message) < SIZE else LyingLengthError
        return Unreadable(
            message[0] if message else 0,
            kind(f"hv_utils hands out {len(message)} bytes for backup, {SIZE} belong there"),
        )
    return VssRequest(message[0], message[8:])


def encode(asked: Message, status: int, message: object) -> bytes:  # noqa: ARG001
    """A status; the flags of HOT_BACKUP cannot be told."""
    # The kernel would take these for a registration, and refuse them.
    if status & 0xFF in (REGISTER, _REGISTER_OLD):
        status = Status.FAIL
    return _ANSWER.pack(status)


def patience(asked: Message) -> float:
    """Seconds within which to answer."""
    is_freeze = isinstance(asked, VssRequest) and asked.operation == VssOperation.FREEZE
    return FREEZE_PATIENCE if is_freeze else PATIENCE
