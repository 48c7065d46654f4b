# SPDX-License-Identifier: Apache-2.0
"""Both rings of a channel, written byte by byte: it can keep the rules of PROTOCOL §2, and break each of them."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import select
import struct
import threading
import time
from typing import NamedTuple

CONTROL = 4096
WRITE_INDEX, READ_INDEX, MASK, PENDING, FEATURES = 0, 4, 8, 12, 64
FIELDS = (WRITE_INDEX, READ_INDEX, MASK, PENDING, FEATURES)


class Answer(NamedTuple):
    """A packet of the other side."""

    type: int
    transaction_id: int
    payload: bytes


class Wire:
    """This side writes the ring at ``out`` and reads the one at ``into``, each of ``size`` bytes.

    ``ring`` is the eventfd that wakes the other side, ``woken`` the one that it wakes this side by.
    """

    def __init__(self, memory: mmap.mmap, size: int, out: int, into: int, ring: int, woken: int) -> None:
        self.memory, self.size, self.out, self.into, self.ring, self.woken = (
            memory,
            size,
            out,
            into,
            ring,
            woken,
        )
        self.data = size - CONTROL
        self.words = memoryview(memory).cast("I")  # one store each; struct.pack_into writes zeros first
        self.lock = threading.Lock()
        self.write, self.read = self.get(out, WRITE_INDEX), self.get(into, READ_INDEX)

    def get(self, ring: int, field: int) -> int:
        return self.words[(ring + field) // 4]

    def put(self, ring: int, field: int, value: int) -> None:
        self.words[(ring + field) // 4] = value & 0xFFFFFFFF

    def fence(self) -> None:
        """What was stored is seen before what is loaded next (PROTOCOL §2.11): a lock is such a fence on x86."""
        with self.lock:
            pass

    # ------------------------------------------------------------------------------------ sending

    def room(self) -> int:
        """Bytes that may be written, as far as the other side's index can be believed."""
        return self.data - (self.write - self.get(self.out, READ_INDEX)) % self.data

    def send(
        self, payload: bytes, transaction_id: int = 0, kind: int = 6, signal: bool | None = None
    ) -> bool:
        """One packet by the rules; ``signal`` None: only if the rules ask for it.  False: there is no room."""
        padded = payload + bytes(-len(payload) % 8)
        packet = struct.pack("<HHHHQ", kind, 2, 2 + len(padded) // 8, 0, transaction_id) + padded
        return self.publish(packet, signal)

    def publish(self, packet: bytes, signal: bool | None = None) -> bool:
        """Any bytes as a packet, and the trailer behind them."""
        packet += struct.pack("<II", 0, self.write)
        if self.room() <= len(packet):
            return False
        old = self.write
        self.copy(old, packet)
        self.write = (old + len(packet)) % self.data
        self.put(self.out, WRITE_INDEX, self.write)
        self.fence()
        due = self.get(self.out, MASK) == 0 and self.get(self.out, READ_INDEX) == old
        if due if signal is None else signal:
            self.signal()
        return True

    def copy(self, at: int, data: bytes) -> None:
        start, first = self.out + CONTROL, min(len(data), self.data - at)
        self.memory[start + at : start + at + first] = data[:first]
        self.memory[start : start + len(data) - first] = data[first:]

    def signal(self, count: int = 1) -> None:
        if writable(self.ring):
            os.eventfd_write(self.ring, count)

    # ------------------------------------------------------------------------------------ receiving

    def receive(self) -> Answer | None:
        """The next packet; what cannot be one is stepped over as a whole."""
        written = self.get(self.into, WRITE_INDEX)
        available = (written - self.read) % self.data if written < self.data else 0
        if available < 24:
            self.step(available)
            return None
        kind, offset8, len8, _, transaction_id = struct.unpack("<HHHHQ", self.bytes(self.read, 16))
        if offset8 < 2 or len8 < offset8 or len8 * 8 + 8 > available:
            self.step(available)
            return None
        payload = self.bytes(self.read + offset8 * 8, (len8 - offset8) * 8)
        self.step(len8 * 8 + 8)
        return Answer(kind, transaction_id, payload)

    def step(self, n: int) -> None:
        self.read = (self.read + n) % self.data
        self.put(self.into, READ_INDEX, self.read)
        self.fence()
        # If the other side waits for room, a needless wake-up does it no harm.
        if n and self.get(self.into, PENDING):
            self.signal()

    def bytes(self, at: int, n: int) -> bytes:
        start, at = self.into + CONTROL, at % self.data
        first = min(n, self.data - at)
        return self.memory[start + at : start + at + first] + self.memory[start : start + n - first]

    def drain(self) -> list[Answer]:
        found = []
        while (answer := self.receive()) is not None:
            found.append(answer)
        return found

    def wait(self, deadline: float) -> Answer | None:
        """The next packet, or None when the time (of the monotonic clock) is over."""
        self.put(self.into, MASK, 0)
        while (answer := self.receive()) is None:
            left = deadline - time.monotonic()
            if left <= 0 or not readable(self.woken, min(left, 0.2)):
                if left <= 0:
                    return None
                continue
            take(self.woken)
        return answer

    # ------------------------------------------------------------------------------------ lying

    def poke(self, chance: random.Random) -> None:
        """Any value into any field of either control page."""
        ring, field = chance.choice((self.out, self.into)), chance.choice(FIELDS)
        near = self.get(ring, field)
        values = (
            0,
            8,
            near + 8,
            near - 8,
            near + 1,
            self.data,
            self.data - 8,
            self.size,
            1 << 31,
            (1 << 32) - 1,
        )
        self.put(
            ring, field, chance.choice((*values, chance.getrandbits(32), chance.randrange(self.data) & ~7))
        )

    def flip(self, chance: random.Random, times: int) -> None:
        """Bytes of what was sent last, most often of its descriptor and headers, while it may be read."""
        start = self.out + CONTROL
        for _ in range(times):
            back = chance.choice((chance.randrange(64), chance.randrange(4096), chance.randrange(self.data)))
            self.memory[start + (self.write - back) % self.data] ^= 1 << chance.randrange(8)

    def lie_about_length(self, chance: random.Random) -> None:
        """A packet whose descriptor is wrong."""
        words = [
            chance.choice((0, 1, 2, 3, 4, 0x100, 0x7FFF, 0xFFFF, chance.getrandbits(16))) for _ in range(4)
        ]
        body = chance.randbytes(8 * chance.randrange(12))
        self.publish(struct.pack("<4HQ", *words, chance.getrandbits(64)) + body, True)

    def abuse_events(self, chance: random.Random, *, flags: bool) -> None:
        """Counters filled up or taken away, and with ``flags`` O_NONBLOCK changed, which both sides share."""
        event = chance.choice((self.ring, self.woken))
        match chance.randrange(4 if flags else 3):
            case 0:
                if writable(event):
                    fill(event)
            case 1:
                take(event)
            case 2:
                for _ in range(chance.randrange(100)):
                    self.signal()
            case _:
                fcntl.fcntl(event, fcntl.F_SETFL, fcntl.fcntl(event, fcntl.F_GETFL) ^ os.O_NONBLOCK)


def readable(descriptor: int, seconds: float) -> bool:
    return bool(select.select([descriptor], [], [], seconds)[0])


def writable(descriptor: int) -> bool:
    return bool(select.select([], [descriptor], [], 0)[1])


def fill(event: int) -> None:
    """The counter nearly to its end, whatever it is at; never blocks, since others add very little."""
    take(event)
    os.eventfd_write(event, (1 << 64) - 1000)


def take(event: int) -> None:
    """The counter to 0, whatever its flags are and whoever else does it."""
    try:
        os.preadv(event, [bytearray(8)], -1, os.RWF_NOWAIT)
    except BlockingIOError:
        pass
