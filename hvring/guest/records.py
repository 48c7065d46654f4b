# SPDX-License-Identifier: Apache-2.0
"""One record of a pool file: 512 bytes of key, 2048 of value, UTF-8, padded with NULs (PROTOCOL §4.4.5)."""

from __future__ import annotations

from typing import Final

from hvring.errors import EffectError
from hvring.reasons import Reason
from hvring.status import Status

KEY_SIZE: Final = 512
VALUE_SIZE: Final = 2048
RECORD_SIZE: Final = KEY_SIZE + VALUE_SIZE

#: What a host can be shown of a key and of a value, in UTF-16 units without the NUL (PROTOCOL §4.4.1).
KEY_UNITS: Final = 255
VALUE_UNITS: Final = 1023

#: The smallest unit that the kernel writes in one go, whatever kills the writer.
_PAGE: Final = 4096


class PoolLimitError(EffectError, ValueError):
    """A key or value that a record cannot hold, or one record too many."""

    def __init__(
        self, message: str, status: int = Status.INVALID_ARG, reason: Reason = Reason.BAD_REQUEST
    ) -> None:
        super().__init__(message, status, reason)


def pack(key: str, value: str) -> bytes:
    """The record; raises PoolLimitError."""
    if not key:
        raise PoolLimitError("the key is empty")
    return _field(key, KEY_SIZE, "key") + _field(value, VALUE_SIZE, "value")


def pack_raw(key: str, value: str) -> bytes:
    """The record of :func:`pair`, whatever a program wrote there; raises PoolLimitError."""
    try:
        raw = [part.encode(errors="surrogateescape") for part in (key, value)]
    except UnicodeEncodeError as problem:
        raise PoolLimitError("the key or the value is not proper Unicode") from problem
    for what, part, size in (("key", raw[0], KEY_SIZE), ("value", raw[1], VALUE_SIZE)):
        if b"\0" in part:
            raise PoolLimitError(f"the {what} contains a NUL")
        if len(part) > size:
            raise PoolLimitError(f"the {what} is {len(part)} bytes long, {size} fit")
    if not raw[0]:
        raise PoolLimitError("the key is empty")
    return raw[0].ljust(KEY_SIZE, b"\0") + raw[1].ljust(VALUE_SIZE, b"\0")


def same(one: bytes, other: bytes) -> bool:
    """Whether these records read alike."""
    return pair(one) == pair(other)


def key_bytes(key: str) -> bytes:
    """How ``key`` stands in a file, as :func:`text` reads it; raises PoolLimitError if no file can hold it."""
    try:
        raw = key.encode(errors="surrogateescape")
    except UnicodeEncodeError as problem:
        raise PoolLimitError("the key is not proper Unicode") from problem
    if b"\0" in raw:
        raise PoolLimitError("the key contains a NUL")
    return raw


def text(field: bytes) -> str:
    """A field up to its NUL, if it has one; what is not UTF-8 survives the way back by "surrogateescape"."""
    return field.partition(b"\0")[0].decode(errors="surrogateescape")


def pair(record: bytes) -> tuple[str, str]:
    """Key and value."""
    return text(record[:KEY_SIZE]), text(record[KEY_SIZE:])


def proper(name: str) -> str:
    """What a host can be told of :func:`text`: bytes that are no UTF-8 as U+FFFD."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


def shown(name: str, units: int) -> str:
    """``name`` as a host sees it: proper Unicode, cut at so many UTF-16 units."""
    return proper(name).encode("utf-16-le")[: 2 * units].decode("utf-16-le", "ignore")


def alias(raw: bytes) -> bytes | None:
    """What a host calls a key that it cannot be shown as it is; None: it can."""
    if len(raw) <= KEY_UNITS and raw.isascii():
        return None
    seen = shown(text(raw), KEY_UNITS).encode()
    return None if seen == raw else seen


def parts(place: int, record: bytes) -> list[tuple[int, bytes]]:
    """The record at ``place`` as (offset in the file, bytes) that each lie in one page; the key is in the first."""
    start = place * RECORD_SIZE
    in_first = _PAGE - start % _PAGE
    if in_first >= RECORD_SIZE:
        return [(start, record)]
    return [(start, record[:in_first]), (start + in_first, record[in_first:])]


def steps(place: int, old: bytes, new: bytes) -> list[tuple[int, bytes]] | None:
    """Writes (offset in the file, bytes) that make ``old`` at record ``place`` into ``new``, a record of the same key.

    Killed at any moment, even within a write where it passes from one page to the next, they leave what reads as
    the old record or as the new one.  None: no order of writes does that.
    """
    start = place * RECORD_SIZE
    split = parts(place, new)
    in_first = len(split[0][1])
    of_value = in_first - KEY_SIZE  # bytes of the value in the first page; a key never lies in two
    whole = [(start, new)]
    if len(split) == 1 or old[KEY_SIZE:in_first] == new[KEY_SIZE:in_first]:
        return whole
    if _length(new) < of_value:
        return whole  # the kernel goes from front to back, and the new value ends in the first page
    if _length(old) < of_value or old[in_first:] == new[in_first:]:
        return split[::-1]
    return None


def _length(record: bytes) -> int:
    return len(record[KEY_SIZE:].partition(b"\0")[0])


def _field(text: str, size: int, what: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as problem:
        raise PoolLimitError(f"the {what} is not proper Unicode") from problem
    if b"\0" in raw:
        raise PoolLimitError(f"the {what} contains a NUL")
    if len(raw) >= size:
        raise PoolLimitError(f"the {what} is {len(raw)} bytes long, {size - 1} fit")
    return raw.ljust(size, b"\0")
