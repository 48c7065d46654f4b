# SPDX-License-Identifier: Apache-2.0
"""Packets filled and seen in place through a channel: counted and signalled as all others."""

from __future__ import annotations

import select

import pytest

from hvring.errors import ChannelClosedError, RingError, RingFullError


def readable(channel) -> bool:
    return bool(select.select([channel], [], [], 0)[0])


def test_a_committed_claim_is_a_packet_like_others(pair) -> None:
    guest, host = pair()
    assert host.arm() == 0
    with guest.claim(5, transaction_id=7, packet_type=11) as claim:
        claim.buffer[:] = b"hello"
        assert not readable(host)
    assert claim.signal
    assert readable(host)
    packet = host.recv()
    assert (packet.type, packet.transaction_id, packet.payload) == (11, 7, b"hello\0\0\0")
    assert (guest.stats()["packets_sent"], guest.stats()["bytes_sent"]) == (1, 32)
    assert guest.stats()["signals_sent"] == 1
    with guest.claim(5):
        pass
    assert guest.stats()["signals_sent"] == 2, "the ring was drained"
    with guest.claim(5) as second:
        pass
    assert not second.signal, "the reader has not come round yet"


def test_an_aborted_claim_is_nothing(pair) -> None:
    guest, host = pair()
    with pytest.raises(ZeroDivisionError), guest.claim(5):
        1 / 0  # noqa: B018
    assert guest.stats()["packets_sent"] == guest.stats()["signals_sent"] == 0
    assert host.recv() is None


def test_a_claim_takes_back_the_wish_for_room_and_a_full_ring_refuses(pair) -> None:
    guest, host = pair()
    while guest.tx.free > 1024:
        guest.send(bytes(1000 - 24))
    assert not guest.want_room(2000)
    with pytest.raises(RingFullError):
        guest.claim(2000)
    while host.recv() is not None:
        pass
    with guest.claim(2000):
        pass
    assert guest.wait(0) is False, "nobody waits for room any more"


def test_views_count_what_was_seen_and_wake_a_writer_that_waits(pair) -> None:
    guest, host = pair()
    for n in range(3):
        guest.send(bytes([n]) * 1000)
    assert not guest.want_room(2000)
    seen = [bytes(view)[:1] for view in host.views()]
    assert seen == [b"\0", b"\1", b"\2"]
    stats = host.stats()
    assert (stats["packets_received"], stats["bytes_received"]) == (3, 3 * 1024)
    assert stats["room_signals_sent"] == 1
    assert guest.wait(5), "the room is there"


def test_views_that_are_left_early_give_back_what_was_seen(pair) -> None:
    guest, host = pair()
    for n in range(3):
        guest.send(bytes([n]) * 1000)
    assert not guest.want_room(1500)
    with host.views() as views:
        next(views)
        next(views)
        with pytest.raises(RingError, match="views"):
            host.recv()
    assert host.stats()["packets_received"] == 2
    assert host.stats()["room_signals_sent"] == 1
    assert host.recv_bytes() == b"\2" * 1000
    assert host.recv_bytes() is None
    assert host.stats()["packets_received"] == 3


def test_a_closed_channel_refuses(pair) -> None:
    guest, host = pair()
    guest.send(b"one")
    views = host.views()
    view = next(views)
    held = memoryview(view)
    with pytest.raises(BufferError, match="still held"):
        host.close()
    held.release()
    host.close()
    with pytest.raises(RingError):
        next(views)
    guest.close()
    for use in (guest.recv_bytes, guest.views, lambda: guest.claim(1)):
        with pytest.raises(ChannelClosedError):
            use()
