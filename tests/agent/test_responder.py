# SPDX-License-Identifier: Apache-2.0
"""One service on one channel, step by step: nothing is lost behind one signal, on a full ring, or on an old one."""

from __future__ import annotations

import math
import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from hvring.agent import Responder, serve
from hvring.channel import Channel, EventfdDoorbell
from hvring.errors import RingFullError
from hvring.ic import Frame, Heartbeat, MessageType
from hvring.ring import RingConsumer, RingProducer
from hvring.services import Heartbeat as HeartbeatService

RING = 8192


class Host:
    """The host's ends of both rings."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 2 * RING)
        self.to_host, self.to_guest = os.eventfd(0), os.eventfd(0)
        self.guest: Channel | None = None

    def open(self) -> Responder:
        doorbell = EventfdDoorbell(os.dup(self.to_host), os.dup(self.to_guest))
        self.guest = Channel(self.memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell)
        self.tx = RingProducer(self.memory, RING, RING)
        self.rx = RingConsumer(self.memory, 0, RING)
        return Responder(self.guest, HeartbeatService())

    def beat(self, number: int) -> bool:
        return self.tx.send(
            Frame(MessageType.HEARTBEAT, Heartbeat(number).encode()).encode(), transaction_id=number
        )

    def answers(self) -> list[tuple[int, int]]:
        """Transaction ids and numbers."""
        return [
            (p.transaction_id, Heartbeat.decode(p.payload[28:]).sequence) for p in self.rx.recv_many(1000)
        ]


@pytest.fixture
def host() -> Iterator[Host]:
    host = Host()
    yield host
    if host.guest is not None:
        host.guest.close()
    os.close(host.to_host)
    os.close(host.to_guest)


def test_every_packet_behind_one_signal_is_answered_in_order(host) -> None:
    responder = host.open()
    due = [host.beat(n) for n in range(30)]
    assert due == [True] + [False] * 29
    assert responder.respond(seconds=math.inf) is False
    assert host.answers() == [(n, n + 1) for n in range(30)]


def test_a_long_burst_lets_others_have_their_turn(host) -> None:
    responder = host.open()
    for n in range(30):
        host.beat(n)
    assert responder.respond(limit=8, seconds=math.inf) is True
    assert len(host.answers()) == 8
    assert responder.respond(seconds=0) is True  # the time is over, but not before one was answered
    assert len(host.answers()) == 1
    while responder.respond(limit=8):
        pass
    assert host.answers() == [(n, n + 1) for n in range(9, 30)]


def test_an_answer_that_finds_no_room_is_held_and_the_host_is_asked_for_room(host) -> None:
    responder = host.open()
    sent = 0
    while struct.unpack_from("<I", host.memory, 12)[0] == 0:  # pending_send_sz of the guest's ring
        host.beat(sent)
        sent += 1
        responder.respond()
    assert responder.timeout() is not None
    for n in range(sent, sent + 10):
        host.beat(n)
    assert responder.respond() is False  # still no room, and nothing is read behind the held one
    got = host.answers()
    assert host.rx.take_signal()  # the guest is to be told that there is room
    while responder.respond():
        pass
    got += host.answers()
    assert got == [(n, n + 1) for n in range(sent + 10)]
    assert responder.timeout() is None


def test_room_that_comes_while_the_guest_arms_is_seen_at_once(host) -> None:
    """No look at the clock is needed for it: the host took its signal back, and there will be no other."""
    responder = host.open()
    armed = responder.channel.arm
    got: list[tuple[int, int]] = []

    class Racing:
        """The host drains between the guest's wish for room and its arming, and signals before it."""

        def __getattr__(self, name: str) -> object:
            return getattr(host.guest, name)

        def arm(self) -> int:
            if host.guest.wants_room:
                got.extend(host.answers())
                host.rx.take_signal()
            return armed()

    responder = Responder(Racing(), responder.service)  # type: ignore[arg-type]
    for n in range(1000):
        host.beat(n)
        responder.respond(seconds=math.inf)
        assert responder.timeout() is None
    assert len(got) > 100
    got += host.answers()
    assert got == [(n, n + 1) for n in range(1000)]


def test_a_channel_goes_on_where_the_rings_are(host) -> None:
    """The memory may have been used by an earlier opener, who may have left its mask and its wish for room."""
    for ring in (0, RING):
        struct.pack_into("<IIII", host.memory, ring, 4080, 4080, 1, 64)
    responder = host.open()
    assert host.beat(7)  # unmasked: the signal is due
    assert responder.respond(seconds=math.inf) is False
    assert host.answers() == [(7, 8)]
    assert struct.unpack_from("<4I", host.memory, 0)[3] == 0


def test_the_blocking_form_sleeps_while_there_is_no_room(host) -> None:
    host.open()
    looks: list[float] = []
    full, done = threading.Event(), threading.Event()

    class Counting(HeartbeatService):
        def tick(self) -> None:
            looks.append(time.monotonic())
            if struct.unpack_from("<I", host.memory, 12)[0]:
                full.set()

    thread = threading.Thread(target=serve, args=(Counting(), host.guest), kwargs={"stop": done.is_set})
    thread.start()
    sent = 0
    while not full.is_set():
        try:
            signal = host.beat(sent)
        except RingFullError:
            continue
        sent += 1
        if signal:
            os.eventfd_write(host.to_guest, 1)
    before = len(looks)
    time.sleep(0.3)  # in which it may look a few times by the clock
    assert len(looks) - before < 100
    got = host.answers()
    while len(got) < sent:
        os.eventfd_write(host.to_guest, 1)
        got += host.answers()
    assert got == [(n, n + 1) for n in range(sent)]
    done.set()
    host.beat(sent)
    os.eventfd_write(host.to_guest, 1)
    thread.join()


def test_a_packet_beyond_every_message_is_answered_like_the_others(host) -> None:
    """It does not fit where packets usually come; those behind it do."""
    ring = 65536
    memory = mmap.mmap(-1, 2 * ring)
    doorbell = EventfdDoorbell(os.dup(host.to_host), os.dup(host.to_guest))
    with Channel(memory, ring_size=ring, tx_offset=0, rx_offset=ring, doorbell=doorbell) as guest:
        responder = Responder(guest, HeartbeatService())
        tx, rx = RingProducer(memory, ring, ring), RingConsumer(memory, 0, ring)
        beat = Frame(MessageType.HEARTBEAT, Heartbeat(7).encode()).encode()
        for number, raw in enumerate([beat, beat.ljust(20000, b"\0"), beat]):
            tx.send(raw, transaction_id=number)
        while responder.respond():
            pass
        got = rx.recv_many()
        assert [packet.transaction_id for packet in got] == [0, 1, 2]
        assert [len(packet.payload) for packet in got] == [72, 20000, 72]
        assert {Heartbeat.decode(packet.payload[28:]).sequence for packet in got} == {8}
