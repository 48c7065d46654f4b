# SPDX-License-Identifier: Apache-2.0
"""Waits end when they should, whatever the other side does to the doorbell; its end takes no packets away."""

from __future__ import annotations

import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell
from hvring.errors import ChannelClosedError, ChannelRescindedError, RingFullError
from hvring.vmbus.arrays import descriptor_dtype

RING = 8192


class Interrupted(Exception):
    pass


@pytest.fixture
def alarm() -> Iterator[None]:
    """A signal after a moment whose handler raises Interrupted."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def ringing() -> Iterator[Channel]:
    """A channel whose doorbell cannot be silenced: each look takes one of 2^62 rings."""
    bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
    os.eventfd_write(bell, 1 << 62)
    with Channel(
        mmap.mmap(-1, 2 * RING),
        ring_size=RING,
        tx_offset=0,
        rx_offset=RING,
        doorbell=EventfdDoorbell(os.eventfd(0), bell),
    ) as channel:
        yield channel


def test_a_doorbell_that_never_stops_keeps_nobody_beyond_the_time(ringing: Channel, alarm: None) -> None:
    assert not ringing.wait(0.01)


def test_a_doorbell_that_never_stops_holds_no_signals_back(ringing: Channel, alarm: None) -> None:
    with pytest.raises(Interrupted):
        ringing.wait()


def test_nor_from_a_sender_without_room(ringing: Channel, alarm: None) -> None:
    with pytest.raises(Interrupted):
        while True:
            ringing.send(bytes(1000), timeout=None)


def test_a_time_that_is_over_long_since_is_not_for_ever(pair, alarm: None) -> None:
    guest, _ = pair()
    assert not guest.wait(-1e9)
    with pytest.raises(RingFullError):
        while True:
            guest.send(bytes(1000), timeout=-1e9)


def test_closing_from_another_thread_ends_a_sleep(pair) -> None:
    guest, host = pair()

    ended: list[Exception] = []

    def sleep() -> None:
        try:
            guest.wait()
        except ChannelClosedError as error:
            ended.append(error)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    while guest.stats()["waits"] == 0:  # counted just before the sleep, which lets others run
        pass
    guest.close()
    thread.join(10)
    assert ended
    with pytest.raises(ChannelRescindedError):
        host.wait(60)


def test_who_asked_and_left_is_known_to_be_gone_by_the_answer(pair) -> None:
    """A sleeper that is stopped meanwhile sees the ring of the bell and the end in one look."""
    guest, host = pair()
    child = os.fork()
    if child == 0:
        host.close()
        guest.wait()
        try:
            guest.send(b"answer")
        except ChannelRescindedError:
            os._exit(3)
        os._exit(4)
    while Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0] != "S":
        pass
    os.kill(child, signal.SIGSTOP)
    os.waitpid(child, os.WUNTRACED)
    guest.close()
    host.send(b"question")
    host.close()
    os.kill(child, signal.SIGCONT)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3


@pytest.mark.parametrize("way", ["recv", "recv_bytes", "recv_into", "recv_batch", "views"])
def test_the_end_of_a_writer_that_waited_for_room_takes_no_packet_away(
    way: str, pair: Callable[..., tuple[Channel, Channel]]
) -> None:
    guest, host = pair()
    for n in range(3):
        host.send(bytes([n]) * 1000)
    assert not host.want_room(3000)
    host.close()
    into = bytearray(1000)
    if way == "views":
        found = [bytes(view)[0] for view in guest.views()]
    elif way == "recv_batch":
        table = np.zeros(8, descriptor_dtype())
        data = np.zeros(RING, np.uint8)
        count = guest.recv_batch(data, table)
        found = [int(data[offset]) for offset in table["offset"][:count]]
    elif way == "recv_into":
        found = []
        while guest.recv_into(into) is not None:
            found.append(into[0])
    elif way == "recv_bytes":
        found = [payload[0] for payload in iter(guest.recv_bytes, None)]
    else:
        found = [packet.payload[0] for packet in guest]
    assert found == [0, 1, 2]
    with pytest.raises(ChannelRescindedError):
        guest.wait(60)
