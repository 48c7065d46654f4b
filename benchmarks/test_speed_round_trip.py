# SPDX-License-Identifier: Apache-2.0
"""How long does a packet take to another process and back: spinning, sleeping, and into an asyncio loop?"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable
from typing import Any

from dpdk import Ring
from measure import Run, in_turns, shared_ring, two_processes

from hvring.ring import RingConsumer, RingProducer

SIZE = 64


def median(took: list[int]) -> float:
    return float(sorted(took)[len(took) // 2])


def note(benchmark: Any, kept: dict[str, list[int]]) -> None:
    """The distributions: ns at these hundredths of a percent."""
    benchmark.extra_info["percentiles"] = {
        name: {
            str(p): sorted(took)[min(len(took) - 1, len(took) * p // 10000)]
            for p in (0, 5000, 9000, 9900, 9990)
        }
        for name, took in kept.items()
        if took
    }


def of_dpdk(library: ctypes.CDLL, count: int, kept: list[int], *, blocking: bool) -> Run:
    def run() -> float:
        there, back = Ring(library), Ring(library)
        bells = [os.eventfd(0), os.eventfd(0)] if blocking else [-1, -1]
        took = (ctypes.c_uint64 * count)()
        n, size, none = ctypes.c_uint64(count), there.size, ctypes.c_uint64(0)
        two_processes(
            lambda: library.bench_pong(back.address, there.address, size, SIZE, n, bells[1], bells[0], none),
            lambda: library.bench_ping(
                there.address, back.address, size, SIZE, n, bells[0], bells[1], none, took
            ),
        )
        for bell in bells if blocking else ():
            os.close(bell)
        kept.extend(took)
        return median(list(took))

    return run


def spinning(count: int, kept: list[int]) -> Run:
    def run() -> float:
        there, back = shared_ring(), shared_ring()
        ping, pong = RingProducer(there), RingProducer(back)
        at_ping, at_pong = RingConsumer(back), RingConsumer(there)

        def child() -> None:
            recv_into, send, data, payload = at_pong.recv_into, pong.send, bytearray(SIZE), bytes(SIZE)
            for _ in range(count):
                while recv_into(data) is None:
                    pass
                send(payload)

        took: list[int] = []

        def parent() -> None:
            recv_into, send, data, payload = at_ping.recv_into, ping.send, bytearray(SIZE), bytes(SIZE)
            clock = time.perf_counter_ns
            for _ in range(count):
                start = clock()
                send(payload)
                while recv_into(data) is None:
                    pass
                took.append(clock() - start)

        two_processes(child, parent)
        kept.extend(took)
        return median(took)

    return run


def sleeping(
    channels: Callable[..., Any], answer: Callable[[Any, int], None], count: int, kept: list[int]
) -> Run:
    """The parent sends and waits; `answer(channel, count)` runs in the child."""

    def run() -> float:
        guest, host = channels()
        took: list[int] = []

        def parent() -> None:
            payload, clock = bytes(SIZE), time.perf_counter_ns
            for _ in range(count):
                start = clock()
                host.send(payload)
                while host.recv() is None:
                    host.wait()
                took.append(clock() - start)

        two_processes(lambda: answer(guest, count), parent)
        kept.extend(took)
        return median(took)

    return run


def answer_blocking(channel: Any, count: int) -> None:
    for _ in range(count):
        while (packet := channel.recv()) is None:
            channel.wait()
        channel.send(packet.payload)


def answer_asyncio(channel: Any, count: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        left = count

        def ready() -> None:
            nonlocal left
            while True:
                while (packet := channel.recv()) is not None:
                    channel.send(packet.payload)
                    left -= 1
                if not channel.arm():
                    break
            if left == 0 and not done.done():
                done.set_result(None)

        loop.add_reader(channel, ready)
        ready()
        await done
        loop.remove_reader(channel)

    asyncio.run(main())


def test_spinning(benchmark: Any, peers: dict[str, ctypes.CDLL]) -> None:
    count = 20_000 if benchmark.enabled else 500
    kept: dict[str, list[int]] = {"hvring": [], **{name: [] for name in peers}}
    in_turns(
        benchmark,
        {
            "hvring": spinning(count, kept["hvring"]),
            **{name: of_dpdk(library, count, kept[name], blocking=False) for name, library in peers.items()},
        },
        unit="ns/round trip, median",
        rounds=9,
        size=SIZE,
    )
    note(benchmark, kept)


def test_sleeping(benchmark: Any, dpdk_library: ctypes.CDLL, channels: Any) -> None:
    count = 1_500 if benchmark.enabled else 100
    kept: dict[str, list[int]] = {"hvring": [], "hvring, into asyncio": [], "DPDK and eventfd": []}
    in_turns(
        benchmark,
        {
            "hvring": sleeping(channels, answer_blocking, count, kept["hvring"]),
            "hvring, into asyncio": sleeping(channels, answer_asyncio, count, kept["hvring, into asyncio"]),
            "DPDK and eventfd": of_dpdk(dpdk_library, count, kept["DPDK and eventfd"], blocking=True),
        },
        unit="ns/round trip, median",
        rounds=9,
        size=SIZE,
    )
    note(benchmark, kept)
