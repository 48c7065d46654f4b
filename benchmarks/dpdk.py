# SPDX-License-Identifier: Apache-2.0
"""The C peer: DPDK's vmbus ring, out of the distribution's own static library, driven by dpdk.c."""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import platform
import shutil
import subprocess
from pathlib import Path

from measure import CONTROL, cache

HERE = Path(__file__).parent
MEMBERS = ("bus_vmbus_vmbus_bufring.c.o", "bus_vmbus_vmbus_channel.c.o")


class Unavailable(Exception):
    """Why this peer cannot be had here."""


def built() -> Path:
    """dpdk.c linked with the driver's objects, built once per text of it.  Raises Unavailable with the reason."""
    text = hashlib.sha256((HERE / "dpdk.c").read_bytes()).hexdigest()
    path = cache() / f"dpdk_peer-{text[:12]}.so"
    if not path.exists():
        build(path)
    return path


def library() -> ctypes.CDLL:
    """The loops of dpdk.c.  Raises Unavailable with the reason."""
    found = ctypes.CDLL(str(built()))
    found.bench_pairs.restype = found.bench_copies.restype = ctypes.c_uint64
    found.bench_open.restype = ctypes.c_void_p
    return found


def build(target: Path) -> None:
    for tool in ("apt-get", "dpkg", "ar", "cc"):
        if shutil.which(tool) is None:
            raise Unavailable(f"DPDK's ring needs {tool}")
    folder = cache() / "dpdk"
    folder.mkdir(exist_ok=True)
    archives = list(folder.glob("usr/lib/*/librte_bus_vmbus.a"))
    if not archives:
        run(["apt-get", "download", "-q", "libdpdk-dev"], folder)
        run(["dpkg", "-x", next(folder.glob("libdpdk-dev*.deb")).name, "."], folder)
        archives = list(folder.glob("usr/lib/*/librte_bus_vmbus.a"))
        if not archives:
            raise Unavailable(f"libdpdk-dev has no vmbus driver on {platform.machine()}")
    run(["ar", "x", str(archives[0]), *MEMBERS], folder)
    flags = ["-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-o", str(target)]
    run(["cc", *flags, str(HERE / "dpdk.c"), *MEMBERS], folder)


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(f"{' '.join(command[:3])} failed: {done.stderr.strip()[-300:]}")


class Ring:
    """One ring in shared memory, for the loops of dpdk.c."""

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
            raise RuntimeError("DPDK's ring refused a packet")
        return float(took) / count

    def copies(self, length: int, count: int) -> float:
        """ns for the two copies alone: what no ring can be faster than."""
        return (
            float(
                self.library.bench_copies(
                    self.address, self.source_at, self.target_at, length, ctypes.c_uint64(count)
                )
            )
            / count
        )

    def produce(self, length: int, count: int) -> None:
        self.library.bench_produce(self.address, self.size, self.source_at, length, ctypes.c_uint64(count))

    def consume(self, length: int, count: int) -> None:
        self.library.bench_consume(self.address, self.size, self.target_at, length, ctypes.c_uint64(count))
