# SPDX-License-Identifier: Apache-2.0
"""Data exchange per request against the in-tree hv_kvp_daemon: does the time grow with the pool?

Both are whole programs, in a process of their own on another processor, driven by one request after the other, by the
host of host.c: ours over rings, the daemon over a socket in the place of its kernel device. "echo in C" and "echo in
asyncio" send the requests back as they are: what the wake-ups cost, and an event loop in Python. "that looks": for a
while before it sleeps.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from agents import RunningAgent
from blocking_host import Way, over_rings, to_device
from daemons import MESSAGES, Daemon
from measure import Run, in_turns
from peers import Unavailable
from processors import HOST, favour, favoured

from hvring.guest.pools import PoolStore
from hvring.ic.frame import Frame, MessageType
from hvring.ic.kvp import KvpEnumerate, KvpGet, KvpOperation, KvpPool, KvpSet
from hvring.pending import settle
from hvring.services import Kvp

POOL = KvpPool.EXTERNAL
HERE = Path(__file__).parent
ECHOES = (
    ("echo in C", "echo_c.py"),
    ("echo in C that looks", "echo_c.py", 100e-6),
    ("echo in asyncio", "echo_asyncio.py"),
)
GUESTS: tuple[tuple[Any, ...], ...] = (("agent", None), *ECHOES)


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


def asking(way: Way, messages: Sequence[bytes]) -> Run:
    """us for each of them."""

    def run() -> float:
        with favoured(HOST):
            return sum(way.converse(messages, len(messages))) / len(messages) / 1000

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
        self.rings: dict[str, Way] = {}
        for name, program, *words in GUESTS:
            (folder / name).mkdir(exist_ok=True)
            path = HERE / program if program else None
            agent = stack.enter_context(
                RunningAgent(folder / name, "kvp", program=path, words=tuple(words), as_guest=True)
            )
            self.rings[name] = over_rings(agent, "kvp")
        self.daemon: Way | None = None
        self.why = ""
        try:
            daemon = stack.enter_context(Daemon("kvp", folder / "daemon"))
            favour(daemon.pid)
            self.daemon = to_device(daemon)
        except Unavailable as why:
            self.why = str(why)


@pytest.fixture(scope="module", params=[10, 100, 1000])
def peers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(tmp_path_factory.mktemp("kvp"), request.param, stack)


@pytest.mark.parametrize("what", ["get", "set", "enumerate"])
def test_one_request(benchmark: Any, peers: Peers, what: str) -> None:
    ours, theirs = requests(what, peers.records, 100 if benchmark.enabled else 5)

    def alone() -> float:
        with favoured(HOST):
            start = time.perf_counter_ns()
            for message in ours:
                reply = settle(peers.service.receive(message))  # after a slow change comes a rest
            took = time.perf_counter_ns() - start
        assert reply is not None
        return took / len(ours) / 1000

    candidates = {"hvring run": asking(peers.rings["agent"], ours), "the service alone": alone}
    if peers.daemon is not None:
        candidates["hv_kvp_daemon"] = asking(peers.daemon, theirs)
    for name, *_ in ECHOES:
        candidates[name] = asking(peers.rings[name], ours)
    in_turns(benchmark, candidates, unit="us/request", rounds=9, records=peers.records, skipped=peers.why)
