# SPDX-License-Identifier: Apache-2.0
"""What does a packet cost in a batch, over the batch, the ring and the form of the data?"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pytest
from limits import Limits
from measure import Run, in_turns, shared_ring, timed
from test_speed_packets import in_c

from hvring.ring import RingConsumer, RingProducer
from hvring.vmbus.arrays import descriptor_dtype


def table(batch: int, size: int) -> memoryview:
    """Descriptors of `batch` payloads of `size` bytes, one behind the other."""
    rows = np.zeros(batch, descriptor_dtype())
    rows["offset"] = np.arange(batch) * size
    rows["length"] = size
    return memoryview(rows.tobytes())


def forms(ring: int, batch: int, size: int, peers: dict[str, ctypes.CDLL], limits: Limits) -> dict[str, Run]:
    memory = shared_ring(ring)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    data, target = bytearray(batch * size), bytearray(batch * (size + 8))
    rows, found = table(batch, size), bytearray(24 * batch)
    payloads = [bytes(size)] * batch
    turns = max(1, 20_000 // batch)

    def arrays() -> None:
        producer.send_batch(data, rows)
        consumer.recv_batch(target, found)

    def list_to_array() -> None:
        producer.send_many(payloads)
        consumer.recv_batch(target, found)

    def list_to_list() -> None:
        producer.send_many(payloads)
        consumer.recv_payloads(batch)

    def list_to_packets() -> None:
        producer.send_many(payloads)
        consumer.recv_many(batch)

    steps = {
        "hvring": arrays,
        "hvring, list to array": list_to_array,
        "hvring, list to list": list_to_list,
        "hvring, list to Packets": list_to_packets,
    }
    for step in steps.values():  # all of it passes, and the ring is empty again
        step()
        assert producer.free == producer.size
    return {
        **{name: timed(step, turns, batch) for name, step in steps.items()},
        **in_c(peers, size, data=ring),
        "memcpy": limits.copies(size),
    }


@pytest.mark.parametrize("batch", [1, 4, 16, 64, 256])
def test_over_the_batch(benchmark: Any, batch: int, peers: dict[str, ctypes.CDLL], limits: Limits) -> None:
    in_turns(benchmark, forms(131072, batch, 64, peers, limits), batch=batch, ring=131072, size=64)


@pytest.mark.parametrize("ring", [8192, 16384, 65536, 262144, 2097152])
def test_over_the_ring(benchmark: Any, ring: int, peers: dict[str, ctypes.CDLL], limits: Limits) -> None:
    in_turns(benchmark, forms(ring, 64, 64, peers, limits), batch=64, ring=ring, size=64)


@pytest.mark.parametrize("size", [256, 1024])
def test_over_the_size(benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], limits: Limits) -> None:
    in_turns(benchmark, forms(131072, 64, size, peers, limits), batch=64, ring=131072, size=size)
