# SPDX-License-Identifier: Apache-2.0
"""UTF-8 in fields of a fixed size, which end with a NUL (PROTOCOL §10.4)."""

from __future__ import annotations

from hvring.errors import MessageError

LONGEST_CHARACTER = 4  # bytes of UTF-8


class CutTextError(MessageError):
    """The kernel may have cut this text to its field, and does not say so."""


def pack(text: str, field: int) -> bytes:
    """As much of ``text`` as fits ``field`` bytes with its NUL, in whole characters; what is not Unicode becomes "?".

    Without a NUL the kernel would end with a BUG, and the machine with it where that is fatal.
    """
    return start(text, field).ljust(field, b"\0")


def start(text: str, field: int) -> bytes:
    """The same without the NULs, of which there is room for one."""
    if text.isascii() and len(text) < field and "\0" not in text:
        return text.encode()
    raw = text.split("\0", 1)[0].encode("utf-8", "replace")[: field - 1]
    return raw.decode("utf-8", "ignore").encode()


def unpack(field: bytes) -> str:
    """The text before the NUL.  Raises MessageError if there is none, or if it is not UTF-8."""
    raw, end, _ = field.partition(b"\0")
    if not end:
        raise MessageError("a text has no NUL at its end")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise MessageError(f"a text is not UTF-8: {error.reason}") from None


def unpack_whole(field: bytes, limit: int) -> str:
    """As :func:`unpack`; CutTextError when the text may be what is left of one that the kernel cut at ``limit`` bytes.

    It stops before the first character that does not fit, which may have up to four bytes.
    """
    text = unpack(field)
    if len(text.encode()) > limit - LONGEST_CHARACTER:
        raise CutTextError(
            f"{text[:40]!r}… may have been cut by the kernel, which hands out {limit} bytes at most"
        )
    return text
