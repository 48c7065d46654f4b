# SPDX-License-Identifier: Apache-2.0
"""Data exchange (key-value pairs), message type 2 (PROTOCOL §4.4); the IP messages are in ``kvp_ip``.

Sizes on the wire are bytes with the terminating NUL.  Every class encodes to the 2580 bytes that hosts
send for all four operations.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from hvring.errors import LyingLengthError, MessageError, ShortMessageError
from hvring.ic import text
from hvring.ic.fields import pack
from hvring.ic.frame import Version

FRAMEWORKS: Final = (Version(3, 0), Version(1, 0))
VERSIONS: Final = (Version(4, 0), Version(3, 0), Version(1, 0))

KEY_FIELD: Final = 512
VALUE_FIELD: Final = 2048
BODY_SIZE: Final = 2580
VALUE_END: Final = 2576  # of GET and SET
DELETE_END: Final = 520
HEADER_SIZE: Final = 2  # operation and pool

_PAIR: Final = struct.Struct("<BBHIII512s2048s4x")  # GET, SET: value type, key size, value size
_PAIR_NUMBERS: Final = struct.Struct("<BBHIII")
_KEY_AT: Final = 16  # of GET and SET
_VALUE_AT: Final = _KEY_AT + KEY_FIELD
_ITEM: Final = struct.Struct("<BBHIIII512s2048s")  # ENUMERATE: index, value type, key size, value size
_INDEX: Final = struct.Struct("<BBHI")
_DELETE: Final = struct.Struct("<BBHI512s")


class KvpOperation(IntEnum):
    """The byte at B+0."""

    GET = 0
    SET = 1
    DELETE = 2
    ENUMERATE = 3
    GET_IP = 4
    SET_IP = 5


class KvpPool(IntEnum):
    """The byte at B+1."""

    EXTERNAL = 0
    GUEST = 1
    AUTO = 2
    AUTO_EXTERNAL = 3
    AUTO_INTERNAL = 4


class ValueType(IntEnum):
    """How a value is written; 64-bit numbers have two codes (PROTOCOL §7)."""

    SZ = 1
    EXPAND_SZ = 2
    U32 = 4
    U64_LINUX = 8
    U64 = 11


_TEXT_TYPES: Final = (ValueType.SZ, ValueType.EXPAND_SZ)
_INT_SIZES: Final[dict[int, int]] = {ValueType.U32: 4, ValueType.U64_LINUX: 8, ValueType.U64: 8}


def header(body: bytes) -> tuple[int, int]:
    """Operation and pool, as the host wrote them; ShortMessageError when they are missing."""
    if len(body) < HEADER_SIZE:
        raise ShortMessageError(f"a KVP message of {len(body)} bytes")
    return body[0], body[1]


def encode_value(value: str | int, value_type: int) -> bytes:
    """A value's bytes as its size field counts them: text with its NUL, a number in 4 or 8.  Raises ValueError."""
    if isinstance(value, str):
        return text.terminated(value, VALUE_FIELD)
    try:
        return value.to_bytes(_INT_SIZES[value_type], "little")
    except (KeyError, OverflowError):
        raise ValueError(f"{value} does not go into a value of type {value_type}") from None


def decode_value(raw: bytes, value_type: int) -> str | int:
    """Text or number.  MessageError for an unknown type, broken text or a number of the wrong size."""
    if value_type in _TEXT_TYPES:
        return text.unpack(raw)
    size = _INT_SIZES.get(value_type)
    if size is None:
        raise MessageError(f"value type {value_type} is not known")
    if len(raw) != size:
        raise LyingLengthError(f"a number of type {value_type} in {len(raw)} bytes")
    return int.from_bytes(raw, "little")


def _pair(operation: KvpOperation, pool: int, key: str, value: str | int, value_type: int) -> bytes:
    """A message with key and value and without an index."""
    name, raw = text.terminated(key, KEY_FIELD), encode_value(value, value_type)
    return pack(_PAIR, "a KVP message", operation, pool, 0, value_type, len(name), len(raw), name, raw)


def _used(field: bytes, size: int, what: str) -> bytes:
    """The bytes of a field that its size field counts."""
    return _part(field, 0, len(field), size, what)


def _part(body: bytes, at: int, field: int, size: int, what: str) -> bytes:
    """The same of a field that lies in the body ``at`` there."""
    if size > field:
        raise LyingLengthError(f"a {what} of {size} bytes in a field of {field}")
    return body[at : at + size]


def _key(field: bytes, size: int) -> str:
    return text.unpack(_used(field, size, "key"))


def _need(body: bytes, size: int, what: str) -> None:
    if len(body) < size:
        raise ShortMessageError(f"a KVP {what} of {len(body)} bytes, {size} are needed")


@dataclass(frozen=True, slots=True)
class KvpGet:
    """Ask for the value of one key."""

    pool: int
    key: str

    def encode(self) -> bytes:
        """Raises ValueError when the key or the pool does not fit."""
        key = text.terminated(self.key, KEY_FIELD)
        return pack(
            _PAIR, "a KVP message", KvpOperation.GET, self.pool, 0, ValueType.SZ, len(key), 0, key, b""
        )

    @classmethod
    def decode(cls, body: bytes) -> KvpGet:
        """Raises ShortMessageError, LyingLengthError, MessageError for broken text."""
        _need(body, VALUE_END, "GET")
        _, pool, _, _, key_size, _ = _PAIR_NUMBERS.unpack_from(body)
        return cls(pool, text.unpack(_part(body, _KEY_AT, KEY_FIELD, key_size, "key")))


