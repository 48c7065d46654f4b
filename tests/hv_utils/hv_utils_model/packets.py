# SPDX-License-Identifier: Apache-2.0
"""Hosts' packets and daemons' answers, put together by hand: not with the encoders that are under test."""

from __future__ import annotations

import struct

VERSIONS = {"kvp": (4, 0), "vss": (5, 0), "fcopy": (1, 1)}
KINDS = {"kvp": 2, "vss": 5, "fcopy": 7}
REGISTRATIONS = {
    "kvp": bytes([100]).ljust(7432, b"\0"),
    "vss": bytes([129]).ljust(12, b"\0"),
    "fcopy": struct.pack("<I", 1),
}


def packet(name: str, body: bytes, kind: int | None = None) -> bytes:
    """The payload of a request, rounded to 8."""
    number = KINDS[name] if kind is None else kind
    head = struct.pack("<HHHHHHIBBH", 3, 0, number, *VERSIONS[name], len(body), 0, 0, 3, 0)
    payload = struct.pack("<II", 1, len(head) + len(body)) + head + body
    return payload + bytes(-len(payload) % 8)


def negotiation(*versions: tuple[int, int]) -> bytes:
    """Frameworks 1.0 and 3.0, and these message versions."""
    offered = struct.pack("<4H", 1, 0, 3, 0) + b"".join(struct.pack("<2H", *v) for v in versions)
    body = struct.pack("<HHI", 2, len(versions), 0) + offered
    head = struct.pack("<HHHHHHIBBH", 0, 0, 0, 0, 0, len(body), 0, 0, 3, 0)
    payload = struct.pack("<II", 1, len(head) + len(body)) + head + body
    return payload + bytes(-len(payload) % 8)


def utf16(text: str) -> bytes:
    """With its NUL."""
    return text.encode("utf-16-le") + b"\0\0"


def kvp_pair(
    operation: int,
    pool: int,
    key: str,
    kind: int = 1,
    value: bytes = b"",
    sizes: tuple[int, int] | None = None,
) -> bytes:
    """GET and SET; ``sizes``: of key and value, others than the true ones."""
    name = utf16(key)
    key_size, value_size = (len(name), len(value)) if sizes is None else sizes
    body = struct.pack("<BBHIII512s2048s", operation, pool, 0, kind, key_size, value_size, name, value)
    return packet("kvp", body + bytes(4))


def kvp_delete(pool: int, key: str) -> bytes:
    name = utf16(key)
    return packet("kvp", struct.pack("<BBHI512s", 2, pool, 0, len(name), name).ljust(2580, b"\0"))


def kvp_enumerate(pool: int, index: int, operation: int = 3) -> bytes:
    return packet("kvp", struct.pack("<BBHI", operation, pool, 0, index).ljust(2580, b"\0"))


def kvp_ip(
    operation: int, adapter: str, family: int = 0, dhcp: int = 0, lists: tuple[str, ...] = ("",) * 4
) -> bytes:
    """``lists``: addresses, subnets, gateways, DNS servers."""
    fields = struct.pack(
        "<BB256sBB2048s2048s1024s2048s",
        operation,
        1,
        utf16(adapter),
        family,
        dhcp,
        *(utf16(text) for text in lists),
    )
    return packet("kvp", fields)


def vss(operation: int, data: bytes = b"", size: int = 32) -> bytes:
    return packet("vss", (bytes([operation]).ljust(8, b"\0") + data).ljust(size, b"\0"))


SERVICE, SESSION = b"\x11" * 16, b"\x22" * 16


def fcopy(operation: int, rest: bytes = b"", size: int | None = None) -> bytes:
    body = struct.pack("<I", operation) + SERVICE + SESSION + rest
    return packet("fcopy", body if size is None else body.ljust(size, b"\0"))


def fcopy_start(name: str, path: str, flags: int = 1, size: int = 10) -> bytes:
    names = utf16(name).ljust(520, b"\0") + utf16(path).ljust(520, b"\0")
    return fcopy(0, names + struct.pack("<IQ", flags, size))


def fcopy_write(offset: int, data: bytes, filler: bytes = b"\xdd", size: int | None = None) -> bytes:
    head = struct.pack("<IQI", 0xAABBCCDD, offset, len(data) if size is None else size)
    return fcopy(1, head + data.ljust(6144, filler))


def message(head: bytes = bytes(4), *parts: tuple[int, bytes], size: int = 7432) -> bytes:
    """``size`` bytes that begin with ``head``; parts are (offset, bytes)."""
    whole = bytearray(head.ljust(size, b"\0"))
    for at, data in parts:
        whole[at : at + len(data)] = data
    return bytes(whole)


def status_of(answer: bytes) -> int:
    return int.from_bytes(answer[20:24], "little")


def changes(request: bytes, answer: bytes) -> dict[int, str]:
    """Where the bodies differ: offset of each run, and the answer's bytes, without zeros at their end, as hex."""
    found: dict[int, str] = {}
    at = 28
    while at < min(len(request), len(answer)):
        end = at
        # A run goes on over bytes that are equal by chance: text has every other byte 0 in both.
        while end < len(answer) and request[end : end + 8] != answer[end : end + 8]:
            end += 1
        if end > at and request[at] != answer[at]:
            found[at - 28] = answer[at:end].rstrip(b"\0").hex()
            at = end
        at += 1
    return found
