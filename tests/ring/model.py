# SPDX-License-Identifier: Apache-2.0
"""A VMBus ring in plain Python, written from PROTOCOL §2 alone: slow, obvious, and the judge of the fast one."""

from __future__ import annotations

import struct

CONTROL = 4096
WRITE, READ, MASK, PENDING, FEATURES = 0, 4, 8, 12, 64


class Model:
    """Both ends over one bytearray; nothing is kept between calls, all state is in the memory."""

    def __init__(self, memory: bytearray) -> None:
        self.memory = memory
        self.size = len(memory) - CONTROL

    def get(self, field: int) -> int:
        return struct.unpack_from("<I", self.memory, field)[0]

    def put(self, field: int, value: int) -> None:
        struct.pack_into("<I", self.memory, field, value)

    def used(self) -> int:
        return (self.get(WRITE) - self.get(READ)) % self.size

    def poke(self, at: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            self.memory[CONTROL + (at + i) % self.size] = byte

    def peek(self, at: int, n: int) -> bytes:
        return bytes(self.memory[CONTROL + (at + i) % self.size] for i in range(n))

    def send(
        self, payload: bytes, transaction_id: int = 0, packet_type: int = 6, flags: int = 0
    ) -> bool | None:
        """None: full.  Else whether the reader must be signalled."""
        body = struct.pack("<HHHHQ", packet_type, 2, 0, flags, transaction_id) + payload
        body += bytes(-len(body) % 8)
        body = body[:4] + struct.pack("<H", len(body) // 8) + body[6:]
        old = self.get(WRITE)
        packet = body + struct.pack("<II", 0, old)
        if self.size - self.used() <= len(packet):
            return None
        self.poke(old, packet)
        self.put(WRITE, (old + len(packet)) % self.size)
        return self.get(MASK) == 0 and self.get(READ) == old

    def next_length(self) -> int:
        """Payload bytes of the packet that comes next."""
        _, offset8, len8, _ = struct.unpack("<HHHH", self.peek(self.get(READ), 8))
        return int(len8 - offset8) * 8

    def recv(self) -> tuple[tuple[int, int, int, bytes] | None, bool]:
        """The packet (type, flags, transaction id, payload) and whether a blocked writer must be signalled."""
        if self.used() == 0:
            return None, False
        at = self.get(READ)
        kind, offset8, len8, flags, tid = struct.unpack("<HHHHQ", self.peek(at, 16))
        payload = self.peek(at, len8 * 8)[offset8 * 8 :]
        before = self.size - self.used()
        self.put(READ, (at + len8 * 8 + 8) % self.size)
        pending = self.get(PENDING)
        after = self.size - self.used()
        signal = bool(self.get(FEATURES) & 1) and pending != 0 and before <= pending < after
        return (kind, flags, tid, payload), signal
