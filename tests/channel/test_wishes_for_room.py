# SPDX-License-Identifier: Apache-2.0
"""A wish for room is one thing: whoever asked is woken, whatever else is sent, armed or given up meanwhile."""

from __future__ import annotations

import mmap
import os
import select
import struct
import threading

import numpy as np
import pytest

from hvring import Channel, PacketTooLargeError, RingFullError
from hvring.channel import ROOM_RECHECK, EventfdDoorbell
from hvring.vmbus.arrays import descriptor_dtype

PENDING = 12  # offset of pending_send_sz in a ring's control page
RING = 8192


def readable(channel: Channel) -> bool:
    return bool(select.select([channel], [], [], 0)[0])


def fill(channel: Channel, size: int = 200) -> None:
    try:
        while True:
            channel.send(bytes(size))
    except RingFullError:
        pass


def drain(channel: Channel) -> None:
    for _ in channel:
        pass


def wish(channel: Channel) -> int:
    return channel.tx.state()["pending_send_sz"]


def test_arming_sees_room_whose_signal_it_takes(pair) -> None:
    guest, host = pair()
    fill(guest)
    assert not guest.want_room(1000)
    assert guest.arm() == 0, "no room yet"
    assert guest.wants_room
    drain(host)  # makes the room, and signals
    assert readable(guest)
    assert guest.arm() > 0
    assert not guest.wants_room
    assert wish(guest) == 0
    guest.send(bytes(1000))
    assert guest.arm() == 0, "told once"


def test_arming_says_so_too_when_there_is_something_to_read(pair) -> None:
    guest, host = pair()
    fill(guest)
    host.send(b"to be read")
    assert not guest.want_room(1000)
    assert guest.arm() > 0
    assert guest.wants_room, "what can be read is not the room"
    drain(host)
    assert guest.arm() > 0
    assert not guest.wants_room


@pytest.mark.parametrize("timeout", [0.0, 0.01])
def test_a_send_that_gives_up_leaves_an_earlier_wish_alone(timeout: float, pair) -> None:
    guest, host = pair()
    fill(guest)
    assert not guest.want_room(1000)
    before = wish(guest)
    with pytest.raises(RingFullError):
        guest.send(bytes(2000), timeout=timeout)
    assert wish(guest) == before > 0
    assert guest.arm() == 0
    drain(host)
    assert readable(guest)
    assert guest.arm() > 0


def test_a_send_that_waited_and_succeeded_leaves_a_larger_wish_alone(pair) -> None:
    guest, host = pair()
    fill(guest)
    assert not guest.want_room(3000)
    thread = threading.Thread(target=host.recv_bytes)
    thread.start()
    guest.send(bytes(100), timeout=None)
    thread.join()
    assert guest.wants_room
    assert guest.arm() == 0
    drain(host)
    assert readable(guest)
    assert guest.arm() > 0


@pytest.mark.parametrize("way", ["send", "send_many", "send_batch", "claim"])
def test_smaller_packets_leave_a_wish_alone_and_as_large_ones_fulfil_it(way: str, pair) -> None:
    guest, host = pair()

    def send(size: int) -> None:
        if way == "send":
            guest.send(bytes(size))
        elif way == "send_many":
            assert guest.send_many([bytes(size)]) == 1
        elif way == "send_batch":
            rows = np.zeros(1, descriptor_dtype())
            rows["length"] = size
            assert guest.send_batch(bytes(size), rows) == 1
        else:
            with guest.claim(size):
                pass

    while guest.tx.free > 600:
        guest.send(bytes(200))
    assert not guest.want_room(1000)
    send(8)
    assert guest.wants_room
    assert wish(guest) > 0
    assert guest.arm() == 0
    drain(host)
    assert guest.wants_room, "not looked yet"
    send(1000)
    assert not guest.wants_room
    assert wish(guest) == 0


def test_room_that_was_there_and_was_used_up_is_asked_for_again(pair) -> None:
    """want_room() said yes, so it took its request back; who ignores that, sends and sleeps is woken all the same."""
    guest, host = pair()
    while not guest.want_room(1000):
        pass
    fill(guest, 100)
    assert guest.arm() == 0
    assert wish(guest) > 0
    drain(host)
    assert readable(guest)
    assert guest.arm() > 0


def test_a_wish_can_be_taken_back(pair) -> None:
    guest, host = pair()
    fill(guest)
    assert not guest.want_room(1000)
    guest.unwant_room()
    assert not guest.wants_room
    assert wish(guest) == 0
    drain(host)
    assert not readable(guest)
    assert guest.arm() == 0
    fill(guest)
    assert not guest.tx.want_room(1000)
    guest.tx.unwant_room()
    assert wish(guest) == 0


def test_a_host_that_forgets_to_wake_a_writer_is_not_waited_for_for_ever(pair) -> None:
    """QEMU, once it has drained everything (PROTOCOL §8); here the reader moves its index, and that is all."""
    memory = mmap.mmap(-1, 2 * RING)
    with Channel(
        memory,
        ring_size=RING,
        tx_offset=0,
        rx_offset=RING,
        doorbell=EventfdDoorbell(os.eventfd(0), os.eventfd(0)),
    ) as channel:
        for use in (lambda: channel.wait(60), lambda: channel.send(bytes(1000), timeout=60)):
            fill(channel)
            if not channel.want_room(1000):
                pass
            waits = channel.stats()["waits"]

            def forget() -> None:
                memory[4:8] = memory[0:4]

            timer = threading.Timer(ROOM_RECHECK / 2, forget)
            timer.start()
            use()
            timer.join()
            assert channel.stats()["waits"] <= waits + 60 / ROOM_RECHECK / 2, (
                "found by looking, not by the end"
            )
            assert struct.unpack_from("<I", memory, PENDING)[0] == 0
            channel.unwant_room()


def test_a_payload_that_grows_while_it_waits_is_refused_once_it_can_never_fit(pair) -> None:
    guest, _ = pair()
    fill(guest)
    payload = bytearray(1000)
    threading.Timer(ROOM_RECHECK, payload.extend, [bytes(9000)]).start()
    with pytest.raises(PacketTooLargeError):
        guest.send(payload, timeout=60)
