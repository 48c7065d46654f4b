# SPDX-License-Identifier: Apache-2.0
"""The doorbells of uio, with a socket that speaks the kernel's four bytes in place of /dev/uioN (PROTOCOL §1.8)."""

from __future__ import annotations

import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from hvring import Channel, ChannelRescindedError
from hvring.channel import EventfdDoorbell, MonitorDoorbell, UioDoorbell
from hvring.errors import RingFullError

RING = 8192
MASK = 8  # offset of interrupt_mask


class Kernel:
    """The other end of the descriptor: counts interrupts as uio does, and takes what is written."""

    def __init__(self, count: int) -> None:
        self.socket, self.user = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.setblocking(False)
        self.count = count

    def interrupt(self, times: int = 1) -> None:
        self.count = (self.count + times) & 0xFFFFFFFF
        self.socket.send(struct.pack("=I", self.count))

    def written(self) -> list[bytes]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(64))
            except BlockingIOError:
                return found


class Uio:
    """A guest's channel over such a descriptor, the kernel, and the host's end of the rings."""

    def __init__(self, monitored: bool, count: int, recheck_every: float) -> None:
        self.memory = mmap.mmap(-1, 2 * RING)
        self.kernel = Kernel(count)
        self.interrupts, self.monitor = mmap.mmap(-1, 4096), mmap.mmap(-1, 4096)
        descriptor = self.kernel.user.detach()
        self.guest = Channel(
            self.memory,
            ring_size=RING,
            tx_offset=0,
            rx_offset=RING,
            doorbell=MonitorDoorbell(descriptor, self.interrupts, self.monitor, 37, 70)
            if monitored
            else UioDoorbell(descriptor),
            name="kvp",
            recheck_every=recheck_every,
        )
        self.host = Channel(
            self.memory,
            ring_size=RING,
            tx_offset=RING,
            rx_offset=0,
            doorbell=EventfdDoorbell(os.eventfd(0), os.eventfd(0)),
        )

    def send(self, payload: bytes) -> None:
        """As the host does: the packet, and an interrupt if one is due."""
        if self.host.send(payload):
            self.kernel.interrupt()

    @property
    def masked(self) -> bool:
        return self.memory[RING + MASK] != 0


@pytest.fixture
def uio() -> Iterator[Callable[..., Uio]]:
    made: list[Uio] = []

    def make(monitored: bool = False, count: int = 5, recheck_every: float = 0.0) -> Uio:
        made.append(Uio(monitored, count, recheck_every))
        return made[-1]

    yield make
    for one in made:
        one.guest.close()
        one.host.close()
        one.kernel.socket.close()


def test_a_signal_is_four_bytes_that_say_one(uio) -> None:
    one = uio()
    assert one.guest.send(b"answer") is True
    assert one.kernel.written() == [struct.pack("=i", 1)]
    assert one.host.recv().payload == b"answer\0\0"


def test_a_signal_that_unmasks_is_followed_by_the_mask_that_was_wanted(uio) -> None:
    one = uio()
    one.guest.mask()
    one.memory[RING + MASK] = 0  # what the kernel does in write(fd, 1), whenever that is
    one.guest.send(b"answer")
    assert one.masked
    assert one.guest.arm() == 0
    assert not one.masked
    one.host.recv()
    one.guest.send(b"answer")
    assert not one.masked


def test_waiting_ends_by_an_interrupt_and_arming_makes_the_descriptor_quiet(uio) -> None:
    one = uio()
    threading.Timer(0.01, one.send, [b"late"]).start()
    assert one.guest.wait(30) is True
    assert one.guest.recv().payload == b"late\0\0\0\0"
    assert one.guest.arm() == 0
    assert not select.select([one.guest], [], [], 0)[0]
    one.send(b"next")
    assert select.select([one.guest], [], [], 0)[0]
    assert one.guest.arm() == 32


@pytest.mark.parametrize("before", [5, 0x7FFFFFFF, 0xFFFFFFFE])
def test_the_kernels_count_becomes_the_number_of_interrupts(uio, before: int) -> None:
    one = uio(count=before)
    one.kernel.interrupt()  # the first look: what was before the opening is not ours
    one.guest.arm()
    assert one.guest.stats()["signals_received"] == 1
    one.kernel.interrupt(3)
    one.guest.arm()
    assert one.guest.stats()["signals_received"] == 4
    one.guest.arm()
    assert one.guest.stats()["signals_received"] == 4


def test_a_device_that_is_taken_away_ends_a_wait(uio) -> None:
    one = uio()
    threading.Timer(0.01, one.kernel.socket.close).start()
    with pytest.raises(ChannelRescindedError, match="kvp"):
        one.guest.wait(30)
    with pytest.raises(ChannelRescindedError):
        one.guest.send(b"answer")


def _send_often(channel: Channel) -> None:
    for _ in range(100):
        channel.send(b"")


