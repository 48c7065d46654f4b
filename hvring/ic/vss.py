# SPDX-License-Identifier: Apache-2.0
"""Backup, message type 5 (PROTOCOL §4.5)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import Final

from hvring.errors import LyingLengthError, ShortMessageError
from hvring.ic.fields import exactly, pack
from hvring.ic.frame import Version

FRAMEWORKS: Final = (Version(3, 0),)
VERSIONS: Final = (Version(5, 0),)

MINIMUM: Final = 12  # operation, reserved, the first four bytes of data
SHORT_SIZE: Final = 32  # Windows' struct for messages without luns
MAX_LUNS: Final = 260
FREEZE_SIZE: Final = 6260
AUTO_RECOVER_SIZE: Final = 12500
NO_AUTO_RECOVERY: Final = 5  # capability flags that Linux' sources name, PROTOCOL §4.5.2

_HEADER: Final = struct.Struct("<B7x")
_SETS: Final = struct.Struct("<III")
_FLAGS: Final = struct.Struct("<I")
_LUN: Final = struct.Struct("<B3x16sBBBx")
_LUN_TABLE: Final = MAX_LUNS * _LUN.size


class VssOperation(IntEnum):
    """The byte at B+0, by Linux' names."""

    CREATE = 0
    DELETE = 1
    HOT_BACKUP = 2
    GET_DM_INFO = 3
    BACKUP_COMPLETE = 4
    FREEZE = 5
    THAW = 6
    AUTO_RECOVER = 7
    QUERY_CLUSTER = 8


class FreezeFlag(IntFlag):
    """Flags of FREEZE and AUTO_RECOVER."""

    AUTO_RECOVERY = 1
    SHARED_LUNS = 2


class BusType(IntEnum):
    """How a lun is attached."""

    INVALID = 0
    SCSI = 1
    IDE = 2


@dataclass(frozen=True, slots=True)
class VssRequest:
    """Any operation; ``data`` is what follows at B+8, at least four bytes."""

    operation: int
    data: bytes = bytes(SHORT_SIZE - 8)

    def encode(self) -> bytes:
        """Raises ValueError for an operation that does not fit."""
        return pack(_HEADER, "a backup message", self.operation) + self.data

    @classmethod
    def decode(cls, body: bytes) -> VssRequest:
        """Raises ShortMessageError below 12 bytes."""
        if len(body) < MINIMUM:
            raise ShortMessageError(f"a backup message of {len(body)} bytes")
        return cls(body[0], bytes(body[8:]))


@dataclass(frozen=True, slots=True)
class VssFlags:
    """The short messages with flags: HOT_BACKUP and GET_DM_INFO both ways, BACKUP_COMPLETE, THAW."""

    operation: int
    flags: int = 0

    def encode(self) -> bytes:
        """Raises ValueError for a number that does not fit."""
        head = pack(_HEADER, "a backup message", self.operation)
        return (head + pack(_FLAGS, "a backup message", self.flags)).ljust(SHORT_SIZE, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> VssFlags:
        """Raises ShortMessageError below 12 bytes."""
        request = VssRequest.decode(body)
        return cls(request.operation, *_FLAGS.unpack_from(request.data))


@dataclass(frozen=True, slots=True)
class Lun:
    """A disk that is part of the backup; ``controller`` is a GUID's 16 bytes."""

    bus: int = BusType.INVALID
    controller: bytes = bytes(16)
    port: int = 0
    target: int = 0
    lun: int = 0


def _pack_luns(luns: tuple[Lun, ...]) -> bytes:
    if len(luns) > MAX_LUNS:
        raise ValueError(f"{len(luns)} luns, {MAX_LUNS} are the most")
    table = b"".join(
        pack(_LUN, "a lun", x.bus, exactly(x.controller, 16, "a controller's GUID"), x.port, x.target, x.lun)
        for x in luns
    )
    return table.ljust(_LUN_TABLE, b"\0")


def _unpack_luns(body: bytes, count: int, offset: int) -> tuple[Lun, ...]:
    if count > MAX_LUNS:
        raise LyingLengthError(f"{count} luns, {MAX_LUNS} are the most")
    return tuple(Lun(*x) for x in _LUN.iter_unpack(body[offset : offset + count * _LUN.size]))


@dataclass(frozen=True, slots=True)
class VssFreeze:
    """FREEZE at its real size."""

    backup_type: int = 0
    flags: int = 0
    luns: tuple[Lun, ...] = ()

    def encode(self) -> bytes:
        """Raises ValueError for over 260 luns, and for a number that does not fit."""
        luns = _pack_luns(self.luns)
        sets = pack(_SETS, "a FREEZE", self.backup_type, self.flags, len(self.luns))
        return _HEADER.pack(VssOperation.FREEZE) + sets + luns

    @classmethod
    def decode(cls, body: bytes) -> VssFreeze:
        """Raises ShortMessageError below 6260 bytes, LyingLengthError for over 260 luns."""
        if len(body) < FREEZE_SIZE:
            raise ShortMessageError(f"a FREEZE of {len(body)} bytes")
        backup_type, flags, count = _SETS.unpack_from(body, 8)
        return cls(backup_type, flags, _unpack_luns(body, count, 20))


@dataclass(frozen=True, slots=True)
class VssAutoRecover:
    """AUTO_RECOVER: as FREEZE, with the snapshots' luns in the same order."""

    backup_type: int = 0
    flags: int = 0
    luns: tuple[Lun, ...] = ()
    shadow_luns: tuple[Lun, ...] = ()

    def encode(self) -> bytes:
        """Raises ValueError for tables of different length, over 260 luns, and a number that does not fit."""
        if len(self.shadow_luns) != len(self.luns):
            raise ValueError("one count serves both tables: they must be equally long")
        luns = _pack_luns(self.luns) + _pack_luns(self.shadow_luns)
        sets = pack(_SETS, "an AUTO_RECOVER", self.backup_type, self.flags, len(self.luns))
        return _HEADER.pack(VssOperation.AUTO_RECOVER) + sets + luns

    @classmethod
    def decode(cls, body: bytes) -> VssAutoRecover:
        """Raises ShortMessageError below 12500 bytes, LyingLengthError for over 260 luns."""
        if len(body) < AUTO_RECOVER_SIZE:
            raise ShortMessageError(f"an AUTO_RECOVER of {len(body)} bytes")
        backup_type, flags, count = _SETS.unpack_from(body, 8)
        luns = _unpack_luns(body, count, 20)
        return cls(backup_type, flags, luns, _unpack_luns(body, count, 20 + _LUN_TABLE))
