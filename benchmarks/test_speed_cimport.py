# SPDX-License-Identifier: Apache-2.0
"""What does a packet cost at C level, through `cimport hvring.ring.core`, without the GIL?"""

from __future__ import annotations

import ctypes
import time
from types import ModuleType
from typing import Any

import pytest
from limits import Limits
from measure import in_turns, shared_ring
from test_speed_packets import in_c

from hvring.ring import RingConsumer, RingProducer


@pytest.mark.parametrize("size", [16, 64, 256, 1024, 4096])
def test_a_pair_without_the_gil(
    benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], pump: ModuleType, limits: Limits
) -> None:
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    payload, target, count = bytes(size), bytearray(size), 20_000

    def cimport() -> float:
        start = time.perf_counter_ns()
        done = pump.pairs(producer, consumer, payload, target, count)
        took = time.perf_counter_ns() - start
        assert done == count
        return took / count

    in_turns(
        benchmark,
        {
            "hvring": cimport,
            **in_c(peers, size, count),
            "memcpy": limits.copies(size),
        },
        rounds=31,
        size=size,
    )
