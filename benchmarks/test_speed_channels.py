# SPDX-License-Identifier: Apache-2.0
"""How does one agent grow with its channels, and can one channel starve another?"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from agents import RunningAgent, environment
from measure import Run, in_turns
from processes import spent

from hvring.agent.responder import BATCH
from hvring.errors import RingFullError
from hvring.ic.frame import Frame, MessageType
from hvring.ic.heartbeat import Heartbeat
from hvring.ic.kvp import KvpEnumerate, KvpPool, KvpSet

SCRIPT = Path(__file__).with_name("many_channels.py")
COUNTS = (1, 10, 100, 1000)
DESCRIPTORS_EACH = 7


def grown(count: int, rounds: int) -> dict[str, Any]:
    words = [sys.executable, str(SCRIPT), str(count), str(rounds)]
    out = subprocess.run(words, env=environment(), capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(out.stdout)
    return found


def test_many_channels(benchmark: Any) -> None:
    """us per request and answer, both ends on one loop, by the number of channels of which one or all are busy."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    counts = COUNTS if benchmark.enabled else COUNTS[:2]
    wanted = DESCRIPTORS_EACH * counts[-1] + 100
    if limit[1] != resource.RLIM_INFINITY and limit[1] < wanted:
        pytest.skip(f"{wanted} descriptors are needed, {limit[1]} are allowed")
    samples: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit[0], wanted), limit[1]))
    try:
        for _ in range(3 if benchmark.enabled else 1):
            for count in counts:
                found = grown(count, 5 if benchmark.enabled else 1)
                samples.setdefault(f"{count} channels, one busy", []).extend(found["one"])
                samples.setdefault(f"{count} channels, all busy", []).extend(found["every"])
                memory.setdefault(str(count), []).append(found["kib"])
        benchmark.extra_info.update(unit="us/packet", samples=samples, kib_per_channel=memory)
        benchmark.pedantic(lambda: grown(1, 1), rounds=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_fairness(benchmark: Any, tmp_path: Path) -> None:
    """us until a heartbeat is answered while data exchange gets requests as fast as its ring takes them."""
    beats = 40 if benchmark.enabled else 5
    beat = Frame(MessageType.HEARTBEAT, Heartbeat(1).encode()).encode()
    flood = {
        "ENUMERATE": Frame(MessageType.KVP, KvpEnumerate(KvpPool.AUTO, 0).encode()).encode(),
        "SET": Frame(MessageType.KVP, KvpSet(KvpPool.EXTERNAL, "k", "v").encode()).encode(),
    }
    most: dict[
        str, float
    ] = {}  # us of its processor time that the agent spent before it answered; the worst beat
    answered: dict[str, int] = {}
    with RunningAgent(tmp_path, "kvp", "heartbeat") as agent:

        def keep_full(request: bytes) -> int:
            """More requests than a turn of the agent's takes, if there is room; how many answers were there."""
            channel = agent.channels["kvp"]
            count = 0
            while count < BATCH and channel.recv() is not None:
                count += 1
            try:
                for _ in range(BATCH):
                    channel.send(request)
            except RingFullError:
                pass
            return count

        def beating(name: str, request: bytes | None) -> Run:
            def run() -> float:
                took, worked, others = [], [], 0
                channel = agent.channels["heartbeat"]
                for _ in range(beats):
                    if request is not None:
                        others += keep_full(request)
                    used, start = spent(agent.pid), time.perf_counter()
                    channel.send(beat)
                    while channel.recv() is None:
                        if request is not None:
                            others += keep_full(request)
                    took.append((time.perf_counter() - start) * 1e6)
                    worked.append((spent(agent.pid) - used) * 1e6)
                if request is not None:
                    drain(agent)
                most[name] = max(most.get(name, 0.0), *worked)
                answered[name] = answered.get(name, 0) + others
                return sorted(took)[len(took) // 2]

            return run

        candidates = {"alone": beating("alone", None)}
        for name, request in flood.items():
            candidates[f"beside a flood of {name}"] = beating(f"beside a flood of {name}", request)
        in_turns(benchmark, candidates, unit="us", rounds=3, most_work_before=most, others=answered)


def drain(agent: RunningAgent) -> None:
    """Until the flood is over: no request is left in the ring and no answer comes any more."""
    channel = agent.channels["kvp"]
    while channel.tx.free < channel.tx.size:
        while channel.recv() is not None:
            pass
        channel.wait(0.01)
    while channel.wait(0.1):
        while channel.recv() is not None:
            pass
