# SPDX-License-Identifier: Apache-2.0
"""How long does a heartbeat wait for a slow effect of another service?

The agent has one thread: while a file of the host's is brought to the disk, or another program keeps a pool locked, or
the guardian starts and freezes, the beat could be late by as much. "nothing" is a beat with no other work; "the freeze
itself" is from FREEZE to its answer. The plan of the freeze is empty: what takes its time is the guardian.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

from agents import RunningAgent
from measure import in_turns

from hvring.ic.fcopy import CHUNK, CompleteCopy, FcopyFlag, StartCopy, WriteChunk
from hvring.ic.frame import Frame, MessageType
from hvring.ic.heartbeat import Heartbeat
from hvring.ic.kvp import KvpPool, KvpSet
from hvring.ic.vss import VssFreeze, VssOperation, VssRequest

FILE = 32 << 20
LOCKED = 0.1  # seconds
BEAT = Frame(MessageType.HEARTBEAT, Heartbeat(1).encode()).encode()
FREEZING_AGENT = Path(__file__).with_name("freezing_agent.py")


def answer(agent: RunningAgent, name: str) -> None:
    channel = agent.channels[name]
    while (packet := channel.recv()) is None:
        channel.wait(30)
    assert packet.payload[20:24] == bytes(4)


def beside(agent: RunningAgent, name: str, message_type: MessageType, body: bytes) -> tuple[float, float]:
    """ms until a beat is answered that comes right behind this request, and until the request is."""
    start = time.perf_counter()
    agent.channels[name].send(Frame(message_type, body).encode())
    agent.ask("heartbeat", BEAT)
    beat = 1000 * (time.perf_counter() - start)
    answer(agent, name)
    return beat, 1000 * (time.perf_counter() - start)


def test_a_beat_beside_a_slow_effect(benchmark: Any, tmp_path: Path) -> None:
    size = FILE if benchmark.enabled else CHUNK
    data = os.urandom(CHUNK)
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (tmp_path / "freezing").mkdir()
    with contextlib.ExitStack() as running:
        agent = running.enter_context(
            RunningAgent(tmp_path, "kvp", "fcopy", "heartbeat", words=("--allow", allowed))
        )

        def nothing() -> float:
            start = time.perf_counter()
            agent.ask("heartbeat", BEAT)
            return 1000 * (time.perf_counter() - start)

        def published() -> float:
            begin = StartCopy("file", str(allowed), FcopyFlag.OVERWRITE, size)
            agent.ask("fcopy", Frame(MessageType.FCOPY, begin.encode()).encode())
            for at in range(0, size, CHUNK):
                agent.ask(
                    "fcopy", Frame(MessageType.FCOPY, WriteChunk(at, data[: size - at]).encode()).encode()
                )
            return beside(agent, "fcopy", MessageType.FCOPY, CompleteCopy().encode())[0]

        def locked() -> float:
            with open(agent.pools / f".kvp_pool_{KvpPool.EXTERNAL}", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                release = threading.Timer(LOCKED, fcntl.flock, (file, fcntl.LOCK_UN))
                release.start()
                took, _ = beside(agent, "kvp", MessageType.KVP, KvpSet(KvpPool.EXTERNAL, "k", "v").encode())
                release.join()
            return took

        candidates = {
            "nothing": nothing,
            f"a file of {FILE >> 20} MiB to the disk": published,
            f"a pool locked for {LOCKED} s": locked,
        }
        if os.geteuid() == 0:  # the freezer refuses to start without CAP_SYS_ADMIN
            freezing = running.enter_context(
                RunningAgent(tmp_path / "freezing", "vss", "heartbeat", program=FREEZING_AGENT)
            )

            def freeze() -> tuple[float, float]:
                took = beside(freezing, "vss", MessageType.VSS, VssFreeze().encode())
                freezing.ask("vss", Frame(MessageType.VSS, VssRequest(VssOperation.THAW).encode()).encode())
                return took

            candidates["a freeze by the guardian"] = lambda: freeze()[0]
            candidates["the freeze itself"] = lambda: freeze()[1]
        in_turns(benchmark, candidates, unit="ms", rounds=5)
