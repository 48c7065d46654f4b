# SPDX-License-Identifier: Apache-2.0
"""Every lie that a peer can tell, told once: an error with its name, no packet lost, nothing read outside."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from hvring.errors import HvringError, RingCorruptError, RingFullError
from hvring.ring import LIES, RingConsumer, RingProducer

WRITE, READ, PENDING, DATA = 0, 4, 12, 4096


def poke(memory: bytearray, at: int, value: int, form: str = "<I") -> None:
    struct.pack_into(form, memory, at, value)


def descriptor(memory: bytearray, *, offset8: int = 2, len8: int = 3) -> None:
    struct.pack_into("<HHHHQ", memory, DATA, 6, offset8, len8, 0, 0)


# name of the lie -> (which end is lied to, what the peer does to a ring that holds one packet of 32 bytes at 0)
TOLD: dict[str, tuple[str, Callable[[bytearray], None]]] = {
    "write-range": ("consumer", lambda m: poke(m, WRITE, 4096)),
    "write-align": ("consumer", lambda m: poke(m, WRITE, 36)),
    "write-back": ("consumer-after-look", lambda m: poke(m, WRITE, 0)),
    "read-range": ("producer", lambda m: poke(m, READ, 0xFFFFFFF8)),
    "read-align": ("producer", lambda m: poke(m, READ, 4)),
    "read-back": ("producer", lambda m: poke(m, READ, 64)),
    "own-read": ("consumer", lambda m: poke(m, READ, 8)),
    "own-write": ("producer", lambda m: poke(m, WRITE, 8)),
    "fragment": ("consumer", lambda m: poke(m, WRITE, 16)),
    "offset8": ("consumer", lambda m: descriptor(m, offset8=1)),
    "len8": ("consumer", lambda m: descriptor(m, offset8=5, len8=3)),
    "length": ("consumer", lambda m: descriptor(m, len8=0xFFFF)),
}


def test_every_lie_in_the_table_is_told() -> None:
    assert set(TOLD) == {name for name, _ in LIES.values()}


@pytest.mark.parametrize("name", TOLD)
def test_a_lie_raises_by_name_and_truth_goes_on(name: str, ends) -> None:
    memory, producer, consumer = ends()
    producer.send(b"8 bytes!")
    victim, lie = TOLD[name]
    if victim == "consumer-after-look":
        assert consumer.available == 32
    before = bytes(memory)
    lie(memory)
    lied = bytes(memory)
    with pytest.raises(RingCorruptError, match="close the channel and open it again") as caught:
        if victim == "producer":
            _ = producer.free
        elif victim == "consumer-after-look":
            consumer.arm()
        else:
            consumer.recv()
    assert caught.value.lie == name
    assert bytes(memory[WRITE : READ + 4]) == lied[WRITE : READ + 4], "nothing was consumed or published"
    memory[:] = before
    packet = consumer.recv()
    assert packet is not None
    assert packet.payload == b"8 bytes!"
    producer.send(b"more")
    assert consumer.recv() is not None


@pytest.mark.parametrize("name", [n for n, (victim, _) in TOLD.items() if victim == "producer"])
def test_a_full_producer_notices_before_it_writes(name: str, ends) -> None:
    memory, producer, _ = ends(256)
    producer.send(b"8 bytes!")
    with pytest.raises(RingFullError):
        while True:
            producer.send(bytes(40))
    TOLD[name][1](memory)
    if name == "read-back":
        poke(memory, READ, 248)
    data = bytes(memory[DATA:])
    with pytest.raises(RingCorruptError):
        producer.send(bytes(40))
    assert bytes(memory[DATA:]) == data


@pytest.mark.parametrize(("write", "read"), [(4096, 0), (4, 0), (0, 4096), (0, 12), (2**32 - 8, 0)])
@pytest.mark.parametrize("end", [RingProducer, RingConsumer])
def test_impossible_indices_are_refused_at_the_start(end, write: int, read: int) -> None:
    memory = bytearray(8192)
    struct.pack_into("<II", memory, 0, write, read)
    with pytest.raises(RingCorruptError):
        end(memory)
    memory.append(0)  # the failed constructor holds no buffer


def test_a_pending_size_beyond_the_ring_asks_for_all_of_it(ends) -> None:
    memory, producer, consumer = ends(256)
    producer.send(bytes(40))
    producer.send(bytes(40))
    poke(memory, PENDING, 0xFFFFFFFF)
    consumer.recv()
    assert consumer.take_signal() is False
    consumer.recv()
    assert consumer.take_signal() is True
    assert consumer.take_signal() is False


def test_a_ring_of_noise_raises_or_yields_bounded_packets(ends) -> None:
    """Random control words and data: any outcome but a crash, a hang, or a packet larger than the ring."""
    rng = random.Random(20261122)
    for _ in range(3000):
        memory = bytearray(rng.randbytes(4096 + 128))
        guard = bytes(memory)
        indices = [rng.randrange(0, 20) * 8, rng.randrange(0, 20) * 8]
        struct.pack_into("<II", memory, 0, *indices)
        if rng.random() < 0.5:  # plausible lengths get deeper
            at = DATA + indices[1] % 128
            memory[at : at + 8] = struct.pack("<HHHH", 6, rng.randrange(4), rng.randrange(20), 0)[: 4224 - at]
        try:
            consumer = RingConsumer(memory, types=None)
            for _ in range(40):
                packet = consumer.recv()
                if packet is None:
                    break
                assert len(packet.payload) <= 128
        except HvringError:
            pass
        assert bytes(memory[8:4096]) == guard[8:4096], "a reader writes nothing but its index"