@dataclass(frozen=True, slots=True)
class KvpSet:
    """Store a value: a string for types 1 and 2, an int for the others."""

    pool: int
    key: str
    value: str | int
    value_type: int = ValueType.SZ

    def encode(self) -> bytes:
        """Raises ValueError when key or value do not fit, or the type does not suit the value."""
        if isinstance(self.value, str) != (self.value_type in _TEXT_TYPES):
            raise ValueError(f"{self.value!r:.60} does not go into a value of type {self.value_type}")
        return _pair(KvpOperation.SET, self.pool, self.key, self.value, self.value_type)

    @classmethod
    def decode(cls, body: bytes) -> KvpSet:
        """Raises ShortMessageError, LyingLengthError, MessageError for an unknown type or broken text."""
        _need(body, VALUE_END, "SET")
        _, pool, _, value_type, key_size, value_size = _PAIR_NUMBERS.unpack_from(body)
        raw = _part(body, _VALUE_AT, VALUE_FIELD, value_size, "value")
        key = text.unpack(_part(body, _KEY_AT, KEY_FIELD, key_size, "key"))
        return cls(pool, key, decode_value(raw, value_type), value_type)


@dataclass(frozen=True, slots=True)
class KvpDelete:
    """Remove one key."""

    pool: int
    key: str

    def encode(self) -> bytes:
        """Raises ValueError when the key or the pool does not fit."""
        key = text.pack(self.key, KEY_FIELD)
        return pack(
            _DELETE, "a KVP message", KvpOperation.DELETE, self.pool, 0, text.size(self.key), key
        ).ljust(BODY_SIZE, b"\0")

    @classmethod
    def decode(cls, body: bytes) -> KvpDelete:
        """Raises ShortMessageError below 520 bytes, LyingLengthError, MessageError for broken text."""
        _need(body, DELETE_END, "DELETE")
        _, pool, _, key_size, key = _DELETE.unpack_from(body)
        return cls(pool, _key(key, key_size))


@dataclass(frozen=True, slots=True)
class KvpEnumerate:
    """Ask for the record at an index."""

    pool: int
    index: int

    def encode(self) -> bytes:
        """Raises ValueError for numbers that do not fit."""
        return pack(
            _ITEM, "a KVP message", KvpOperation.ENUMERATE, self.pool, 0, self.index, 0, 0, 0, b"", b""
        )

    @classmethod
    def decode(cls, body: bytes) -> KvpEnumerate:
        """Raises ShortMessageError below 2580 bytes: the answer needs that room."""
        _need(body, BODY_SIZE, "ENUMERATE")
        _, pool, _, index = _INDEX.unpack_from(body)
        return cls(pool, index)


@dataclass(frozen=True, slots=True)
class KvpItem:
    """The answer to ENUMERATE."""

    pool: int
    index: int
    key: str
    value: str | int
    value_type: int = ValueType.SZ

    def encode(self) -> bytes:
        """Raises ValueError when key or value do not fit."""
        key, value = text.terminated(self.key, KEY_FIELD), encode_value(self.value, self.value_type)
        return pack(
            _ITEM,
            "a KVP message",
            KvpOperation.ENUMERATE,
            self.pool,
            0,
            self.index,
            self.value_type,
            len(key),
            len(value),
            key,
            value,
        )

    @classmethod
    def decode(cls, body: bytes) -> KvpItem:
        """As strict as OpenVMM: text must end in a NUL inside its size.

        Raises ShortMessageError, LyingLengthError, MessageError.
        """
        _need(body, BODY_SIZE, "item")
        _, pool, _, index, value_type, key_size, value_size, key, value = _ITEM.unpack_from(body)
        return cls(
            pool,
            index,
            text.unpack_terminated(_used(key, key_size, "key")),
            _strict_value(_used(value, value_size, "value"), value_type),
            value_type,
        )


@dataclass(frozen=True, slots=True)
class KvpValue:
    """The answer to GET."""

    pool: int
    key: str
    value: str | int
    value_type: int = ValueType.SZ

    def encode(self) -> bytes:
        """Raises ValueError when key or value do not fit."""
        return _pair(KvpOperation.GET, self.pool, self.key, self.value, self.value_type)

    @classmethod
    def decode(cls, body: bytes) -> KvpValue:
        """As strict as :meth:`KvpItem.decode`."""
        _need(body, VALUE_END, "value")
        _, pool, _, value_type, key_size, value_size = _PAIR_NUMBERS.unpack_from(body)
        raw = _part(body, _VALUE_AT, VALUE_FIELD, value_size, "value")
        key = text.unpack(_part(body, _KEY_AT, KEY_FIELD, key_size, "key"))
        return cls(pool, key, _strict_value(raw, value_type), value_type)


def _strict_value(raw: bytes, value_type: int) -> str | int:
    return text.unpack_terminated(raw) if value_type in _TEXT_TYPES else decode_value(raw, value_type)
