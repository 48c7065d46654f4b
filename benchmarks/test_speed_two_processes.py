# SPDX-License-Identifier: Apache-2.0
"""How many packets pass from one process to another, each on its own processor, spinning?

On virtual processors the rates jump between two levels, as these are moved on the real ones: rounds are short and many,
and a ratio is taken within each.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest
from limits import Limits
from measure import Run, in_turns, shared_ring, two_processes
from peers import Ring
from test_speed_batches import table

from hvring.errors import RingFullError
from hvring.ring import RingConsumer, RingProducer


def per_packet(size: int, count: int) -> Run:
    def run() -> float:
        memory = shared_ring()
        producer, consumer = RingProducer(memory), RingConsumer(memory)

        def child() -> None:
            send, payload, left = producer.send, bytes(size), count
            while left:
                try:
                    send(payload)
                except RingFullError:
                    continue
                left -= 1

        def parent() -> None:
            recv_into, target, left = consumer.recv_into, bytearray(size), count
            while left:
                if recv_into(target) is not None:
                    left -= 1

        return two_processes(child, parent) / count

    return run


def batched(size: int, count: int, batch: int = 64, data: int = 131072) -> Run:
    def run() -> float:
        memory = shared_ring(data)
        producer, consumer = RingProducer(memory), RingConsumer(memory)
        rows = table(batch, size)

        def child() -> None:
            send_batch, payloads, left = producer.send_batch, bytes(batch * size), count
            while left >= batch:
                left -= send_batch(payloads, rows)[0]
            while left:
                left -= send_batch(payloads, rows[: left * 24])[0]

        def parent() -> None:
            recv_batch, left = consumer.recv_batch, count
            target, found = bytearray(batch * size), bytearray(24 * batch)
            while left:
                left -= recv_batch(target, found)

        return two_processes(child, parent) / count

    return run


def cimport(pump: ModuleType, size: int, count: int, batch: int) -> Run:
    def run() -> float:
        memory = shared_ring()
        producer, consumer = RingProducer(memory), RingConsumer(memory)
        return (
            two_processes(
                lambda: pump.produce(producer, bytes(size), count, batch),
                lambda: pump.consume(consumer, bytearray(size), count),
            )
            / count
        )

    return run


def in_c(peers: dict[str, ctypes.CDLL], size: int, count: int, data: int = 131072) -> dict[str, Run]:
    def of(library: ctypes.CDLL) -> Run:
        def run() -> float:
            ring = Ring(library, data)
            return two_processes(lambda: ring.produce(size, count), lambda: ring.consume(size, count)) / count

        return run

    return {name: of(library) for name, library in peers.items()}


@pytest.mark.parametrize("size", [64, 1024])
def test_one_way(
    benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], pump: ModuleType, limits: Limits
) -> None:
    count = 100_000 if benchmark.enabled else 10_000
    in_turns(
        benchmark,
        {
            "hvring": batched(size, 2 * count),
            "hvring, one call per packet": per_packet(size, count),
            "hvring, cimport": cimport(pump, size, count, 1),
            "hvring, cimport, batches of 32": cimport(pump, size, 2 * count, 32),
            **in_c(peers, size, count),
            "handed over, in batches": limits.handed_over(size, 2 * count, 32),
            "handed over": limits.handed_over(size, count, 1),
        },
        rounds=41,
        size=size,
    )


@pytest.mark.parametrize("data", [131072, 2097152])
def test_one_way_over_the_batch(benchmark: Any, data: int, peers: dict[str, ctypes.CDLL]) -> None:
    """All sizes of a batch in turns: on another day the processors may lie elsewhere."""
    count = 100_000 if benchmark.enabled else 10_000
    in_turns(
        benchmark,
        {
            **{f"hvring, batches of {n}": batched(64, count, n, data) for n in (1, 4, 16, 32, 64, 128)},
            **in_c(peers, 64, count, data),
        },
        rounds=31,
        size=64,
        ring=data,
    )
