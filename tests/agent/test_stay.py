# SPDX-License-Identifier: Apache-2.0
"""Staying for the next request: only after an answer, never beyond the turn or the share, and off when idle (0017)."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from hvring.agent import MessageResponder, Responder, Stay
from hvring.agent.responder import TURN
from hvring.agent.stay import PollingLook, looking
from hvring.channel import Channel, EventfdDoorbell
from hvring.ic import Frame, MessageType
from hvring.ic import Heartbeat as Beat
from hvring.ring import RingConsumer, RingProducer
from hvring.services import Heartbeat

RING = 8192
BEAT = Frame(MessageType.HEARTBEAT, Beat(1).encode()).encode()
US = 1_000
many = pytest.mark.skipif(len(os.sched_getaffinity(0)) == 1, reason="on one processor nobody looks")


class Looking:
    """A channel whose looks are counted; what happens during one is up to the test."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.spin = self.spin_share = 0.0
        self.looks: list[float] = []
        self.arms = 0
        self.meanwhile: Callable[[], object] = lambda: None

    def __getattr__(self, name: str) -> object:
        return getattr(self._channel, name)

    def stay(self, seconds: float, /) -> bool:
        self.looks.append(seconds)
        self.meanwhile()
        return bool(self._channel.rx.available)

    def arm(self) -> int:
        self.arms += 1
        return self._channel.arm()


class Pair:
    """A responder over a channel that looks, and the host's ends of both rings."""

    def __init__(self, stay: Stay) -> None:
        memory = mmap.mmap(-1, 2 * RING)
        doorbell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
        self.guest = Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell)
        self.tx, self.rx = RingProducer(memory, RING, RING), RingConsumer(memory, 0, RING)
        self.channel = Looking(self.guest)
        self.responder = Responder(self.channel, Heartbeat(), stay=stay)  # type: ignore[arg-type]


@pytest.fixture
def pair() -> Iterator[Callable[[Stay], Pair]]:
    with ExitStack() as stack:

        def make(stay: Stay) -> Pair:
            made = Pair(stay)
            stack.callback(made.guest.close)
            return made

        yield make


def test_a_request_that_comes_during_a_look_is_answered_in_the_same_turn_unsignalled(pair) -> None:
    made = pair(Stay(0.0001))
    left = iter(range(5))
    signals = [made.tx.send(BEAT)]
    made.channel.meanwhile = lambda: next(left, None) is not None and signals.append(made.tx.send(BEAT))
    assert made.responder.respond(seconds=math.inf) is False
    assert len(made.rx.recv_many()) == 6
    assert signals == [True] + [False] * 5  # the host need not wake whoever looks
    assert len(made.channel.looks) == 6
    assert made.channel.arms == 1


def test_a_look_never_lasts_longer_than_the_turn(pair) -> None:
    made = pair(Stay(0.0001))
    made.tx.send(BEAT)
    made.responder.respond()
    assert len(made.channel.looks) == 1
    assert made.channel.looks[0] <= TURN


def test_a_turn_without_a_request_looks_for_none(pair) -> None:
    made = pair(Stay(0.0001))
    for _ in range(3):
        assert made.responder.respond() is False
    assert made.channel.looks == []


def test_requests_that_never_stop_coming_during_looks_end_the_turn(pair) -> None:
    made = pair(Stay(0.0001))
    made.tx.send(BEAT)
    made.channel.meanwhile = lambda: made.tx.send(BEAT)
    assert made.responder.respond(limit=10, seconds=math.inf) is True
    assert len(made.rx.recv_many()) == 5  # answers and looks both count
    made.tx.send(BEAT)
    assert made.responder.respond(seconds=0) is True  # time is over
    assert len(made.rx.recv_many()) == 1


@pytest.mark.parametrize("stay", [Stay(), Stay(0.0)])
def test_nobody_stays_unasked(pair, stay: Stay) -> None:
    made = pair(stay)
    made.tx.send(BEAT)
    assert made.responder.respond() is False
    assert made.channel.looks == []


def test_a_channel_that_cannot_look_is_served_all_the_same() -> None:
    assert looking(object(), Stay(0.0001)) is None


