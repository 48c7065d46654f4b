# SPDX-License-Identifier: Apache-2.0
"""How many packets pass from one process to another, each on its own processor, spinning?"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest
from dpdk import Ring
from measure import Run, in_turns, shared_ring, two_processes
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


def batched(size: int, count: int, batch: int = 64) -> Run:
    def run() -> float:
        memory = shared_ring()
        producer, consumer = RingProducer(memory), RingConsumer(memory)
        rows = table(batch, size)

        def child() -> None:
            data, left = bytes(batch * size), count
            while left:
                left -= producer.send_batch(data, rows[: left * 24])[0]

        def parent() -> None:
            target, found, left = bytearray(batch * size), bytearray(24 * batch), count
            while left:
                left -= consumer.recv_batch(target, found)

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


def dpdk(library: ctypes.CDLL, size: int, count: int) -> Run:
    def run() -> float:
        ring = Ring(library)
        return two_processes(lambda: ring.produce(size, count), lambda: ring.consume(size, count)) / count

    return run


@pytest.mark.parametrize("size", [64, 1024])
def test_one_way(benchmark: Any, size: int, dpdk_library: ctypes.CDLL, pump: ModuleType) -> None:
    count = 400_000 if benchmark.enabled else 10_000
    in_turns(
        benchmark,
        {
            "hvring": batched(size, 2 * count),
            "hvring, one call per packet": per_packet(size, count),
            "hvring, cimport": cimport(pump, size, count, 1),
            "hvring, cimport, batches of 32": cimport(pump, size, 2 * count, 32),
            "DPDK": dpdk(dpdk_library, size, count),
        },
        rounds=9,
        size=size,
    )
