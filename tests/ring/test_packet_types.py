# SPDX-License-Identifier: Apache-2.0
"""Only packets are sent that are whole with the header that is written (PROTOCOL §2.3)."""

from __future__ import annotations

import mmap
import os
import struct

import numpy as np
import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell
from hvring.ring import RingConsumer, RingProducer
from hvring.vmbus.arrays import descriptor_dtype

SHORT = [6, 10, 11]
LONG = [kind for kind in (*range(64), 255, 256, 0x106, 0xFFFF) if kind not in SHORT]
ROW = struct.Struct("<IIHHIQ")


@pytest.fixture
def channel():
    doorbell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
    with Channel(
        mmap.mmap(-1, 2 * 8192), ring_size=8192, tx_offset=0, rx_offset=8192, doorbell=doorbell
    ) as channel:
        yield channel


def ways(end):
    return [
        lambda kind: end.send(b"payload", packet_type=kind),
        lambda kind: end.send(memoryview(b"payload"), packet_type=kind, transaction_id=7),
        lambda kind: end.send_many([b"payload"], packet_type=kind),
        lambda kind: end.send_many([], packet_type=kind),
        lambda kind: end.send_batch(b"payload", ROW.pack(0, 7, kind, 0, 0, 0)),
        lambda kind: end.claim(7, packet_type=kind),
    ]


@pytest.mark.parametrize("kind", LONG)
def test_types_with_more_in_their_header_are_refused(kind: int, channel: Channel) -> None:
    producer = RingProducer(bytearray(8192))
    for end, tx in ((producer, producer), (channel, channel.tx)):
        for n, way in enumerate(ways(end)):
            if kind == 0 and n == 4:
                continue  # in a batch it stands for 6
            with pytest.raises(ValueError, match=f"type {kind} cannot be sent"):
                way(kind)
        assert tx.state()["write_index"] == 0
        assert end.send(b"and nothing is left open") is not None


@pytest.mark.parametrize("kind", SHORT)
def test_the_others_go_every_way(kind: int, channel: Channel) -> None:
    memory = bytearray(8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory, types=None)
    for end in (producer, channel):
        for way in ways(end):
            made = way(kind)
            if hasattr(made, "commit"):
                made.buffer[:] = b"payload"
                made.commit()
    found = list(consumer)
    assert [(packet.type, packet.payload) for packet in found] == [(kind, b"payload\0")] * 5


def test_a_batch_ends_before_a_row_that_cannot_be_sent() -> None:
    memory = bytearray(8192)
    producer, consumer = RingProducer(memory), RingConsumer(memory, types=None)
    rows = np.zeros(12, descriptor_dtype())
    rows["length"] = 8
    rows["type"][:] = 11
    rows["type"][9] = 9
    assert producer.send_batch(bytes(8), rows) == (9, True)
    assert [packet.type for packet in consumer] == [11] * 9
