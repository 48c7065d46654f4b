# SPDX-License-Identifier: Apache-2.0
"""A closed end leaves the memory alone, whatever was taken from it before: by then it may be unmapped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hvring.errors import RingError
from hvring.ring import RingProducer


def test_a_view_shows_nothing_once_the_ring_is_closed(ends) -> None:
    _, producer, consumer = ends()
    producer.send(bytes(64))
    views = consumer.views()
    view = next(views)
    consumer.close()
    with pytest.raises(BufferError, match="closed"):
        memoryview(view)
    with pytest.raises(BufferError):
        _ = view.payload


def test_what_a_memoryview_was_made_of_gives_out_no_other_one_after_the_commit(ends) -> None:
    _, producer, _ = ends()
    claim = producer.claim(64)
    behind = claim.buffer.obj
    claim.commit()
    with pytest.raises(BufferError):
        memoryview(behind)
    with pytest.raises(BufferError):
        memoryview(type(behind)())


@pytest.mark.parametrize("read", ["recv_many", "recv_payloads", "recv_batch"])
def test_a_closed_consumer_gives_nothing_back(read: str, ends) -> None:
    memory, producer, consumer = ends()
    for _ in range(3):
        producer.send(bytes(64))
    views = consumer.views()
    next(views)
    next(views)  # one packet is stepped over and its room not given back
    consumer.close()
    del views
    before = bytes(memory)
    try:
        if read == "recv_batch":
            consumer.recv_batch(bytearray(128), bytearray(0))
        else:
            getattr(consumer, read)(0)
    except RingError:
        pass
    assert memory == before


def test_payloads_that_close_the_ring_are_not_published(ends) -> None:
    memory, producer, _ = ends()
    written = []

    def payloads() -> Iterator[bytes]:
        yield b"one"
        producer.close()
        written.append(bytes(memory))

    with pytest.raises(RingError, match="closed"):
        producer.send_many(payloads())
    assert written == [memory]


@pytest.mark.parametrize("control_size", [2**63 - 8, 2**63 - 64, 2**62])
def test_a_control_page_that_overflows_is_refused(control_size: int) -> None:
    with pytest.raises(ValueError, match="control page"):
        RingProducer(bytearray(8192), control_size=control_size)
