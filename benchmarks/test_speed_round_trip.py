# SPDX-License-Identifier: Apache-2.0
"""How long does a packet take to another process and back: spinning, sleeping, both in turn, into event loops?"""

from __future__ import annotations

import asyncio
import ctypes
import os
import selectors
import time
from collections.abc import Callable
from typing import Any

import pytest
from dpdk import Ring
from measure import Run, in_turns, shared_ring, two_processes

from hvring.ring import RingConsumer, RingProducer

SIZE = 64
LOOK = 50e-6
PAUSE = 100_000


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


def of_dpdk(
    library: ctypes.CDLL,
    count: int,
    kept: list[int],
    *,
    ping: bool = True,
    pong: bool = True,
    work: int = 0,
    pause: int = 0,
) -> Run:
    """`ping`, `pong`: that side sleeps in reads of its eventfd; ns that an answer takes, and before each question."""

    def run() -> float:
        there, back = Ring(library), Ring(library)
        bells = [os.eventfd(0) if pong else -1, os.eventfd(0) if ping else -1]
        took = (ctypes.c_uint64 * count)()
        n, size = ctypes.c_uint64(count), there.size
        rest, delay = ctypes.c_uint64(pause), ctypes.c_uint64(work)
        two_processes(
            lambda: library.bench_pong(back.address, there.address, size, SIZE, n, bells[1], bells[0], delay),
            lambda: library.bench_ping(
                there.address, back.address, size, SIZE, n, bells[0], bells[1], rest, took
            ),
        )
        for bell in bells:
            if bell >= 0:
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


def spend(nanoseconds: int) -> None:
    """Without sleep."""
    if nanoseconds:
        until = time.perf_counter_ns() + nanoseconds
        while time.perf_counter_ns() < until:
            pass


def asking(
    channels: Callable[..., Any],
    answer: Callable[[Any, int], None],
    count: int,
    kept: list[int],
    *,
    looks: bool = False,
    spin: float = 0.0,
    their_spin: float = 0.0,
    share: float = 0.05,
    pause: int = 0,
) -> Run:
    """The parent sends and waits, or looks all the time; `answer(channel, count)` runs in the child.

    `pause`: ns before each question.  The spins are set before each process is tied to its processor.
    """

    def run() -> float:
        guest, host = channels()
        host.spin_share, host.spin = share, spin
        guest.spin_share, guest.spin = share, their_spin
        took: list[int] = []

        def parent() -> None:
            payload, clock = bytes(SIZE), time.perf_counter_ns
            if looks:
                host.mask()
            for _ in range(count):
                spend(pause)
                start = clock()
                host.send(payload)
                while host.recv() is None:
                    if not looks:
                        host.wait()
                took.append(clock() - start)

        two_processes(lambda: answer(guest, count), parent)
        kept.extend(took)
        return median(took)

    return run


def answer_waiting(work: int = 0) -> Callable[[Any, int], None]:
    """An answerer that blocks in wait(); each answer takes `work` ns."""

    def answer(channel: Any, count: int) -> None:
        for _ in range(count):
            while (packet := channel.recv()) is None:
                channel.wait()
            spend(work)
            channel.send(packet.payload)

    return answer


def answer_selectors(channel: Any, count: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(channel, selectors.EVENT_READ)
        left = count
        while left:
            while (packet := channel.recv()) is not None:
                channel.send(packet.payload)
                left -= 1
            if left and not channel.arm():
                selector.select()


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
            **{
                name: of_dpdk(library, count, kept[name], ping=False, pong=False)
                for name, library in peers.items()
            },
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
            "hvring": asking(channels, answer_waiting(), count, kept["hvring"]),
            "hvring, into asyncio": asking(channels, answer_asyncio, count, kept["hvring, into asyncio"]),
            "DPDK and eventfd": of_dpdk(dpdk_library, count, kept["DPDK and eventfd"]),
        },
        unit="ns/round trip, median",
        rounds=9,
        size=SIZE,
    )
    note(benchmark, kept)


@pytest.mark.parametrize(
    ("work", "pause"),
    [
        pytest.param(0, 0, id="0"),
        pytest.param(20, 0, id="20"),
        pytest.param(200, 0, id="200"),
        pytest.param(2000, 0, id="2000"),
        pytest.param(0, 500, id="0, every 500"),
    ],
)
def test_looking_before_sleeping(
    work: int, pause: int, benchmark: Any, dpdk_library: ctypes.CDLL, channels: Any
) -> None:
    """The answer takes `work` us, the next question `pause` us.

    Who looks, looks for up to 50 us, and at 5 % of a processor unless the name says otherwise.
    """
    count = many = 10
    if benchmark.enabled:
        count = 150 if pause else {0: 1_500, 20: 1_000, 200: 250, 2000: 40}[work]
        many = (
            20_000 if (work, pause) == (0, 0) else count
        )  # more than the 1 ms that is saved up at first allows
    peer = "DPDK and eventfd"
    looks = {  # who asks looks for so long, at which share of a processor; who answers; how many round trips
        "hvring": (0.0, 0.05, 0.0, count),
        "hvring, one looks": (LOOK, 0.05, 0.0, count),
        "hvring, one looks at 100 %": (LOOK, 1.0, 0.0, count),
        "hvring, both look": (LOOK, 0.05, LOOK, many),
        "hvring, both look at 100 %": (LOOK, 1.0, LOOK, many),
    }
    kept: dict[str, list[int]] = {name: [] for name in (*looks, peer)}
    runs = {
        name: asking(
            channels,
            answer_waiting(work * 1000),
            times,
            kept[name],
            spin=ours,
            their_spin=theirs,
            share=share,
            pause=pause * 1000,
        )
        for name, (ours, share, theirs, times) in looks.items()
    }
    runs[peer] = of_dpdk(dpdk_library, count, kept[peer], work=work * 1000, pause=pause * 1000)
    in_turns(benchmark, runs, unit="ns/round trip, median", rounds=7, size=SIZE, work_us=work, pause_us=pause)
    note(benchmark, kept)


def test_from_a_wake_up_to_the_answer(benchmark: Any, dpdk_library: ctypes.CDLL, channels: Any) -> None:
    """One signal, one wake-up, and what the answerer does: who asks looks all the time, then pauses."""
    count = 1_000 if benchmark.enabled else 100
    answers = {"wait()": answer_waiting(), "selectors": answer_selectors, "asyncio": answer_asyncio}
    peer = "DPDK and eventfd"
    kept: dict[str, list[int]] = {name: [] for name in (*answers, peer)}
    runs = {
        name: asking(channels, each, count, kept[name], looks=True, pause=PAUSE)
        for name, each in answers.items()
    }
    runs[peer] = of_dpdk(dpdk_library, count, kept[peer], ping=False, pause=PAUSE)
    in_turns(benchmark, runs, unit="ns/round trip, median", rounds=9, size=SIZE)
    note(benchmark, kept)
