# SPDX-License-Identifier: Apache-2.0
"""What does one packet cost from Python, in and out of a ring in one thread, over the size, and against what?"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import pytest
from dpdk import Ring
from measure import in_turns, pairs, shared_ring, timed

from hvring.ring import RingConsumer, RingProducer

SIZES = [0, 16, 64, 128, 256, 1024, 4096, 16384]


@pytest.mark.parametrize("size", SIZES)
def test_one_packet(benchmark: Any, size: int, dpdk_library: ctypes.CDLL) -> None:
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    payload = bytes(size)
    peer = Ring(dpdk_library)
    in_turns(
        benchmark,
        {
            "hvring": pairs(producer.send, consumer.recv_into, payload, bytearray(size)),
            "hvring, to a Packet": pairs(producer.send, consumer.recv, payload),
            "DPDK": lambda: peer.pairs(size, 20_000),
            "memcpy": lambda: peer.copies(size, 20_000),
        },
        size=size,
    )
    assert consumer.recv() is None


@pytest.mark.parametrize("size", [64, 1024])
def test_one_packet_through_a_channel(
    benchmark: Any, size: int, dpdk_library: ctypes.CDLL, channels: Any
) -> None:
    guest, host = channels()
    host.mask()  # the reader is awake: no signal per packet
    peer = Ring(dpdk_library)
    in_turns(
        benchmark,
        {
            "hvring": pairs(guest.send, host.recv_into, bytes(size), bytearray(size)),
            "hvring, to a Packet": pairs(guest.send, host.recv, bytes(size)),
            "DPDK": lambda: peer.pairs(size, 20_000),
        },
        size=size,
    )
    assert guest.stats()["signals_sent"] == 0


@pytest.mark.parametrize("size", [64, 1024])
def test_other_ways_from_python(
    benchmark: Any, size: int, dpdk_library: ctypes.CDLL, plain: ModuleType
) -> None:
    """ctypes around the C ring, as a binding without Cython would be; and plain Python over a bytearray."""
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    ring = Ring(dpdk_library)
    channel = ctypes.c_void_p(dpdk_library.bench_open(ring.address, ring.address, ring.size))
    send, receive, source, target = (
        dpdk_library.bench_send,
        dpdk_library.bench_recv,
        ring.source_at,
        ring.target_at,
    )

    def by_ctypes() -> None:
        send(channel, source, size)
        receive(channel, target, size)

    model, payload = plain.Model(bytearray(4096 + 8192)), bytes(size)

    def by_hand() -> None:
        model.send(payload)
        model.recv()

    in_turns(
        benchmark,
        {
            "hvring": pairs(producer.send, consumer.recv_into, payload, bytearray(size)),
            "ctypes over DPDK": timed(by_ctypes, 5_000),
            "plain Python": timed(by_hand, 100),
        },
        rounds=7,
        size=size,
    )
    assert receive(channel, target, size) == -1
    dpdk_library.bench_close(channel)
