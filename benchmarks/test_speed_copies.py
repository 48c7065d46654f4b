# SPDX-License-Identifier: Apache-2.0
"""What do large payloads cost: from page-aligned buffers, where glibc's copy may fall off a cliff, and in place?"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import pytest
from dpdk import Ring
from measure import Run, in_turns, pairs, shared_ring, timed
from test_speed_batches import table

from hvring.ring import RingConsumer, RingProducer

BATCH = 4


@pytest.mark.parametrize("size", [64, 512, 1024, 2048, 4072, 4096, 16384])
def test_from_a_page_aligned_buffer(benchmark: Any, size: int, dpdk_library: ctypes.CDLL) -> None:
    producer, consumer, candidates = forms(size, 0, dpdk_library)
    rows = table(BATCH, size)
    data = memoryview(mmap.mmap(-1, BATCH * size))

    def seen_in_place() -> None:
        producer.send_batch(data, rows)
        for _ in consumer.views():
            pass

    candidates["hvring, batches of 4, seen in place"] = timed(seen_in_place, 1_000, BATCH)
    in_turns(benchmark, candidates, size=size)
    assert producer.free == producer.size


@pytest.mark.parametrize("size", [4072])
def test_at_the_cliff(benchmark: Any, size: int, dpdk_library: ctypes.CDLL) -> None:
    """A stride of one page, and buffers that put every target 8 bytes behind its source modulo a page."""
    _, _, candidates = forms(size, 8, dpdk_library)
    in_turns(benchmark, candidates, size=size)


def forms(size: int, shift: int, library: ctypes.CDLL) -> tuple[RingProducer, RingConsumer, dict[str, Run]]:
    """The source begins `shift` bytes into a page, the target where the ring's payload is `shift` before it."""
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    source, target = (memoryview(mmap.mmap(-1, 1 << 16)) for _ in range(2))
    payload = source[shift : shift + size]
    into = target[16 + shift if shift else 0 :]
    peer = Ring(library)

    runs: dict[str, Run] = {
        "hvring": pairs(producer.send, consumer.recv_into, payload, into),
        "DPDK": lambda: peer.pairs(size, 3_000, shift),
        "memcpy": lambda: peer.copies(size, 3_000),
    }
    return producer, consumer, runs
