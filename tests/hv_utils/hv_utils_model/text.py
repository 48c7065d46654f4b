# SPDX-License-Identifier: Apache-2.0
"""The kernel's conversions between UTF-16 and UTF-8 (PROTOCOL §10.4.1)."""

from __future__ import annotations

from hv_utils_model.file import KernelBug


def utf8(raw: bytes | bytearray, units: int, room: int, *, full_is_full: bool = True) -> bytes:
    """``units`` of UTF-16 up to a NUL; half pairs are skipped, and what does not fit ``room`` bytes is left out."""
    out = bytearray()
    at, end = 0, min(2 * units, len(raw) // 2 * 2)
    while at < end and len(out) < room:
        unit = int.from_bytes(raw[at : at + 2], "little")
        at += 2
        if unit == 0:
            break
        if unit & 0xF800 == 0xD800:
            low = int.from_bytes(raw[at : at + 2], "little") if at < end else 0
            if unit & 0x0400 or low & 0xFC00 != 0xDC00:
                continue
            at += 2
            unit = 0x10000 + ((unit & 0x3FF) << 10) + (low & 0x3FF)
        character = chr(unit).encode()
        if len(out) + len(character) <= room:
            out += character
        elif full_is_full:
            break
    return bytes(out)


def terminated(message: bytes, at: int, size: int) -> bytes:
    """The text of a field.  KernelBug for one without a NUL: strlen() of a fortified kernel looks no further."""
    field = message[at : at + size]
    if b"\0" not in field:
        raise KernelBug(f"strlen: detected buffer overflow: no NUL in the {size} bytes at {at}")
    return field.split(b"\0", 1)[0]


def put_utf16(text: bytes, buffer: bytearray, at: int, units: int) -> int:
    """Converts into ``buffer``, ``units`` at most and no NUL behind them.

    The units written, or -22 (EINVAL) for broken UTF-8, behind what could be converted.
    """
    broken = False
    try:
        whole = text.decode()
    except UnicodeDecodeError as error:
        broken = True
        whole = text[: error.start].decode()
    written = 0
    for character in whole:
        pair = character.encode("utf-16-le")
        if written + len(pair) // 2 > units:
            return written
        start = at + 2 * written
        buffer[start : start + len(pair)] = pair
        written += len(pair) // 2
    return -22 if broken and written < units else written
