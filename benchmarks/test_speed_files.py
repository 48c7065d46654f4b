# SPDX-License-Identifier: Apache-2.0
"""How fast does a file come into the guest, and what does it cost, against dd and the in-tree daemon?

Every candidate ends with the file on the disk: fsync, on the same file system. The protocol answers each WRITE of 6144
bytes before the next one may be sent, so a copy cannot be faster than that many round trips between two processes:
"round trips alone" are two bare eventfds and no data.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from agents import RunningAgent, command, environment
from daemons import Daemon
from dpdk import Unavailable
from measure import Run, in_turns
from processes import spent

from hvring.host.testing import ThreadedHost, running_host
from hvring.ic.fcopy import CHUNK, NO_ID, CompleteCopy, FcopyFlag, FcopyOperation, StartCopy, WriteChunk
from hvring.ic.frame import Frame, MessageType

SIZE = 2048 * CHUNK  # 12 MiB
GIB = 1 << 30


def pieces(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data), CHUNK):
        yield WriteChunk(at, data[at : at + CHUNK]).encode()


class Copies:
    """One file, and every way to copy it to `target`, which is new each time."""

    def __init__(self, folder: Path, data: bytes, stack: ExitStack) -> None:
        self.data = data
        self.source = folder / "source"
        self.source.write_bytes(data)
        self.target = folder / "out" / "file"
        self.target.parent.mkdir()
        allow = ("--allow", self.target.parent)
        self.bare = stack.enter_context(RunningAgent(folder, "fcopy", words=allow))
        self.host: ThreadedHost = stack.enter_context(running_host(folder / "virtual.sock", ["fcopy"]))
        words = ("run", "fcopy", "--virtual", self.host.path, "--pool-dir", folder / "pools", *allow)
        self.guest = subprocess.Popen(
            command(*words), env=environment(), cwd=folder, stdout=subprocess.DEVNULL
        )
        stack.callback(self.guest.wait)
        stack.callback(self.guest.terminate)
        self.host.do(self.host.wait_ready("fcopy"))
        self.daemon: Daemon | None = None
        self.why = ""
        try:
            self.daemon = stack.enter_context(Daemon("fcopy", folder / "var-lib"))
        except Unavailable as why:
            self.why = str(why)

    def by_virtual_host(self) -> None:
        self.host.do(self.host.fcopy.copy(self.source, str(self.target.parent), name=self.target.name))

    def by_bare_host(self) -> None:
        def ask(body: bytes) -> None:
            answer = self.bare.ask("fcopy", Frame(MessageType.FCOPY, body).encode())
            assert answer[20:24] == bytes(4)

        ask(StartCopy(self.target.name, str(self.target.parent), 0, len(self.data)).encode())
        for piece in pieces(self.data):
            ask(piece)
        ask(CompleteCopy().encode())

    def by_daemon(self) -> None:
        assert self.daemon is not None

        def ask(message: bytes) -> None:
            assert self.daemon is not None
            assert self.daemon.ask(message)[:4] == bytes(4)

        head = struct.pack("<I", FcopyOperation.START) + 2 * NO_ID
        names = struct.pack("520s520s", self.target.name.encode(), str(self.target.parent).encode())
        ask(head + names + struct.pack("<IQ", FcopyFlag.OVERWRITE, len(self.data)))
        for piece in pieces(self.data):
            ask(piece)
        ask(CompleteCopy().encode())
        descriptor = os.open(self.target, os.O_RDONLY)
        os.fsync(descriptor)  # the daemon does not
        os.close(descriptor)

    def by_dd(self, block: int) -> None:
        words = ["dd", f"if={self.source}", f"of={self.target}", f"bs={block}", "conv=fsync"]
        subprocess.run(words, check=True, capture_output=True)

    def timed(
        self, name: str, copy: Callable[[], None], guest: int | None, cpu: dict[str, list[float]]
    ) -> Run:
        """Seconds per GiB; the processor seconds of `guest` and this process, or of children, go to `cpu`."""
        watched = () if guest is None else (guest, os.getpid())

        def run() -> float:
            before, children = spent(*watched), os.times()
            start = time.perf_counter()
            copy()
            took = time.perf_counter() - start
            used = spent(*watched) - before
            if not watched:
                after = os.times()
                used = after.children_user + after.children_system
                used -= children.children_user + children.children_system
            assert self.target.stat().st_size == len(self.data)
            self.target.unlink()
            cpu.setdefault(name, []).append(used * GIB / len(self.data))
            return took * GIB / len(self.data)

        return run


def round_trips(count: int, size: int) -> Run:
    """So many wake-ups of another process and back, wherever the scheduler puts the two, as for the candidates."""

    def run() -> float:
        there, back = os.eventfd(0), os.eventfd(0)
        loop = "import os, sys; there, back, count = map(int, sys.argv[1:]); os.eventfd_write(back, 1)\n"
        loop += "for _ in range(count): os.eventfd_read(there); os.eventfd_write(back, 1)"
        words = [sys.executable, "-c", loop, *map(str, (there, back, count))]
        with subprocess.Popen(words, pass_fds=(there, back)):
            os.eventfd_read(back)
            start = time.perf_counter()
            for _ in range(count):
                os.eventfd_write(there, 1)
                os.eventfd_read(back)
            took = time.perf_counter() - start
        os.close(there)
        os.close(back)
        return took * GIB / size

    return run


def test_copy(benchmark: Any, tmp_path: Path) -> None:
    size = SIZE if benchmark.enabled else 8 * CHUNK
    cpu: dict[str, list[float]] = {}
    with ExitStack() as stack:
        copies = Copies(tmp_path, os.urandom(size), stack)
        ways: dict[str, tuple[Callable[[], None], int | None]] = {
            "hvring run, virtual host": (copies.by_virtual_host, copies.guest.pid),
            "hvring run, bare host": (copies.by_bare_host, copies.bare.pid),
        }
        if copies.daemon is not None:
            ways["hv_fcopy_daemon, bare host"] = (copies.by_daemon, copies.daemon.pid)
        ways["dd bs=6144"] = (lambda: copies.by_dd(CHUNK), None)
        ways["dd bs=1M"] = (lambda: copies.by_dd(1 << 20), None)
        candidates = {name: copies.timed(name, *way, cpu) for name, way in ways.items()}
        candidates["round trips alone"] = round_trips(size // CHUNK, size)
        in_turns(benchmark, candidates, unit="s/GiB", rounds=7, cpu=cpu, bytes=size, skipped=copies.why)
