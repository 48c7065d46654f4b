# SPDX-License-Identifier: Apache-2.0
"""A batch between arrays goes its own fast way, and does what one call per packet does: byte for byte, lies too."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvring.errors import BufferTooSmallError, RingCorruptError, RingFullError
from hvring.ring import RingConsumer, RingProducer

ROW = struct.Struct("<IIHHIQ")
CONTROL = 4096

Row = tuple[int, int, int, int]  # bytes, type (0: data), flags, transaction id
rows = st.lists(
    st.tuples(
        st.integers(0, 90),
        st.sampled_from([0, 6, 6, 6, 10, 11]),
        st.sampled_from([0, 1, 65535]),
        st.integers(0, 2**64 - 1),
    ),
    max_size=40,
)
sizes = st.sampled_from([64, 128, 512, 1024, 4096])


def ring(size: int, start: int) -> bytearray:
    memory = bytearray(CONTROL + size)
    struct.pack_into("<II", memory, 0, start % size & ~7, start % size & ~7)
    return memory


def become(memory: bytearray, number: int, kind: int) -> None:
    """The packet with that number, if there is one, gets a type that cannot be sent."""
    write, at = struct.unpack_from("<II", memory, 0)
    size = len(memory) - CONTROL
    while at != write and number:
        at = (at + struct.unpack_from("<H", memory, CONTROL + at + 4)[0] * 8 + 8) % size
        number -= 1
    if at != write:
        struct.pack_into("<H", memory, CONTROL + at, kind)


def table(sent: list[Row]) -> tuple[bytes, bytes]:
    data, packed = bytearray(), bytearray()
    for n, (length, kind, flags, tid) in enumerate(sent):
        packed += ROW.pack(len(data), length, kind, flags, 0, tid)
        data += bytes([n + 1]) * length
    return bytes(data), bytes(packed)


def send_one_by_one(producer: RingProducer, data: bytes, sent: list[Row]) -> int:
    at = 0
    for n, (length, kind, flags, tid) in enumerate(sent):
        try:
            producer.send(data[at : at + length], transaction_id=tid, packet_type=kind or 6, flags=flags)
        except RingFullError:
            return n
        at += length
    return len(sent)


@given(size=sizes, start=st.integers(0, 4096), sent=rows)
def test_sending(size: int, start: int, sent: list[Row]) -> None:
    single, batch = ring(size, start), ring(size, start)
    data, packed = table(sent)
    sent = [row for row in sent if row[0] + 32 <= size]  # what can never fit is another test's
    data, packed = table(sent)
    expected = send_one_by_one(RingProducer(single), data, sent)
    assert RingProducer(batch).send_batch(data, packed)[0] == expected
    assert batch == single


@given(
    size=sizes,
    start=st.integers(0, 4096),
    sent=rows,
    lie=st.none() | st.tuples(st.integers(0, 4095), st.binary(min_size=1, max_size=8)),
    room=st.integers(0, 4000),
    limit=st.integers(0, 50),
    kinds=st.lists(st.sampled_from([6, 7, 63, 65535]), max_size=10),
)
def test_receiving(
    size: int,
    start: int,
    sent: list[Row],
    lie: tuple[int, bytes] | None,
    room: int,
    limit: int,
    kinds: list[int],
) -> None:
    memory = ring(size, start)
    sent = [row for row in sent if row[0] + 32 <= size]
    data, packed = table(sent)
    RingProducer(memory).send_batch(data, packed)
    for n, kind in enumerate(kinds):
        become(memory, n, kind)
    if lie is not None:
        at = CONTROL + lie[0] % size
        memory[at : at + len(lie[1])] = lie[1][: len(memory) - at]
    single, batch = (RingConsumer(bytearray(memory)) for _ in range(2))
    buffer, found = bytearray(room), bytearray(ROW.size * limit)

    expected, end = [], None
    while len(expected) < limit:
        target = bytearray(room - sum(len(p) for p in expected))
        try:
            length = single.recv_into(target)
        except (RingCorruptError, BufferTooSmallError) as error:
            end = error
            break
        if length is None:
            break
        expected.append(bytes(target[:length]))

    if end is not None and not expected:
        with pytest.raises(type(end), match=re.escape(str(end))):
            batch.recv_batch(buffer, found)
        return
    count = batch.recv_batch(buffer, found)  # what came before a lie is not lost
    got = [ROW.unpack_from(found, ROW.size * n) for n in range(count)]
    assert [bytes(buffer[at : at + length]) for at, length, *_ in got] == expected
    assert batch.skipped == single.skipped
    if end is not None:
        for consumer in (single, batch):
            with pytest.raises(type(end), match=re.escape(str(end))):
                consumer.recv_into(bytearray(room - sum(map(len, expected))))


@given(size=sizes, start=st.integers(0, 4096), sent=rows)
def test_what_the_descriptors_say(size: int, start: int, sent: list[Row]) -> None:
    sent = [row for row in sent if row[0] + 32 <= size]
    data, packed = table(sent)
    memory = ring(size, start)
    count = RingProducer(memory).send_batch(data, packed)[0]
    consumer = RingConsumer(memory, types=None)
    buffer, found = bytearray(8192), bytearray(ROW.size * 50)
    assert consumer.recv_batch(buffer, found) == count
    for n, (length, kind, flags, tid) in enumerate(sent[:count]):
        at, padded, *rest = ROW.unpack_from(found, ROW.size * n)
        assert rest == [kind or 6, flags, 0, tid]
        assert bytes(buffer[at : at + padded]) == (bytes([n + 1]) * length).ljust(padded, b"\0")
