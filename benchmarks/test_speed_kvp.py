# SPDX-License-Identifier: Apache-2.0
"""Data exchange per request against the in-tree hv_kvp_daemon: does the time grow with the pool?

Both are whole programs, in a process of their own on another processor, driven by one request after the other: ours
over a channel, the daemon over a socket in the place of its kernel device.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from agents import RunningAgent
from daemons import MESSAGES, Daemon
from dpdk import Unavailable
from measure import Run, in_turns

from hvring.guest.pools import PoolStore
from hvring.ic.frame import Frame, MessageType
from hvring.ic.kvp import KvpEnumerate, KvpGet, KvpOperation, KvpPool, KvpSet
from hvring.pending import settle
from hvring.services import Kvp

POOL = KvpPool.EXTERNAL
STATUS = slice(20, 24)


def requests(what: str, records: int, count: int) -> tuple[list[bytes], list[bytes]]:
    """The same requests for a service and for the daemon; keys lie all over the pool."""
    ours, theirs = [], []
    for n in range(count):
        place = n * 7919 % records
        key, value = f"key.{place}", f"new value {n}"
        raw, new = key.encode(), value.encode() if what == "set" else b""
        if what == "enumerate":
            body, operation = KvpEnumerate(POOL, place).encode(), KvpOperation.ENUMERATE
            told = struct.pack("<I", place)
        else:
            set_it = what == "set"
            body = KvpSet(POOL, key, value).encode() if set_it else KvpGet(POOL, key).encode()
            operation = KvpOperation.SET if set_it else KvpOperation.GET
            told = struct.pack("<III512s2048s", 1, len(raw) + 1, len(new) + 1 if set_it else 2048, raw, new)
        ours.append(Frame(MessageType.KVP, body).encode())
        theirs.append((bytes([operation, POOL, 0, 0]) + told).ljust(MESSAGES["kvp"], b"\0"))
    return ours, theirs


def image(records: int) -> bytes:
    return b"".join(struct.pack("512s2048s", f"key.{n}".encode(), b"value") for n in range(records))


def asking(ask: Callable[[bytes], Any], messages: Sequence[bytes], status: slice) -> Run:
    def run() -> float:
        start = time.perf_counter_ns()
        for message in messages:
            answer = ask(message)
        took = (time.perf_counter_ns() - start) / len(messages) / 1000
        assert not any(answer[status])
        return took

    return run


class Peers:
    """A pool of so many records for each of them."""

    def __init__(self, folder: Path, records: int, stack: ExitStack) -> None:
        self.records = records
        content = image(records)
        for name in ("alone", "agent/pools", "daemon/hyperv"):
            (folder / name).mkdir(parents=True)
            (folder / name / f".kvp_pool_{POOL}").write_bytes(content)
        store = PoolStore(folder / "alone")
        store.prepare()
        self.service = Kvp(store)
        processors = sorted(os.sched_getaffinity(0))
        self.agent = stack.enter_context(RunningAgent(folder / "agent", "kvp"))
        os.sched_setaffinity(self.agent.pid, processors[:1])
        self.daemon: Daemon | None = None
        self.why = ""
        try:
            self.daemon = stack.enter_context(Daemon("kvp", folder / "daemon"))
            os.sched_setaffinity(self.daemon.pid, processors[:1])
        except Unavailable as why:
            self.why = str(why)


@pytest.fixture(scope="module", params=[10, 100, 1000])
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(tmp_path_factory.mktemp("kvp"), request.param, stack)


@pytest.mark.parametrize("what", ["get", "set", "enumerate"])
def test_one_request(benchmark: Any, peers: Peers, what: str) -> None:
    ours, theirs = requests(what, peers.records, 100 if benchmark.enabled else 5)

    def alone(message: bytes) -> bytes:
        reply = settle(peers.service.receive(message))  # after a change that was slow comes a rest
        assert reply is not None
        return reply.payload

    candidates = {
        "hvring run": asking(lambda message: peers.agent.ask("kvp", message), ours, STATUS),
        "the service alone": asking(alone, ours, STATUS),
    }
    if peers.daemon is not None:
        candidates["hv_kvp_daemon"] = asking(peers.daemon.ask, theirs, slice(4))
    processors = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(processors)[-1:])
    try:
        in_turns(benchmark, candidates, unit="us/request", rounds=9, records=peers.records, skipped=peers.why)
    finally:
        os.sched_setaffinity(0, processors)
