# SPDX-License-Identifier: Apache-2.0
"""Requests that a host may send, and what a hostile one makes of them."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path

from hvring.ic import (
    CancelCopy,
    CompleteCopy,
    Frame,
    Heartbeat,
    KvpDelete,
    KvpEnumerate,
    KvpGet,
    KvpIpInfo,
    KvpSet,
    MessageType,
    NegotiateRequest,
    ShutdownRequest,
    StartCopy,
    TimeSampleV3,
    TimeSampleV4,
    Version,
    VssAutoRecover,
    VssFlags,
    VssFreeze,
    WriteChunk,
)

TYPES = {
    "shutdown": MessageType.SHUTDOWN,
    "timesync": MessageType.TIMESYNC,
    "heartbeat": MessageType.HEARTBEAT,
    "kvp": MessageType.KVP,
    "vss": MessageType.VSS,
    "fcopy": MessageType.FCOPY,
}
VERSIONS = tuple(Version(*v) for v in ((1, 0), (1, 1), (3, 0), (3, 1), (3, 2), (4, 0), (5, 0), (7, 0)))
KEYS = ("", "k", "key", "a" * 255, "naïve", "😀" * 100, *(f"key{n}" for n in range(60)))
NUMBERS = (0, 1, 2, 4, 7, 8, 16, 20, 27, 28, 100, 101, 255, 256, 512, 513, 2048, 2049, 6144, 6145, 13312)
NUMBERS += (0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)

#: Offset and size of the fields that code acts on.
HEADER_FIELDS = (
    (0, 4),
    (4, 4),
    (8, 2),
    (10, 2),
    (12, 2),
    (14, 2),
    (16, 2),
    (18, 2),
    (20, 4),
    (24, 1),
    (25, 1),
)
BODY_FIELDS = {
    "shutdown": ((28, 4), (32, 4), (36, 4)),
    "timesync": ((28, 8), (36, 8), (44, 1), (52, 1)),
    "heartbeat": ((28, 8), (36, 4)),
    "kvp": ((28, 1), (29, 1), (32, 4), (36, 4), (40, 4), (44, 4), (286, 1)),
    "vss": ((28, 1), (36, 4), (40, 4), (44, 4)),
    "fcopy": ((28, 4), (68, 8), (76, 4), (1104, 4), (1108, 8)),
}
COUNT_FIELDS = ((28, 2), (30, 2), (36, 2), (38, 2))  # of a negotiation
LONE_SURROGATES = ("\ud800", "\udc00", "\udfff\ud800")


class Requests:
    """``script(service)``: an endless conversation; ``inside`` may be written to, ``outside`` may not."""

    def __init__(self, chance: random.Random, inside: Path, outside: Path) -> None:
        self.chance, self.inside, self.outside = chance, inside, outside

    def script(self, service: str) -> Iterator[bytes]:
        body = getattr(self, service)
        version = Version(0, 0)
        while True:
            if self.chance.random() < 0.1:
                yield self.negotiation()
                version = self.chance.choice(VERSIONS)
            yield Frame(TYPES[service], body(), Version(3, 0), version, transaction_id=self.byte()).encode()

    def negotiation(self) -> bytes:
        some = [self.chance.choice(VERSIONS) for _ in range(self.chance.choice((0, 1, 2, 5, 20)))]
        known = VERSIONS if self.chance.random() < 0.8 else tuple(some)
        return Frame(
            MessageType.NEGOTIATE, NegotiateRequest((Version(1, 0), Version(3, 0)), known).encode()
        ).encode()

    def byte(self) -> int:
        return self.chance.randrange(256)

    def shutdown(self) -> bytes:
        text = self.chance.choice(("", "bye", "x" * 2047, "\x1b[2J", "n\nl"))
        return ShutdownRequest(flags=self.chance.randrange(10), timeout=self.byte(), text=text).encode()

    def timesync(self) -> bytes:
        parent = self.chance.choice((*NUMBERS, 133_000_000_000_000_000))
        if self.chance.random() < 0.5:
            return TimeSampleV3(parent, self.chance.randrange(4)).encode()
        return TimeSampleV4(parent, self.chance.choice(NUMBERS), self.chance.randrange(4)).encode()

    def heartbeat(self) -> bytes:
        beat = Heartbeat(self.chance.choice(NUMBERS), self.chance.randrange(6))
        return beat.encode()[: self.chance.choice((8, 12, 16, 40))]

    def kvp(self) -> bytes:
        pool, key = self.chance.choice((0, 0, 0, 1, 2, 3, 4, 5, 255)), self.chance.choice(KEYS)
        match self.chance.randrange(7):
            case 0:
                return KvpGet(pool, key).encode()
            case 1 | 2:
                value = self.chance.choice(("", "value", "v" * 1023, "ü" * 1000, 7, 1 << 31))
                kind = (
                    self.chance.choice((1, 2)) if isinstance(value, str) else self.chance.choice((4, 8, 11))
                )
                return KvpSet(pool, key, value, kind).encode()
            case 3:
                return KvpDelete(pool, key).encode()
            case 4:
                return KvpEnumerate(pool, self.chance.choice((0, 1, 2, 9, 10, 1000, 0xFFFFFFFF))).encode()
            case _:
                adapter = self.chance.choice(("", "00:00:00:00:00:00", "{" + "0" * 36 + "}", "x" * 127))
                return KvpIpInfo(self.chance.choice((4, 5)), pool, adapter, dns="1.2.3.4;" * 50).encode()

    def vss(self) -> bytes:
        match self.chance.randrange(4):
            case 0 | 1:
                return VssFreeze().encode()[: self.chance.choice((12, 32, 6260))]
            case 2 if self.chance.random() < 0.1:
                return VssAutoRecover().encode()
            case _:
                return VssFlags(
                    self.chance.choice((0, 2, 3, 4, 6, 6, 6, 8, 99)), self.chance.choice((0, 5))
                ).encode()

    def fcopy(self) -> bytes:
        match self.chance.randrange(12):
            case 0 | 1 | 2:
                return StartCopy(
                    self.name(), self.directory(), self.chance.randrange(4), self.size()
                ).encode()
            case 3:
                return CompleteCopy().encode()
            case 4:
                return CancelCopy().encode()
            case _:
                offset = self.chance.choice((0, 6144, 12288, 1 << 20, 1 << 40, (1 << 63) - 1, -1))
                data = self.chance.randbytes(self.chance.choice((0, 1, 4000, 6144)))
                return WriteChunk(offset, data).encode()

    def size(self) -> int:
        return self.chance.choice((0, 1, 6144, 1 << 20, (1 << 64) - 1))

    def name(self) -> str:
        plain = ("one", "two", "naïve 😀", "n" * 200)
        odd = ("", ".", "..", "a/b", "../canary", "a\\b", "link", "dir", "fifo", "x" * 259, ".hvring-00.part")
        return self.chance.choice(plain if self.chance.random() < 0.7 else odd)

    def directory(self) -> str:
        good = (
            self.inside,
            f"{self.inside}/",
            f"//{self.inside}//.",
            self.inside / "sub",
            self.inside / "a/b/c",
        )
        bad = (
            self.inside / "..",
            self.outside,
            "/",
            "",
            ".",
            "sub",
            f"{self.inside}/../outside",
            f"{self.inside}x",
        )
        bad += (
            self.inside / "to_outside",
            self.inside / "to_outside/sub",
            self.inside / "one",
            self.inside / "fifo",
        )
        return str(self.chance.choice(good if self.chance.random() < 0.7 else bad))


def spoil(chance: random.Random, service: str, payload: bytes) -> bytes:
    """The payload with some lies in it."""
    data = bytearray(payload)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        match chance.randrange(8):
            case 0 | 1:
                _number(chance, data, chance.choice(HEADER_FIELDS))
            case 2 | 3:
                _number(chance, data, chance.choice((*BODY_FIELDS[service], *COUNT_FIELDS)))
            case 4:
                if data:
                    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            case 5:
                del data[
                    chance.choice((0, 4, 8, 20, 28, 30, 32, 36, 40, len(data) // 2, max(0, len(data) - 4))) :
                ]
            case 6:
                data += chance.randbytes(chance.choice((1, 7, 8, 64)))
            case _:
                text = chance.choice(LONE_SURROGATES).encode("utf-16-le", "surrogatepass")
                at = chance.randrange(28, len(data)) & ~1 if len(data) > 40 else 28
                data[at : at + len(text)] = text
    return bytes(data)


def _number(chance: random.Random, data: bytearray, field: tuple[int, int]) -> None:
    offset, size = field
    if offset + size <= len(data):
        value = chance.choice(NUMBERS) if chance.random() < 0.8 else chance.getrandbits(64)
        data[offset : offset + size] = struct.pack("<Q", value)[:size]
