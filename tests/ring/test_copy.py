# SPDX-License-Identifier: Apache-2.0
"""Every way of copying gives the same bytes: sizes around the limits of each, any alignment, split or whole."""

from __future__ import annotations

import random

import pytest

from hvring.ring import RingConsumer, RingProducer

SIZES = [
    0,
    1,
    7,
    8,
    504,
    511,
    512,
    513,
    520,
    543,
    544,
    575,
    640,
    641,
    1000,
    1024,
    2047,
    2112,
    3001,
    4072,
    4096,
    5000,
]


@pytest.mark.parametrize("size", SIZES)
def test_a_payload_arrives_whole_from_anywhere_to_anywhere(size: int) -> None:
    rng = random.Random(size)
    memory = bytearray(4096 + 16384)
    producer, consumer = RingProducer(memory), RingConsumer(memory)
    source, target = bytearray(rng.randbytes(size + 64)), bytearray(size + 80)
    for shift in range(64):
        sent = memoryview(source)[shift : shift + size]
        producer.send(sent)
        target[:] = b"\xa5" * len(target)
        into = memoryview(target)[shift % 8 : shift % 8 + (size + 7) // 8 * 8]
        assert consumer.recv_into(into) == (size + 7) // 8 * 8
        assert into[:size] == sent
        assert not any(into[size:])
        assert target[: shift % 8] == b"\xa5" * (shift % 8), "nothing before"
        assert set(target[shift % 8 + len(into) :]) == {0xA5}, "nothing behind"
        into.release()
        sent.release()
        producer.send(bytes(shift * 8))  # the next one begins somewhere else
        consumer.recv()


@pytest.mark.parametrize("payload", [b"as bytes", bytearray(b"as bytearray"), memoryview(b"as memoryview!")])
def test_a_payload_may_be_any_buffer(payload, ends) -> None:
    _, producer, consumer = ends()
    assert producer.send(payload) is True
    assert producer.send(payload, transaction_id=3, flags=1) is False
    target = bytearray(16)
    assert consumer.recv_into(target) == (len(payload) + 7) // 8 * 8
    assert target.rstrip(b"\0") == bytes(payload)
    second = consumer.recv()
    assert (second.transaction_id, second.flags, second.payload.rstrip(b"\0")) == (3, 1, bytes(payload))


def test_send_takes_one_payload_and_keywords_only(ends) -> None:
    _, producer, consumer = ends()
    for wrong in ((), (b"a", 1), ("text",), (None,)):
        with pytest.raises(TypeError):
            producer.send(*wrong)
    with pytest.raises(TypeError):
        producer.send(b"a", unknown=1)
    for wrong in ((), (bytearray(8), 1), (b"read-only",), (None,)):
        with pytest.raises((TypeError, BufferError)):
            consumer.recv_into(*wrong)
    assert consumer.recv() is None


def test_lengths_that_come_and_go_are_told_right(ends) -> None:
    _, producer, consumer = ends()
    target = bytearray(2000)
    for n in (0, 8, 8, 1600, 1600, 0, 264):
        producer.send(bytes(n))
        assert consumer.recv_into(target) == n
