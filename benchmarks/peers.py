# SPDX-License-Identifier: Apache-2.0
"""The C peers: their libraries, and a ring in shared memory for the loops of peer_loops.h."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import shutil
import subprocess
from pathlib import Path

from measure import CONTROL, cache

HERE = Path(__file__).parent
# a call within the library is a call, not a jump through a table
FLAGS = ("-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-Wl,-Bsymbolic", "-I", str(HERE))


class Unavailable(Exception):
    """Why this peer cannot be had here."""


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            raise Unavailable(f"it needs {tool}")


def run(command: list[str], folder: Path, timeout: float = 60) -> str:
    """The command's output.  Raises Unavailable with its words."""
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{' '.join(command[:3])} took longer than {timeout:.0f} s") from None
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-300:]}")
    return done.stdout


def kept(stem: str, *sources: str) -> Path:
    """Where the library made of these files here is kept: per text of them, since two clones may share the cache."""
    text = b"".join((HERE / source).read_bytes() for source in sources)
    return cache() / f"{stem}-{hashlib.sha256(text).hexdigest()[:12]}.so"


def load(path: Path) -> ctypes.CDLL:
    found = ctypes.CDLL(str(path))
    found.bench_pairs.restype = ctypes.c_uint64
    found.bench_open.restype = ctypes.c_void_p
    found.path = path
    return found


class Ring:
    """One ring in shared memory, for a peer's loops; two page-aligned buffers beside it."""

    def __init__(self, found: ctypes.CDLL, data: int = 131072) -> None:
        self.library = found
        self.memory = mmap.mmap(-1, CONTROL + data)
        self.anchor = ctypes.c_char.from_buffer(self.memory)
        self.address = ctypes.c_void_p(ctypes.addressof(self.anchor))
        self.size = ctypes.c_uint32(CONTROL + data)
        self.source = mmap.mmap(-1, 1 << 17)
        self.target = mmap.mmap(-1, 1 << 17)
        self._buffers = [ctypes.c_char.from_buffer(b) for b in (self.source, self.target)]
        self.source_at, self.target_at = (ctypes.c_void_p(ctypes.addressof(b)) for b in self._buffers)

    def pairs(self, length: int, count: int, shift: int = 0) -> float:
        """ns per packet, written and read in one thread.

        Buffers begin at a page; or, with a `shift`, every copy's target lies so many bytes behind its source modulo a
        page when the packets have a stride of one page.
        """
        source = ctypes.c_void_p((self.source_at.value or 0) + shift)
        target = ctypes.c_void_p((self.target_at.value or 0) + (16 + shift if shift else 0))
        took = self.library.bench_pairs(
            self.address, self.size, source, target, length, ctypes.c_uint64(count)
        )
        if took == 0:
            raise RuntimeError("the peer's ring refused a packet")
        return float(took) / count

    def produce(self, length: int, count: int) -> None:
        self.library.bench_produce(self.address, self.size, self.source_at, length, ctypes.c_uint64(count))

    def consume(self, length: int, count: int) -> None:
        self.library.bench_consume(self.address, self.size, self.target_at, length, ctypes.c_uint64(count))
