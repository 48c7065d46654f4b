# SPDX-License-Identifier: Apache-2.0
"""What no ring can be faster than, measured beside it: copies alone, calls of nothing, a line between processors."""

from __future__ import annotations

import ctypes
import mmap
import time
from itertools import repeat
from typing import Any

from measure import CONTROL, Run, two_processes
from peers import FLAGS, HERE, kept, run


class Limits:
    """The loops of limits.c over memory of their own."""

    def __init__(self, data: int = 131072) -> None:
        path = kept("limits", "limits.c")
        if not path.exists():
            run(["cc", *FLAGS, "-o", str(path), str(HERE / "limits.c")], HERE)
        self.library = ctypes.CDLL(str(path))
        self.library.bench_copies.restype = ctypes.c_uint64
        self.memory = [mmap.mmap(-1, CONTROL + data) for _ in range(3)]
        self._anchors = [ctypes.c_char.from_buffer(each) for each in self.memory]
        self.middle, self.source, self.target = (ctypes.addressof(each) for each in self._anchors)
        self.size = CONTROL + data

    def copies(self, length: int, ahead: int = 0, count: int = 0) -> Run:
        """ns of a payload's two copies; each target lies `ahead` bytes behind its source modulo a page."""
        count = count or max(1_000, 20_000 // (1 + length // 1024))
        points = (self.middle + ahead, self.source, self.target + 2 * ahead)
        arguments = [ctypes.c_void_p(point) for point in points]

        def one() -> float:
            took = self.library.bench_copies(*arguments, ctypes.c_uint32(length), ctypes.c_uint64(count))
            return float(took) / count

        return one

    def handed_over(self, length: int, count: int, batch: int) -> Run:
        """ns a packet, copied in by one process and out by another."""

        def one() -> float:
            ring, n = ctypes.c_void_p(self.middle), ctypes.c_uint64(count)
            self.memory[0][:8] = bytes(8)
            size, bytes_ = ctypes.c_uint32(self.size), ctypes.c_uint32(length)
            give, take = self.library.bench_hand_over, self.library.bench_take_over
            return (
                two_processes(
                    lambda: give(ring, size, ctypes.c_void_p(self.source), bytes_, n, ctypes.c_uint32(batch)),
                    lambda: take(ring, size, ctypes.c_void_p(self.target), bytes_, n),
                )
                / count
            )

        return one

    def line(self, count: int) -> Run:
        """ns for one line of memory to another processor and back: the median."""

        def one() -> float:
            self.memory[0][:8] = bytes(8)
            line, n, took = ctypes.c_void_p(self.middle), ctypes.c_uint64(count), (ctypes.c_uint64 * count)()
            two_processes(
                lambda: self.library.bench_line_pong(line, n),
                lambda: self.library.bench_line_ping(line, n, took),
            )
            return float(sorted(took)[count // 2])

        return one


def two_calls(payload: Any, target: Any, count: int = 20_000) -> Run:
    """ns of two calls that take one argument and do nothing, in the loop that send and recv_into are measured in.

    list.count of an empty list: the cheapest kind of method of a C extension, and it returns a small integer.
    """

    def run() -> float:
        put, get, data, into = [].count, [].count, payload, target
        start = time.perf_counter_ns()
        for _ in repeat(None, count):
            put(data)
            get(into)
        return (time.perf_counter_ns() - start) / count

    return run
