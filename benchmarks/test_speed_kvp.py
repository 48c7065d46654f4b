# SPDX-License-Identifier: Apache-2.0
"""Data exchange per request against the in-tree hv_kvp_daemon: does the time grow with the pool?

Both are whole programs, in a process of their own on another processor, driven by one request after the other, by the
host of host.c: ours over rings, the daemon over a socket in the place of its kernel device, and ours over one, too.
"echo in C" and "echo in asyncio" send the requests back as they are: what the wake-ups cost, and an event loop in
Python. "that looks": for a while before it sleeps.
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
from daemons import MESSAGES, Daemon, UtilsAgent
from measure import Run, in_turns
from peers import Unavailable
from processors import HOST, favour, favoured

from hvring.guest.pools import PoolStore
from hvring.ic.frame import Frame, MessageType
from hvring.ic.kvp import KvpDelete, KvpEnumerate, KvpGet, KvpOperation, KvpPool, KvpSet
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
    """The same requests for a service and for the daemon; keys lie all over the pool.

    "delete": every second one is the SET of a new key, which the next one deletes.
    """
    ours, theirs = [], []
    for n in range(count):
        place = n * 7919 % records
        key, value, kind = f"key.{place}", f"new value {n}", what
        if what == "delete":
            key, kind = f"new key {n // 2}", "set" if n % 2 == 0 else what
        for each, message in zip((ours, theirs), one(kind, place, key, value), strict=True):
            each.append(message)
    return ours, theirs


def one(kind: str, place: int, key: str, value: str) -> tuple[bytes, bytes]:
    """A request over rings, and the same to the daemon."""
    raw, new = key.encode(), value.encode()
    body: KvpEnumerate | KvpSet | KvpGet | KvpDelete
    match kind:
        case "enumerate":
            body, told = KvpEnumerate(POOL, place), struct.pack("<I", place)
        case "set":
            body = KvpSet(POOL, key, value)
            told = struct.pack("<III512s2048s", 1, len(raw) + 1, len(new) + 1, raw, new)
        case "delete":
            body, told = KvpDelete(POOL, key), struct.pack("<I512s", len(raw) + 1, raw)
        case _:
            body, told = KvpGet(POOL, key), struct.pack("<III512s2048s", 1, len(raw) + 1, 2048, raw, b"")
    operation = KvpOperation[kind.upper()]
    device = (bytes([operation, POOL, 0, 0]) + told).ljust(MESSAGES["kvp"], b"\0")
    return Frame(MessageType.KVP, body.encode()).encode(), device


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
        for name in ("alone", "agent/pools", "daemon/hyperv", "device"):
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
        utils = stack.enter_context(UtilsAgent("kvp", folder / "device"))
        self.device = to_device(utils)
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


@pytest.mark.parametrize("what", ["get", "set", "enumerate", "delete"])
def test_one_request(benchmark: Any, peers: Peers, what: str) -> None:
    ours, theirs = requests(what, peers.records, 100 if benchmark.enabled else 6)

    def alone() -> float:
        with favoured(HOST):
            start = time.perf_counter_ns()
            for message in ours:
                reply = settle(peers.service.receive(message))  # after a slow change comes a rest
            took = time.perf_counter_ns() - start
        assert reply is not None
        return took / len(ours) / 1000

    candidates = {
        "hvring run": asking(peers.rings["agent"], ours),
        "hvring over the device": asking(peers.device, theirs),
        "the service alone": alone,
    }
    if peers.daemon is not None:
        candidates["hv_kvp_daemon"] = asking(peers.daemon, theirs)
    for name, *_ in ECHOES:
        candidates[name] = asking(peers.rings[name], ours)
    in_turns(benchmark, candidates, unit="us/request", rounds=9, records=peers.records, skipped=peers.why)