@many
def test_a_channel_is_told_how_long_it_may_look_and_for_which_share(pair) -> None:
    guest = pair(Stay()).guest
    assert looking(guest, Stay(0.0002, 0.25)) is guest
    assert (guest.spin, guest.spin_share) == (pytest.approx(0.0002), 0.25)


@many
def test_the_time_until_the_next_turn_counts_as_a_sleep(pair) -> None:
    """After an idle time there is no look; after requests that follow one another there is."""
    made = pair(Stay())
    responder = Responder(made.guest, Heartbeat(), stay=Stay(0.001, 1.0))

    def ask() -> int:
        made.tx.send(BEAT)
        responder.respond()
        made.rx.recv_many()
        return made.guest.stats()["spins"]

    before = ask()
    tries = 0
    while ask() == before:  # the first looks come as soon as two requests came within 10 ms
        tries += 1
        assert tries < 100_000
    made.guest.stay()
    spins = made.guest.stats()["spins"]
    assert spins > before


class Clock:
    """Monotonic seconds that pass when somebody polls."""

    def __init__(self) -> None:
        self.ns = 10**12

    def __call__(self) -> float:
        return self.ns / 1e9

    def tick(self) -> bool:
        self.ns += 2 * US
        return False


def conversation(look: PollingLook, clock: Clock, *, delay: int, times: int) -> int:
    """So many requests, each `delay` ns after the last answer; how many of them came during a look."""
    won = 0
    for _ in range(times):
        asked_at = clock.ns + delay

        def arrived(at: int = asked_at) -> bool:
            clock.tick()
            return clock.ns >= at

        if look.stay(arrived, TURN):
            won += 1
        else:
            clock.ns = max(clock.ns, asked_at) + 30 * US
            look.wake(True)
    return won


@many
def test_polls_find_what_comes_soon_and_never_cost_more_than_their_share() -> None:
    clock = Clock()
    look = PollingLook(Stay(0.0001, 0.25), monotonic=clock)
    began = clock.ns
    assert conversation(look, clock, delay=10 * US, times=500) > 100
    conversation(look, clock, delay=90 * US, times=500)
    assert 0 < look.spinner.spun <= 0.25 * (clock.ns - began) + 1000 * US


@many
def test_polls_stop_after_an_idle_time() -> None:
    clock = Clock()
    look = PollingLook(Stay(0.0001, 1.0), monotonic=clock)
    conversation(look, clock, delay=10 * US, times=20)
    spins = look.spinner.spins
    assert spins > 0
    assert not look.stay(clock.tick, TURN)
    clock.ns += 10**9
    look.wake(False)
    spins = look.spinner.spins
    assert not look.stay(clock.tick, TURN)
    assert look.spinner.spins == spins


class Device:
    """A channel of messages; each comes some polls after the last answer, and polls take their time."""

    closed = False
    answer_by = None

    def __init__(self) -> None:
        self.clock = Clock()
        self.answered = 0
        self.polls = 0
        self.polls_since = 0
        self.has_more = True

    def has_arrived(self) -> bool:
        self.polls += 1
        self.polls_since += 1
        self.clock.tick()
        return self.has_more and self.polls_since > 6

    def recv(self) -> Beat | None:
        return Beat(1) if self.has_arrived() else None

    def answer(self, status: int, message: object = None, /) -> bool:
        self.answered += 1
        self.polls_since = 0
        return True


@many
def test_a_device_is_polled_for_its_next_message_within_the_turn() -> None:
    device = Device()
    stay = Stay(0.001, 1.0)
    responder = MessageResponder(device, Heartbeat(), stay=stay, monotonic=device.clock)  # type: ignore[arg-type]
    turns = 0
    while device.answered < 100:
        device.polls_since = 6  # the loop calls when there is a message
        responder.respond(seconds=math.inf)
        turns += 1
        assert turns < 100
    assert turns < 30
    device.has_more = False
    while responder.respond(seconds=math.inf):
        pass
    device.clock.ns += 10**9
    polls = device.polls
    assert responder.respond() is False  # idle
    assert device.polls - polls <= 3


def test_a_device_is_not_polled_unasked() -> None:
    device = Device()
    device.polls_since = 6
    responder = MessageResponder(device, Heartbeat())  # type: ignore[arg-type]
    assert responder.respond() is False
    assert device.answered == 1
    assert device.polls <= 5