@pytest.mark.parametrize(
    ("act", "monitored"),
    [
        (lambda channel: channel.send(b"answer"), False),
        (lambda channel: channel.send_many([b"1", b"2"]), False),
        (lambda channel: channel.arm(), False),
        (lambda channel: channel.arm(), True),
        (lambda channel: channel.wait(0), False),
        (lambda channel: channel.wait(0), True),
        (_send_often, True),  # a bit in memory has nobody to say so
    ],
)
def test_a_device_that_is_taken_away_is_noticed_by_whatever_is_done_next(
    uio, act: Callable[[Channel], object], monitored: bool
) -> None:
    one = uio(monitored)
    one.kernel.socket.close()
    with pytest.raises(ChannelRescindedError):
        act(one.guest)
    assert one.guest.rescinded


def test_a_sender_that_waits_for_room_notices_that_the_device_is_gone(uio) -> None:
    one = uio()
    with pytest.raises(RingFullError):
        while True:
            one.guest.send(bytes(1000))
    threading.Timer(0.01, one.kernel.socket.close).start()
    with pytest.raises(ChannelRescindedError):
        one.guest.send(bytes(1000), timeout=30)


def test_what_came_before_the_end_can_still_be_read(uio) -> None:
    one = uio()
    one.send(b"last")
    one.kernel.socket.close()
    assert one.guest.wait(0) is True
    assert one.guest.recv().payload == b"last\0\0\0\0"
    with pytest.raises(ChannelRescindedError):
        one.guest.wait(0)


def test_a_lost_wake_up_is_found_by_looking_and_counted(uio) -> None:
    one = uio(recheck_every=0.02)
    lost = threading.Timer(0.01, one.host.send, [b"lost"])  # no interrupt follows
    lost.start()
    assert one.guest.wait(30) is True
    stats = one.guest.stats()
    assert stats["rechecks_needed"] == 1
    assert stats["rechecks"] >= 1
    assert stats["signals_received"] == 0
    lost.join()


def test_looking_unasked_does_not_prolong_a_wait(uio) -> None:
    one = uio(recheck_every=0.01)
    assert one.guest.wait(0.05) is False
    assert one.guest.stats()["rechecks"] >= 1
    assert one.guest.stats()["rechecks_needed"] == 0


def test_an_interrupt_that_is_found_when_looking_was_not_lost(uio) -> None:
    one = uio(recheck_every=1.0)
    one.send(b"here")
    one.guest.recheck()
    assert one.guest.stats()["rechecks"] == 1
    assert one.guest.stats()["rechecks_needed"] == 0
    assert one.guest.stats()["signals_received"] == 1


def test_a_monitored_channel_signals_by_two_bits_and_no_write(uio) -> None:
    one = uio(monitored=True)
    one.interrupts[2048], one.monitor[8] = 0x80, 0x01  # other channels' bits stay
    one.guest.send(b"answer")
    assert one.kernel.written() == []
    assert one.interrupts[2048 + 4] == 1 << 5  # 37 = 32 + 5
    assert one.monitor[8 + 2 * 8] == 1 << 6  # 70 = 2 * 32 + 6
    assert (one.interrupts[2048], one.monitor[8]) == (0x80, 0x01)
    assert bytes(one.interrupts).count(0) + bytes(one.monitor).count(0) == 2 * 4096 - 4


def test_a_monitored_signal_leaves_the_mask_alone(uio) -> None:
    one = uio(monitored=True)
    one.guest.mask()
    one.memory[RING + MASK] = 7
    one.guest.send(b"answer")
    assert one.memory[RING + MASK] == 7


def test_closing_gives_the_pages_and_the_descriptor_back(uio) -> None:
    one = uio(monitored=True)
    with pytest.raises(BufferError):
        one.monitor.close()
    one.guest.close()
    one.monitor.close()
    one.interrupts.close()
    assert select.select([one.kernel.socket], [], [], 0)[0]
    assert one.kernel.socket.recv(4) == b""


@pytest.mark.parametrize(
    ("relid", "monitor_id", "pages"),
    [(-1, 0, 4096), (16384, 0, 4096), (1, 128, 4096), (1, -1, 4096), (1, 1, 4088)],
)
def test_a_bit_outside_the_pages_is_refused_and_the_descriptor_stays_ours(relid, monitor_id, pages) -> None:
    descriptor = os.eventfd(0)
    page = bytearray(pages)
    with pytest.raises(ValueError, match="page"):
        MonitorDoorbell(descriptor, page, page, relid, monitor_id)
    os.close(descriptor)
    page.clear()  # BufferError if it were still held


def test_a_descriptor_that_is_not_open_is_refused() -> None:
    descriptor = os.eventfd(0)
    os.close(descriptor)
    with pytest.raises(OSError, match="descriptor"):
        UioDoorbell(descriptor)
