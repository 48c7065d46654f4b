# SPDX-License-Identifier: Apache-2.0
"""UTF-16LE text in fields of a fixed size (PROTOCOL §4.4.1, §4.4.2, §4.6.1)."""

from __future__ import annotations

from codecs import utf_16_le_decode, utf_16_le_encode

from hvring.errors import MessageError


def pack(text: str, field: int) -> bytes:
    """``text`` and NULs up to ``field`` bytes; ValueError if it does not fit, has a NUL, or is not Unicode."""
    return terminated(text, field).ljust(field, b"\0")


def terminated(text: str, field: int) -> bytes:
    """``text`` and one NUL, as size fields count; ValueError if :func:`pack` would raise it."""
    if "\0" in text:
        raise ValueError(f"{text[:40]!r} has a NUL inside")
    try:
        raw, _ = utf_16_le_encode(text)
    except UnicodeEncodeError as error:
        raise ValueError(f"{text[:40]!r} is not Unicode text: {error.reason}") from None
    if len(raw) + 2 > field:
        raise ValueError(f"{text[:40]!r}… is too long: {len(raw) // 2} UTF-16 units, {field // 2 - 1} fit")
    return raw + b"\0\0"


def cut(text: str, field: int) -> str:
    """As much of ``text`` as fits ``field`` bytes with its NUL; what is not Unicode becomes "?"."""
    raw = text.split("\0", 1)[0].encode("utf-16-le", "replace")[: field - 2]
    return raw.decode("utf-16-le", "ignore")  # a pair that was cut in half goes as a whole


def size(text: str) -> int:
    """Bytes of ``text`` with its NUL, as size fields count."""
    return len(text.encode("utf-16-le")) + 2


def unpack(raw: bytes) -> str:
    """The text before the first NUL, or all of it.  MessageError for half a surrogate pair or half a unit."""
    if len(raw) % 2:
        raise MessageError(f"{len(raw)} bytes are no whole number of UTF-16 units")
    try:
        return utf_16_le_decode(raw, "strict", True)[0].partition("\0")[0]
    except UnicodeDecodeError:  # which need not be before the NUL
        pass
    text = raw.decode("utf-16-le", "surrogatepass").split("\0", 1)[0]
    if any("\ud800" <= c <= "\udfff" for c in text):
        raise MessageError("half a surrogate pair in the text")
    return text


def unpack_terminated(raw: bytes) -> str:
    """As :func:`unpack`, but there must be a NUL."""
    text = unpack(raw)
    if size(text) > len(raw):
        raise MessageError("the text has no NUL at its end")
    return text
