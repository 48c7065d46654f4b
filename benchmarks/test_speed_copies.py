# SPDX-License-Identifier: Apache-2.0
"""What do large payloads cost: from page-aligned buffers, where glibc's copy may fall off a cliff, and in place?"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import pytest
from limits import Limits, two_calls
from measure import Run, in_turns, pairs, shared_ring, timed
from peers import Ring
from test_speed_batches import table

from hvring.ring import RingConsumer, RingProducer

BATCH = 7  # of 16 KiB still fit into the ring
COUNT = 3_000


@pytest.mark.parametrize("size", [64, 512, 1024, 2048, 4072, 4096, 16384])
def test_from_a_page_aligned_buffer(
    benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], limits: Limits
) -> None:
    producer, consumer, candidates = forms(size, 0, peers, limits)
    one = table(1, size)
    rows = memoryview(bytes(one) * BATCH)  # the same bytes each time, as the others have
    data = memoryview(mmap.mmap(-1, size))

    def seen_in_place() -> None:
        producer.send_batch(data, rows)
        for _ in consumer.views():
            pass

    candidates["hvring, batches of 7, seen in place"] = timed(seen_in_place, 1_000, BATCH)
    in_turns(benchmark, candidates, size=size)
    assert producer.free == producer.size


@pytest.mark.parametrize("size", [4072])
def test_at_the_cliff(benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], limits: Limits) -> None:
    """A stride of one page, and buffers that put every target 8 bytes behind its source modulo a page."""
    _, _, candidates = forms(size, 8, peers, limits)
    in_turns(benchmark, candidates, size=size)


@pytest.mark.parametrize("ahead", [0, 8, 16, 24, 32, 64, 2048])
def test_how_deep_the_cliff_is(benchmark: Any, ahead: int, limits: Limits) -> None:
    """glibc's copies of 4072 bytes alone, with the target so many bytes behind the source modulo a page."""
    in_turns(benchmark, {"memcpy": limits.copies(4072, ahead), "memcpy at 0": limits.copies(4072)})


def forms(
    size: int, shift: int, peers: dict[str, ctypes.CDLL], limits: Limits
) -> tuple[RingProducer, RingConsumer, dict[str, Run]]:
    """The source begins `shift` bytes into a page, the target where the ring's payload is `shift` before it."""
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    source, target = (memoryview(mmap.mmap(-1, 1 << 16)) for _ in range(2))
    payload = source[shift : shift + size]
    into = target[16 + shift if shift else 0 :]

    def of(library: ctypes.CDLL) -> Run:
        ring = Ring(library)
        return lambda: ring.pairs(size, COUNT, shift)

    return (
        producer,
        consumer,
        {
            "hvring": pairs(producer.send, consumer.recv_into, payload, into),
            **{name: of(library) for name, library in peers.items()},
            "memcpy": limits.copies(size),
            "memcpy, target 16 bytes behind": limits.copies(size, 16),
            "two empty calls": two_calls(payload, into),
        },
    )
