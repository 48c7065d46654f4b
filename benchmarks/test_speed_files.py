# SPDX-License-Identifier: Apache-2.0
"""How fast does a file come into the guest, and what does it cost, against the in-tree daemons and dd?

Every candidate ends with the file on the disk: fsync, on the same file system; "memory" is the same on a tmpfs, where
that costs nothing. The protocol answers each WRITE of 6144 bytes before the next one may be sent, so a copy cannot be
faster than that many round trips between two processors: "echo in C" is these, with the writing, and nothing else, and
"echo in asyncio" what an event loop in Python makes of them without any writing. "that looks": for a while before it
sleeps. The host is host.c's.
"""

from __future__ import annotations

import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from agents import RunningAgent, command, environment
from blocking_host import Way, over_offer, over_rings, to_device
from daemons import Daemon, UtilsAgent
from measure import Run, in_turns
from peers import Unavailable
from processes import spent
from processors import HOST, favour, favoured
from uio_daemon import UioDaemon

from hvring.guest.files import DirectoryReceiver
from hvring.host.testing import ThreadedHost, running_host
from hvring.ic.fcopy import CHUNK, NO_ID, CompleteCopy, FcopyFlag, FcopyOperation, StartCopy
from hvring.ic.frame import Frame, MessageType
from hvring.pending import settle

SIZE = 2048 * CHUNK  # 12 MiB
GIB = 1 << 30
HERE = Path(__file__).parent
LOOK = 100e-6  # seconds


