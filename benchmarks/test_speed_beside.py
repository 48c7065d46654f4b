# SPDX-License-Identifier: Apache-2.0
"""How long do the other services of an agent wait for their answers while it is busy with a file, and with requests?

All services of the agent have one thread; the host (host.c) has one for each conversation. "nothing else": the same
agent without the load. $HVRING_BENCH_COPY: MiB of the file, 64 unless given.
"""

from __future__ import annotations

import os
import struct
from concurrent.futures import ThreadPoolExecutor
from ctypes import c_int32
from itertools import count
from pathlib import Path
from typing import Any

from agents import RunningAgent
from blocking_host import over_rings, percentile
from measure import Run, in_turns
from processes import Footprint
from processors import HOST, favoured

from hvring.ic.fcopy import CHUNK, CancelCopy, CompleteCopy, FcopyFlag, StartCopy
from hvring.ic.frame import Frame, MessageType
from hvring.ic.heartbeat import Heartbeat
from hvring.ic.kvp import KvpEnumerate, KvpGet, KvpPool, KvpSet
from hvring.ic.vss import VssOperation, VssRequest

MIB = int(os.environ.get("HVRING_BENCH_COPY", "64"))
GAP = 0.002  # seconds from one answer to the next beat
HERE = Path(__file__).parent
POOL = KvpPool.EXTERNAL
RECORDS = 10
MANY = 1 << 20  # more than a round takes

BEAT = Frame(MessageType.HEARTBEAT, Heartbeat(1).encode()).encode()
ASKED = Frame(MessageType.KVP, KvpGet(POOL, "key.3").encode()).encode()
FLOOD = [
    Frame(MessageType.KVP, body.encode()).encode()
    for n in range(RECORDS)
    for body in (KvpSet(POOL, f"key.{n}", "new"), KvpGet(POOL, f"key.{n}"), KvpEnumerate(POOL, n))
]
CHECKED = Frame(MessageType.VSS, VssRequest(VssOperation.HOT_BACKUP).encode()).encode()


class Loaded:
    """An agent, or what is in its place, and its conversations."""

    def __init__(self, agent: RunningAgent, allowed: Path, *names: str) -> None:
        self.pid = agent.pid
        self.ways = {name: over_rings(agent, name) for name in names}
        self.data = os.urandom(256 * CHUNK)
        self.allowed = allowed

    def begin(self, size: int) -> None:
        start = StartCopy("file", str(self.allowed), FcopyFlag.OVERWRITE, size)
        self.ways["fcopy"].converse([Frame(MessageType.FCOPY, start.encode()).encode()], 1)

    def end(self, how: CompleteCopy | CancelCopy) -> None:
        self.ways["fcopy"].converse([Frame(MessageType.FCOPY, how.encode()).encode()], 1)

    def beats(self, beats: int) -> Any:
        with favoured(HOST):
            return self.ways["heartbeat"].converse([BEAT], beats, gap=GAP)

    def beside(self, beats: int) -> float:
        """The 99th percentile of beats in ms, beside a copy and a flood."""
        over = c_int32(0)

        def copy() -> None:
            with favoured(HOST):
                self.begin(0)
                self.ways["fcopy"].copy(self.data, MANY, over)
                self.end(CancelCopy())

        def flood() -> None:
            with favoured(HOST):
                self.ways["kvp"].converse(FLOOD, MANY, over=over)

        with ThreadPoolExecutor(2) as pool:
            load = [pool.submit(work) for work in (copy, flood)]
            try:
                found = self.beats(beats)
            finally:
                over.value = 1
            for each in load:
                each.result()
        return percentile(found, 99)


def pool_of(folder: Path) -> None:
    (folder / "pools").mkdir(parents=True)
    content = b"".join(struct.pack("512s2048s", b"key.%d" % n, b"value") for n in range(RECORDS))
    (folder / "pools" / f".kvp_pool_{POOL}").write_bytes(content)


def test_a_beat_beside_a_copy_and_a_flood(benchmark: Any, tmp_path: Path) -> None:
    beats = 250 if benchmark.enabled else 5
    names = ("heartbeat", "kvp", "fcopy")
    pool_of(tmp_path / "agent")
    (tmp_path / "echo").mkdir()
    with (
        RunningAgent(tmp_path / "agent", *names, words=("--allow", tmp_path), as_guest=True) as agent,
        RunningAgent(tmp_path / "echo", *names, program=HERE / "echo_asyncio.py", as_guest=True) as echo,
    ):
        ours, theirs = Loaded(agent, tmp_path, *names), Loaded(echo, tmp_path, *names)
        candidates: dict[str, Run] = {
            "hvring run": lambda: ours.beside(beats),
            "hvring run, nothing else": lambda: percentile(ours.beats(beats), 99),
            "echo in asyncio": lambda: theirs.beside(beats),
        }
        in_turns(benchmark, candidates, unit="ms, 99th percentile", rounds=9, beats=beats)


def test_others_beside_a_copy(benchmark: Any, tmp_path: Path) -> None:
    """From the first chunk of a file until it is on the disk under its name."""
    chunks = max(1, (MIB << 20) // CHUNK) if benchmark.enabled else 8
    pool_of(tmp_path)
    others = {"heartbeat": BEAT, "kvp": ASKED, "vss": CHECKED}
    with RunningAgent(tmp_path, *others, "fcopy", words=("--allow", tmp_path), as_guest=True) as agent:
        loaded = Loaded(agent, tmp_path, *others, "fcopy")
        samples: dict[str, list[float]] = {
            name: [] for name in (*others, "the slowest of them", "the chunks")
        }
        grown: list[int] = []
        number = count()

        def converse(name: str, over: c_int32) -> Any:
            with favoured(HOST):
                return loaded.ways[name].converse([others[name]], MANY, gap=GAP, over=over)

        def once() -> None:
            over = c_int32(0)
            before = Footprint.of(agent.pid).rss_kib
            with ThreadPoolExecutor(len(others)) as pool:
                found = {name: pool.submit(converse, name, over) for name in others}
                try:
                    with favoured(HOST):
                        loaded.begin(chunks * CHUNK)
                        taken = loaded.ways["fcopy"].copy(loaded.data, chunks)
                        loaded.end(CompleteCopy())
                finally:
                    over.value = 1
                slowest = {name: percentile(each.result(), 99) for name, each in found.items()}
            for name, value in slowest.items():
                samples[name].append(value)
            samples["the slowest of them"].append(max(slowest.values()))
            samples["the chunks"].append(percentile(taken, 99))
            if next(number):  # the first copy takes what the next ones find
                grown.append(Footprint.of(agent.pid).rss_kib - before)

        benchmark.pedantic(once, rounds=5 if MIB <= 256 else 2)
        benchmark.extra_info.update(
            unit="ms, 99th percentile", samples=samples, bytes=chunks * CHUNK, grown_kib=grown
        )
