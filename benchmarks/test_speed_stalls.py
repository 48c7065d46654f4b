# SPDX-License-Identifier: Apache-2.0
"""How long does a heartbeat wait for a slow effect of another service?

The agent has one thread: while a file of the host's is brought to the disk, or another program keeps a pool locked, the
beat is late by as much. "nothing" is a beat with no other work.
"""

from __future__ import annotations

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

FILE = 32 << 20
LOCKED = 0.1  # seconds
BEAT = Frame(MessageType.HEARTBEAT, Heartbeat(1).encode()).encode()


def test_a_beat_beside_a_slow_effect(benchmark: Any, tmp_path: Path) -> None:
    size = FILE if benchmark.enabled else CHUNK
    data = os.urandom(CHUNK)
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    with RunningAgent(tmp_path, "kvp", "fcopy", "heartbeat", words=("--allow", allowed)) as agent:

        def answer(name: str) -> bytes:
            channel = agent.channels[name]
            while (packet := channel.recv()) is None:
                channel.wait(30)
            assert packet.payload[20:24] == bytes(4)
            return packet.payload

        def beside(name: str, message_type: MessageType, body: bytes) -> float:
            """ms until a beat is answered that comes right behind this request."""
            agent.channels[name].send(Frame(message_type, body).encode())
            start = time.perf_counter()
            agent.ask("heartbeat", BEAT)
            took = 1000 * (time.perf_counter() - start)
            answer(name)
            return took

        def nothing() -> float:
            start = time.perf_counter()
            agent.ask("heartbeat", BEAT)
            return 1000 * (time.perf_counter() - start)

        def published() -> float:
            begin = StartCopy("file", str(allowed), FcopyFlag.OVERWRITE, size)
            agent.ask("fcopy", Frame(MessageType.FCOPY, begin.encode()).encode())
            for at in range(0, size, CHUNK):
                agent.ask("fcopy", Frame(MessageType.FCOPY, WriteChunk(at, data).encode()).encode())
            return beside("fcopy", MessageType.FCOPY, CompleteCopy().encode())

        def locked() -> float:
            with open(agent.pools / f".kvp_pool_{KvpPool.EXTERNAL}", "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                release = threading.Timer(LOCKED, fcntl.flock, (file, fcntl.LOCK_UN))
                release.start()
                took = beside("kvp", MessageType.KVP, KvpSet(KvpPool.EXTERNAL, "k", "v").encode())
                release.join()
            return took

        candidates = {
            "nothing": nothing,
            f"a file of {FILE >> 20} MiB to the disk": published,
            f"a pool locked for {LOCKED} s": locked,
        }
        in_turns(benchmark, candidates, unit="ms", rounds=5)
