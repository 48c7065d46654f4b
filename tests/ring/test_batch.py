# SPDX-License-Identifier: Apache-2.0
"""Many packets in one call: from one buffer, into one buffer, as a list of bytes (PROTOCOL §2.6-2.7)."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from hvring.errors import BufferTooSmallError, PacketTooLargeError, RingCorruptError, RingError
from hvring.vmbus.arrays import descriptor_dtype

ROW = struct.Struct("<IIHHIQ")


def rows_of(payloads: list[bytes], kind: int = 0) -> tuple[bytes, bytes]:
    """The payloads behind one another, and their descriptors."""
    rows, at = b"", 0
    for n, payload in enumerate(payloads):
        rows += ROW.pack(at, len(payload), kind, n & 1, 0, 100 + n)
        at += len(payload)
    return b"".join(payloads), rows


def test_a_batch_from_one_buffer_is_what_single_sends_write(ends) -> None:
    one, single, _ = ends(4096, 3000)
    other, producer, consumer = ends(4096, 3000)
    payloads = [bytes([n]) * (n * 7 % 130) for n in range(1, 30)]
    for n, payload in enumerate(payloads):
        single.send(payload, transaction_id=100 + n, flags=n & 1)
    assert producer.send_batch(*rows_of(payloads)) == (len(payloads), True)
    assert one == other
    assert [p.payload.rstrip(b"\0") for p in consumer] == payloads


def test_a_batch_goes_from_arrays_to_arrays(ends) -> None:
    _, producer, consumer = ends(8192, types=None)
    data = np.arange(1000, dtype=np.uint8)
    rows = np.zeros(5, descriptor_dtype())
    rows["offset"] = [0, 8, 16, 500, 992]
    rows["length"] = 8
    rows["type"] = 10
    rows["transaction_id"] = np.uint64(2**64 - 1) - np.arange(5, dtype=np.uint64)
    assert producer.send_batch(data, rows) == (5, True)
    out, found = np.zeros(64, np.uint8), np.zeros(8, descriptor_dtype())
    assert consumer.recv_batch(out, found) == 5
    assert list(found["transaction_id"][:5]) == list(rows["transaction_id"])
    assert list(found["offset"][:5]) == [0, 8, 16, 24, 32]
    assert bytes(out[24:32]) == bytes(data[500:508])
    assert producer.send_batch(out, found[:5])[0] == 5, "what was received can be sent again as it is"


def test_a_large_batch_is_shown_by_quarters_and_any_of_them_may_need_the_signal(ends) -> None:
    memory, producer, consumer = ends(1024)
    buffer, rows = rows_of([bytes(40)] * 100)
    assert producer.send_batch(buffer, rows) == (15, True), (
        "the reader slept when the first quarter was shown"
    )
    assert len(consumer.recv_many(100)) == 15
    assert producer.send_batch(buffer, rows[: 4 * ROW.size]) == (4, True)
    assert producer.send_batch(buffer, rows[: 5 * ROW.size]) == (5, False), "the reader has not read since"
    consumer.recv_many(100)
    consumer.mask()
    assert producer.send_batch(buffer, rows) == (15, False)
    assert struct.unpack_from("<II", memory)[0] != 0


def test_a_full_ring_takes_what_fits(ends) -> None:
    _, producer, consumer = ends(256)
    buffer, rows = rows_of([bytes(40)] * 9)
    assert producer.send_batch(buffer, rows) == (3, True)
    assert producer.send_batch(buffer, rows) == (0, False)
    assert len(consumer.recv_payloads()) == 3
    assert producer.send_batch(buffer, b"") == (0, False)


def test_a_row_that_is_wrong_ends_the_batch_and_is_named_when_it_is_the_first(ends) -> None:
    memory, producer, consumer = ends(256)
    rows = [
        ROW.pack(0, 8, 6, 0, 0, 1),
        ROW.pack(4, 8, 6, 0, 0, 2),
        ROW.pack(2**32 - 1, 2**32 - 1, 6, 0, 0, 3),
    ]
    with pytest.raises(ValueError, match="the buffer at 10"):
        producer.send_batch(bytes(10), b"".join(rows[1:]))
    assert memory[:8] == bytes(8)
    assert producer.send_batch(bytes(10), b"".join(rows)) == (1, True)
    with pytest.raises(ValueError, match="the first payload ends at"):
        producer.send_batch(bytes(10), rows[2])
    with pytest.raises(PacketTooLargeError):
        producer.send_batch(bytes(300), ROW.pack(0, 300, 6, 0, 0, 1))
    with pytest.raises(ValueError, match="descriptor_dtype"):
        producer.send_batch(bytes(300), bytes(23))
    with pytest.raises(TypeError):
        producer.send_batch("text", rows[0])
    assert len(consumer.recv_payloads()) == 1


def test_a_claim_and_a_closed_ring_refuse_a_batch(ends) -> None:
    _, producer, consumer = ends(256)
    with producer.claim(8), pytest.raises(RingError, match="claim"):
        producer.send_batch(b"", b"")
    producer.close()
    consumer.close()
    for use in (
        lambda: producer.send_batch(b"", b""),
        lambda: consumer.recv_batch(bytearray(8), bytearray(24)),
    ):
        with pytest.raises(RingError, match="closed"):
            use()


def test_a_list_of_bytes(ends) -> None:
    _, producer, consumer = ends(256)
    producer.send_many([b"a" * 8, b"b" * 16, b"c"])
    assert consumer.recv_payloads(2) == [b"a" * 8, b"b" * 16]
    assert consumer.recv_payloads() == [b"c" + bytes(7)]
    assert consumer.recv_payloads() == []


def test_receiving_a_batch_wakes_a_writer_that_waits(ends) -> None:
    for receive in ("recv_many", "recv_payloads", "recv_batch"):
        _, producer, consumer = ends(256)
        producer.send_many([bytes(40)] * 3)
        assert producer.want_room(100) is False
        arguments = (bytearray(256), bytearray(96)) if receive == "recv_batch" else ()
        getattr(consumer, receive)(*arguments)
        assert consumer.take_signal() is True, receive


def test_room_is_given_back_while_a_long_batch_is_read(ends) -> None:
    _, producer, consumer = ends(1024)
    producer.send_many([bytes(40)] * 15)
    producer.want_room(600)
    consumer.recv_batch(bytearray(4096), bytearray(13 * 24))
    assert consumer.take_signal() is True
    assert producer.free == 1024 - 2 * 64


@pytest.mark.parametrize("receive", ["recv_many", "recv_payloads", "recv_batch"])
def test_what_came_before_a_lie_is_delivered_first(receive: str, ends) -> None:
    memory, producer, consumer = ends(1024)
    producer.send_many([bytes(40)] * 3)
    struct.pack_into("<H", memory, 4096 + 2 * 64 + 2, 1)
    arguments = (bytearray(256), bytearray(96)) if receive == "recv_batch" else ()
    got = getattr(consumer, receive)(*arguments)
    assert (got if isinstance(got, int) else len(got)) == 2
    with pytest.raises(RingCorruptError) as caught:
        getattr(consumer, receive)(*arguments)
    assert caught.value.lie == "offset8"
    assert producer.free == 1024 - 64


def test_a_batch_that_does_not_fit_the_buffer_stays(ends) -> None:
    _, producer, consumer = ends(1024)
    producer.send_many([bytes(40)] * 3)
    with pytest.raises(BufferTooSmallError):
        consumer.recv_batch(bytearray(39), bytearray(96))
    assert consumer.recv_batch(bytearray(80), bytearray(96)) == 2
    with pytest.raises(ValueError, match="descriptor_dtype"):
        consumer.recv_batch(bytearray(80), bytearray(95))
    assert consumer.recv_batch(bytearray(80), bytearray(96)) == 1