class Copies:
    """One file, and every way to copy it to `target`, which is new each time."""

    def __init__(self, folder: Path, data: bytes, stack: ExitStack) -> None:
        self.data = data
        self.skipped: dict[str, str] = {}
        self._stack = stack
        self._folder = folder
        self.source = folder / "source"
        self.source.write_bytes(data)
        self.target = folder / "out" / "file"
        self.target.parent.mkdir()

    def part(self, name: str) -> Path:
        path = self._folder / name
        path.mkdir()
        return path

    def agent(self, name: str, program: Path | None = None, *words: object) -> tuple[Way, int]:
        if program is None:
            words = ("--allow", self.target.parent)
        agent = self._stack.enter_context(
            RunningAgent(self.part(name), "fcopy", words=words, program=program, as_guest=True)
        )
        return over_rings(agent, "fcopy"), agent.pid

    def daemon(self) -> tuple[Way, int] | None:
        try:
            daemon = self._stack.enter_context(Daemon("fcopy", self.part("var-lib")))
        except Unavailable as why:
            self.skipped["hv_fcopy_daemon"] = str(why)
            return None
        favour(daemon.pid)
        return to_device(daemon), daemon.pid

    def device(self) -> tuple[Way, int]:
        agent = self._stack.enter_context(UtilsAgent("fcopy", self.target.parent))
        return to_device(agent), agent.pid

    def uio_daemon(self) -> tuple[Way, int] | None:
        try:
            daemon = self._stack.enter_context(UioDaemon(self.part("uio")))
        except Unavailable as why:
            self.skipped["hv_fcopy_uio_daemon"] = str(why)
            return None
        favour(daemon.pid)
        return over_offer(daemon.offer, daemon.lifeline, "fcopy"), daemon.pid

    def over(self, way: Way) -> Callable[[], None]:
        """From START to the answer to COMPLETE, by the host in C; a daemon's file is brought to the disk after that."""
        start = StartCopy(self.target.name, str(self.target.parent), FcopyFlag.OVERWRITE, len(self.data))
        begin, end = start.encode(), CompleteCopy().encode()
        if way.in_ is None:  # the kernel's driver has made UTF-8 of the names
            names = struct.pack("520s520s", self.target.name.encode(), str(self.target.parent).encode())
            tail = struct.pack("<IQ", FcopyFlag.OVERWRITE, len(self.data))
            begin = struct.pack("<I", FcopyOperation.START) + 2 * NO_ID + names + tail
        else:
            begin, end = (Frame(MessageType.FCOPY, body).encode() for body in (begin, end))

        def copy() -> None:
            with favoured(HOST):
                way.converse([begin], 1)
                way.copy(self.data, len(self.data) // CHUNK)
                way.converse([end], 1)

        return copy

    def synced(self, copy: Callable[[], None], path: Path) -> Callable[[], None]:
        """For those who leave that to the kernel."""

        def both() -> None:
            copy()
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

        return both

    def by_virtual_host(self) -> tuple[Callable[[], None], int]:
        host: ThreadedHost = self._stack.enter_context(
            running_host(self.part("virtual") / "host.sock", ["fcopy"])
        )
        words = (
            "run",
            "fcopy",
            "--virtual",
            host.path,
            "--pool-dir",
            self._folder,
            "--allow",
            self.target.parent,
        )
        guest = subprocess.Popen(
            command(*words), env=environment(), cwd=self._folder, stdout=subprocess.DEVNULL
        )
        self._stack.callback(guest.wait)
        self._stack.callback(guest.terminate)
        host.do(host.wait_ready("fcopy"))
        favour(guest.pid)

        def copy() -> None:
            host.do(host.fcopy.copy(self.source, str(self.target.parent), name=self.target.name))

        return copy, guest.pid

    def by_dd(self, block: int) -> None:
        words = ["dd", f"if={self.source}", f"of={self.target}", f"bs={block}", "conv=fsync"]
        subprocess.run(words, check=True, capture_output=True)

    def timed(
        self,
        name: str,
        copy: Callable[[], None],
        guest: int | None,
        cpu: dict[str, list[float]],
        made: Path | None,
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
            if made is not None:
                assert made.stat().st_size == len(self.data)
            self.target.unlink(missing_ok=True)
            cpu.setdefault(name, []).append(used * GIB / len(self.data))
            return took * GIB / len(self.data)

        return run


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    if request.param == "disk":
        yield tmp_path
        return
    if not os.path.isdir("/dev/shm"):
        pytest.skip("no tmpfs at /dev/shm")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


def test_copy(benchmark: Any, folder: Path) -> None:
    size = SIZE if benchmark.enabled else 8 * CHUNK
    cpu: dict[str, list[float]] = {}
    with ExitStack() as stack:
        copies = Copies(folder, os.urandom(size), stack)
        candidates: dict[str, Run] = {}

        def add(
            name: str, copy: Callable[[], None], guest: int | None, made: Path | None = copies.target
        ) -> None:
            candidates[name] = copies.timed(name, copy, guest, cpu, made)

        way, pid = copies.agent("agent")
        add("hvring run", copies.over(way), pid)
        way, pid = copies.device()
        add("hvring over the device", copies.over(way), pid)
        for name, found in (
            ("hv_fcopy_daemon", copies.daemon()),
            ("hv_fcopy_uio_daemon", copies.uio_daemon()),
        ):
            if found is not None:
                add(name, copies.synced(copies.over(found[0]), copies.target), found[1])
        for name, words in (("echo in C", ()), ("echo in C that looks", (LOOK,))):
            way, pid = copies.agent(name, HERE / "echo_c.py", *words)
            echoed = folder / name / "echoed"
            add(name, copies.synced(copies.over(way), echoed), pid, echoed)
        way, pid = copies.agent("echo-asyncio", HERE / "echo_asyncio.py")
        add("echo in asyncio", copies.over(way), pid, None)
        add("hvring run, virtual host", *copies.by_virtual_host())
        add("dd bs=6144", lambda: copies.by_dd(CHUNK), None)
        add("dd bs=1M", lambda: copies.by_dd(1 << 20), None)
        in_turns(benchmark, candidates, unit="s/GiB", rounds=9, cpu=cpu, bytes=size, skipped=copies.skipped)


def test_settings(benchmark: Any, tmp_path: Path) -> None:
    """What the receiver alone, without a host, takes for a file by what is asked of it."""
    size = SIZE if benchmark.enabled else 8 * CHUNK
    data = os.urandom(size)
    cpu: dict[str, list[float]] = {}
    candidates: dict[str, Run] = {}
    for name, more in {
        "as it comes": {},
        "sha256 = false": {"sha256": False},
        "allocate = false": {"allocate": False},
        "quota and reserve": {"quota": 1 << 40, "reserve": 1},
        "sync = false": {"sync": False},
    }.items():
        candidates[name] = received(tmp_path, data, DirectoryReceiver([tmp_path], **more), cpu, name)  # type: ignore[arg-type]
    in_turns(benchmark, candidates, unit="s/GiB", rounds=9, cpu=cpu, bytes=size)


def received(
    folder: Path, data: bytes, receiver: DirectoryReceiver, cpu: dict[str, list[float]], name: str
) -> Run:
    def run() -> float:
        worker = receiver._workers.take()  # its start is another question
        receiver._workers.give_back(worker)
        before = spent(worker.pid, os.getpid())
        start = time.perf_counter()
        incoming = settle(receiver.start(str(folder), "file", size=len(data)))
        for at in range(0, len(data), CHUNK):
            settle(incoming.write(at, data[at : at + CHUNK]))
        path = settle(incoming.complete())
        took = time.perf_counter() - start
        cpu.setdefault(name, []).append((spent(worker.pid, os.getpid()) - before) * GIB / len(data))
        os.unlink(path)
        return took * GIB / len(data)

    return run
