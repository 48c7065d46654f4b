# SPDX-License-Identifier: Apache-2.0
"""Channels in one process: order of things, wake-ups, ends (PROTOCOL §1.8, §2.6-2.8)."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import struct
import sys
import threading

import numpy as np
import pytest

from hvring import Channel, ChannelClosedError, ChannelRescindedError
from hvring.channel import EventfdDoorbell
from hvring.errors import BufferTooSmallError, PacketTooLargeError, RingCorruptError, RingFullError
from hvring.vmbus.arrays import descriptor_dtype


def readable(channel: Channel) -> bool:
    return bool(select.select([channel], [], [], 0)[0])


def test_there_and_back(pair) -> None:
    guest, host = pair()
    assert guest.send(b"question", transaction_id=7, flags=1) is True
    packet = host.recv()
    assert (packet.payload, packet.transaction_id, packet.flags, packet.type) == (b"question", 7, 1, 6)
    host.send(b"answer", transaction_id=7)
    assert guest.wait(10) is True
    assert guest.recv().payload == b"answer\0\0"
    assert guest.recv() is None
    assert list(host) == []


def test_waiting_ends_by_a_packet_from_another_thread(pair) -> None:
    guest, host = pair()
    waiting = threading.Event()

    def answer() -> None:
        waiting.wait()
        host.send(b"late")

    thread = threading.Thread(target=answer)
    thread.start()
    waiting.set()
    assert guest.wait() is True
    thread.join()
    assert guest.recv() is not None


def test_waiting_ends_by_the_clock(pair) -> None:
    guest, _ = pair()
    assert guest.wait(0) is False
    assert guest.wait(0.01) is False


def test_a_signal_handler_runs_while_waiting(pair) -> None:
    class Interrupt(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Interrupt

    guest, _ = pair()
    old = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Interrupt):
            guest.wait(30)
    finally:
        signal.signal(signal.SIGALRM, old)


def test_no_signal_is_sent_while_the_other_side_drains(pair) -> None:
    guest, host = pair()
    host.send(b"1")
    assert guest.wait(10)
    for _ in range(5):
        assert host.send(b"2") is False, "masked since wait() returned"
        while guest.recv() is not None:
            pass
    assert guest.arm() == 0
    assert host.send(b"3") is True
    assert host.stats()["signals_sent"] == 2


def test_an_event_loop_that_arms_before_it_sleeps_misses_nothing(pair) -> None:
    guest, host = pair()
    assert not readable(guest)
    host.send(b"1")
    assert readable(guest)
    guest.mask()
    assert guest.recv() is not None
    host.send(b"2")  # masked: no signal, but the event of the first is still there
    assert guest.arm() == 32
    assert not readable(guest)
    assert guest.recv() is not None
    assert guest.arm() == 0
    host.send(b"3")
    assert readable(guest)


def test_a_full_ring_says_so_or_waits_as_asked(pair) -> None:
    guest, host = pair()
    while True:
        try:
            guest.send(bytes(1000))
        except RingFullError:
            break
    with pytest.raises(RingFullError, match=r"0\.01 s"):
        guest.send(bytes(1000), timeout=0.01)
    with pytest.raises(PacketTooLargeError):
        guest.send(bytes(9000), timeout=None)

    drained: list[int] = []

    def drain() -> None:
        while len(drained) < 20:
            host.wait()
            for packet in host:
                drained.append(packet.transaction_id)

    thread = threading.Thread(target=drain)
    thread.start()
    for n in range(100, 120):
        guest.send(bytes(1000), transaction_id=n, timeout=None)
    thread.join()
    while (packet := host.recv()) is not None:
        drained.append(packet.transaction_id)
    assert drained == [0] * 3 + list(range(100, 120))
    assert guest.stats()["ring_full"] > 0


def test_a_writer_that_waits_is_woken_by_the_reader_not_by_the_clock(pair) -> None:
    guest, host = pair()
    for _ in range(3):
        guest.send(bytes(1000))
    assert guest.want_room(1000) is False
    assert not readable(guest)
    host.recv()
    assert readable(guest)
    assert host.stats()["room_signals_sent"] == 1
    assert guest.wait(10) is True, "ends by the room that was asked for"
    guest.send(bytes(1000))
    assert guest.wait(0) is False
    host.recv()
    assert guest.want_room(1000) is True


@pytest.mark.parametrize("use", ["wait", "send", "arm"])
def test_the_end_of_the_other_side_is_noticed(use: str, pair) -> None:
    guest, host = pair()
    host.close()
    assert readable(guest)
    with pytest.raises(ChannelRescindedError, match="wait for a new offer"):
        {"wait": lambda: guest.wait(10), "send": lambda: guest.send(b"x"), "arm": guest.arm}[use]()
    assert guest.rescinded
    with pytest.raises(ChannelRescindedError):
        guest.send(b"x")


def test_a_sender_that_is_never_asked_to_signal_notices_too(pair) -> None:
    guest, host = pair(1 << 20)
    host.mask()
    host.close()
    with pytest.raises(ChannelRescindedError):
        for _ in range(65):
            guest.send(b"x")


def test_what_came_before_the_end_is_still_read(pair) -> None:
    guest, host = pair()
    host.send(b"last words")
    host.close()
    assert guest.wait(10) is True
    assert guest.recv().payload.rstrip(b"\0") == b"last words"
    with pytest.raises(ChannelRescindedError):
        guest.wait(10)


def test_closed_is_closed(pair) -> None:
    guest, _ = pair()
    with guest:
        pass
    guest.close()
    assert guest.closed
    for use in (guest.recv, guest.wait, guest.arm, guest.fileno, guest.mask, lambda: guest.send(b"")):
        with pytest.raises(ChannelClosedError):
            use()


def test_close_waits_for_views_and_tells_its_owner_once(pair) -> None:
    guest, _ = pair()
    claim = guest.tx.claim(8)
    with pytest.raises(BufferError):
        guest.close()
    claim.abort()
    guest.close()


def test_descriptors_are_not_leaked(pair) -> None:
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    guest, host = pair()
    guest.fileno()
    guest.close()
    host.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_ring_that_is_refused_leaks_no_descriptors() -> None:
    gc.collect()  # what earlier tests left
    before = len(os.listdir("/proc/self/fd"))
    memory = bytearray(4 * 8192)
    struct.pack_into("<I", memory, 8192, 3)  # an impossible write_index
    for _ in range(3):
        doorbell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
        with pytest.raises(RingCorruptError):
            Channel(
                memory, ring_size=8192, tx_offset=0, rx_offset=8192, doorbell=doorbell, lifeline=os.dup(0)
            )
        del doorbell
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_recv_into_and_its_limits(pair) -> None:
    guest, host = pair()
    guest.send(bytes(range(24)))
    with pytest.raises(BufferTooSmallError):
        host.recv_into(bytearray(16))
    buffer = bytearray(64)
    assert host.recv_into(buffer) == 24
    assert bytes(buffer[:24]) == bytes(range(24))
    assert host.recv_into(buffer) is None


def test_a_batch_lands_in_arrays(pair) -> None:
    guest, host = pair()
    sent = [bytes([n]) * (n % 50) for n in range(40)]
    assert guest.send_many(sent, transaction_id=100) == 40
    data = np.zeros(8192, np.uint8)
    rows = np.zeros(64, descriptor_dtype())
    assert rows.dtype.itemsize == 24
    assert host.recv_batch(data, rows) == 40
    assert host.recv_batch(data, rows[40:]) == 0
    for n, row in enumerate(rows[:40]):
        start, length = int(row["offset"]), int(row["length"])
        assert bytes(data[start : start + length]).rstrip(b"\0") == sent[n].rstrip(b"\0")
        assert (row["type"], row["flags"], row["transaction_id"]) == (6, 0, 100 + n)
    assert host.stats()["packets_received"] == 40


def test_a_batch_stops_where_the_arrays_end_and_loses_nothing(pair) -> None:
    guest, host = pair()
    guest.send_many([bytes(40)] * 10)
    rows = np.zeros(4, descriptor_dtype())
    assert host.recv_batch(np.zeros(1000, np.uint8), rows) == 4
    assert host.recv_batch(np.zeros(100, np.uint8), rows) == 2
    with pytest.raises(BufferTooSmallError):
        host.recv_batch(np.zeros(39, np.uint8), rows)
    with pytest.raises(ValueError, match="descriptor_dtype"):
        host.recv_batch(np.zeros(100, np.uint8), np.zeros(4, np.uint8))
    assert host.recv_batch(bytearray(4000), bytearray(24 * 8)) == 4


def test_the_eventfd_of_a_host_that_blocks_stays_blocking() -> None:
    ours, theirs = os.eventfd(0), os.eventfd(0)
    EventfdDoorbell(os.dup(theirs), os.dup(ours))
    assert os.get_blocking(theirs)
    os.close(ours)
    os.close(theirs)


def test_a_counter_that_the_other_side_filled_does_not_hold_a_sender(pair) -> None:
    guest, _ = pair()
    # the guest's signal descriptor is the second newest eventfd; fill every eventfd's counter
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "anon_inode:[eventfd]":
                os.set_blocking(int(name), False)
                os.write(int(name), struct.pack("<Q", 2**64 - 2))
                os.set_blocking(int(name), True)  # shared by both sides, and not to be relied on
        except OSError:
            continue
    guest.send(b"x")


def test_an_asyncio_reader_sees_every_packet(pair) -> None:
    guest, host = pair()

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        seen: list[int] = []

        def ready() -> None:
            while True:
                seen.extend(packet.transaction_id for packet in guest)
                if not guest.arm():
                    break
            if len(seen) == 500:
                done.set_result(None)

        loop.add_reader(guest, ready)
        sender = threading.Thread(
            target=lambda: [host.send(bytes(100), transaction_id=n, timeout=None) for n in range(500)]
        )
        sender.start()
        await asyncio.wait_for(done, 30)
        loop.remove_reader(guest)
        sender.join()
        return seen

    assert asyncio.run(main()) == list(range(500))


def test_importing_hvring_brings_no_numpy_and_no_asyncio() -> None:
    import subprocess

    code = "import sys, hvring; print([m for m in ('numpy', 'asyncio', 'ctypes') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
