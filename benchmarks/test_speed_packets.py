# SPDX-License-Identifier: Apache-2.0
"""What does one packet cost from Python, in and out of a ring in one thread, over the size, and against what?"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import bindings
import pytest
from limits import Limits, two_calls
from measure import Run, in_turns, pairs, shared_ring, timed
from peers import Ring, Unavailable
from plain import PlainRing

from hvring.ring import RingConsumer, RingProducer

SIZES = [0, 16, 64, 128, 256, 1024, 4096, 16384]


def in_c(peers: dict[str, ctypes.CDLL], size: int, count: int = 20_000, data: int = 131072) -> dict[str, Run]:
    """Pairs in C of each peer."""

    def of(library: ctypes.CDLL) -> Run:
        ring = Ring(library, data)
        return lambda: ring.pairs(size, count)

    return {name: of(library) for name, library in peers.items()}


@pytest.mark.parametrize("size", SIZES)
def test_one_packet(benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], limits: Limits) -> None:
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    payload, target = bytes(size), bytearray(size)
    in_turns(
        benchmark,
        {
            "hvring": pairs(producer.send, consumer.recv_into, payload, target),
            "hvring, to bytes": pairs(producer.send, consumer.recv_bytes, payload),
            "hvring, to a Packet": pairs(producer.send, consumer.recv, payload),
            **in_c(peers, size, 20_000 if size <= 1024 else 5_000),
            "memcpy": limits.copies(size),
            "two empty calls": two_calls(payload, target),
        },
        rounds=31,
        size=size,
    )
    assert consumer.recv() is None


@pytest.mark.parametrize("size", [64, 1024])
def test_one_packet_through_a_channel(
    benchmark: Any, size: int, peers: dict[str, ctypes.CDLL], channels: Any
) -> None:
    guest, host = channels()
    host.mask()  # the reader is awake: no signal per packet
    in_turns(
        benchmark,
        {
            "hvring": pairs(guest.send, host.recv_into, bytes(size), bytearray(size)),
            "hvring, to a Packet": pairs(guest.send, host.recv, bytes(size)),
            **in_c(peers, size),
        },
        size=size,
    )
    assert guest.stats()["signals_sent"] == 0


@pytest.mark.parametrize("size", [64, 1024])
def test_other_ways_from_python(benchmark: Any, size: int, peers: dict[str, ctypes.CDLL]) -> None:
    """A C peer's ring through ctypes and cffi, as bindings without Cython would be; and a ring in plain Python."""
    memory = shared_ring()
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    payload, target = bytes(size), bytearray(size)
    candidates = {
        "hvring": pairs(producer.send, consumer.recv_into, payload, target),
        **in_c(peers, size),
    }
    ways: tuple[tuple[str, Callable[..., bindings.Pair]], ...] = (
        ("cffi", bindings.by_cffi),
        ("ctypes", bindings.by_ctypes),
    )
    opened = []
    for peer, library in peers.items():
        for name, way in ways:
            ring = Ring(library)
            channel = library.bench_open(ring.address, ring.address, ring.size)
            opened.append((library, ring, channel))
            try:
                candidates[f"{name} over {peer}"] = timed(way(library, ring, channel, size), 5_000)
            except Unavailable as why:
                benchmark.extra_info[name] = str(why)
    plain = PlainRing(bytearray(4096 + 131072))
    candidates["plain Python"] = pairs(plain.send, plain.recv_into, payload, target, count=2_000)
    in_turns(benchmark, candidates, size=size)
    for library, ring, channel in opened:  # all that was sent was received
        assert library.bench_recv(ctypes.c_void_p(channel), ring.target_at, size) == -1
        library.bench_close(ctypes.c_void_p(channel))
    assert plain.recv_into(target) is None
