# SPDX-License-Identifier: Apache-2.0
"""close() by another thread, a signal handler or what the caller hands in: ChannelClosedError, for every doorbell."""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from hvring import Channel, ChannelClosedError, RingFullError
from hvring.channel import EventfdDoorbell, MonitorDoorbell, UioDoorbell
from hvring.errors import HvringError
from hvring.ring import RingProducer
from hvring.vmbus.arrays import descriptor_dtype

RING = 8192
LIMIT = 60.0
Make = Callable[[str], tuple[Channel, Callable[[], None]]]


@pytest.fixture
def make() -> Iterator[Make]:
    """A channel with a doorbell of that kind, and what rings it for nothing; with or without a lifeline."""
    opened: list = []

    def make(kind: str) -> tuple[Channel, Callable[[], None]]:
        memory = mmap.mmap(-1, 2 * RING)
        lifeline = -1
        if kind.startswith("eventfd"):
            bell = os.eventfd(0)
            opened.append(bell)
            doorbell = EventfdDoorbell(os.eventfd(0), os.dup(bell))

            def ring() -> None:
                os.eventfd_write(bell, 1)
        else:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            theirs.setblocking(False)
            opened.append(theirs)
            doorbell = (
                MonitorDoorbell(ours.detach(), bytearray(4096), bytearray(4096), 5, 7)
                if kind == "monitor"
                else UioDoorbell(ours.detach())
            )

            def ring() -> None:
                try:
                    theirs.send(bytes(4))
                except OSError:
                    pass

        if kind.endswith("pipe"):
            lifeline, other_end = os.pipe()
            opened.append(other_end)
        elif kind.endswith("lifeline"):
            life, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            opened.append(other)
            lifeline = life.detach()
        channel = Channel(
            memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell, lifeline=lifeline
        )
        return channel, ring

    yield make
    for one in opened:
        os.close(one) if isinstance(one, int) else one.close()


def fill(channel: Channel) -> None:
    try:
        while True:
            channel.send(bytes(1000))
    except RingFullError:
        pass


def wait(channel: Channel) -> None:
    channel.wait()


def wait_looking(channel: Channel) -> None:
    channel.spin_share, channel.spin = 1.0, 0.001
    channel.wait()


def send(channel: Channel) -> None:
    fill(channel)
    channel.send(bytes(1000), timeout=None)


def wait_for_room(channel: Channel) -> None:
    fill(channel)
    channel.want_room(1000)
    channel.wait()


KINDS = ["eventfd", "eventfd and lifeline", "eventfd and pipe", "uio", "uio and lifeline", "monitor"]
WAYS = [wait, wait_looking, send, wait_for_room]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_another_thread_ends_every_wait(way: Callable[[Channel], None], kind: str, make: Make) -> None:
    channel, _ = make(kind)
    before = len(os.listdir("/proc/self/fd"))
    ended: list[BaseException] = []

    def sleep() -> None:
        try:
            way(channel)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=sleep, daemon=True)
    thread.start()
    counter = "ring_full" if way is send else "waits"
    while channel.stats()[counter] == (1 if way is send else 0):  # filling it counts one
        pass
    channel.close()
    thread.join(LIMIT)
    assert [type(error) for error in ended] == [ChannelClosedError]
    assert len(os.listdir("/proc/self/fd")) < before, "what was kept for the sleeper is closed by now"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rings", [False, True])
def test_a_signal_handler_ends_every_wait(
    way: Callable[[Channel], None], kind: str, rings: bool, make: Make
) -> None:
    """Also while the doorbell rings and rings, so that no sleep is ever interrupted."""
    channel, ring = make(kind)
    over = threading.Event()

    def ring_on() -> None:
        while not over.is_set():
            ring()

    before = signal.signal(signal.SIGALRM, lambda *_: channel.close())
    thread = threading.Thread(target=ring_on)
    if rings:
        thread.start()
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(ChannelClosedError):
            way(channel)
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        over.set()
        if rings:
            thread.join()


def payloads(channel: Channel) -> Iterator[bytes]:
    yield bytes(8)
    channel.close()
    yield bytes(8)


class Seconds:
    """A number that closes a channel when it is looked at."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel

    def __float__(self) -> float:
        self.channel.close()
        return 0.01

    def __index__(self) -> int:
        self.channel.close()
        return 8

    __int__ = __index__


def full(channel: Channel) -> Channel:
    fill(channel)
    return channel


@pytest.mark.parametrize("kind", ["eventfd", "uio"])
@pytest.mark.parametrize(
    "use",
    [
        lambda channel: channel.send_many(payloads(channel)),
        lambda channel: full(channel).send(bytes(1000), timeout=Seconds(channel)),
        lambda channel: channel.send(b"x", transaction_id=Seconds(channel)),
        lambda channel: channel.claim(Seconds(channel)),
        lambda channel: channel.want_room(Seconds(channel)),
        lambda channel: channel.wait(Seconds(channel)),
    ],
    ids=["send_many", "timeout", "transaction id", "claim", "want_room", "wait"],
)
def test_what_the_caller_hands_in_may_close_it(
    use: Callable[[Channel], object], kind: str, make: Make
) -> None:
    channel, _ = make(kind)
    with pytest.raises(ChannelClosedError):
        use(channel)
    assert channel.closed


@pytest.mark.skipif(sys.version_info < (3, 12), reason="buffers made by Python code")
@pytest.mark.parametrize("use", ["send", "send_many", "send_batch", "recv_into", "recv_batch"])
@pytest.mark.parametrize("end", ["__buffer__", "__release_buffer__"])
def test_a_buffer_may_close_it(use: str, end: str, make: Make) -> None:
    channel, _ = make("eventfd")

    class Closing:
        def __buffer__(self, flags: int) -> memoryview:
            if end == "__buffer__":
                channel.close()
            return memoryview(bytearray(240))

        def __release_buffer__(self, view: memoryview) -> None:
            channel.close()

    rows = np.zeros(4, descriptor_dtype())
    given = {
        "send": (Closing(),),
        "send_many": ([Closing(), b"x"],),
        "send_batch": (Closing(), rows),
        "recv_into": (Closing(),),
        "recv_batch": (Closing(), rows),
    }[use]
    try:
        getattr(channel, use)(*given)
    except ChannelClosedError:
        pass
    assert channel.closed
    with pytest.raises(ChannelClosedError):
        getattr(channel, use)(*given)


def test_what_was_claimed_or_seen_cannot_be_used_after_the_end(make: Make) -> None:
    channel, _ = make("eventfd")
    fill(channel)
    memory = mmap.mmap(-1, 2 * RING)
    producer = RingProducer(memory, RING, RING)
    one = Channel(
        memory,
        ring_size=RING,
        tx_offset=0,
        rx_offset=RING,
        doorbell=EventfdDoorbell(os.eventfd(0), os.eventfd(0)),
    )
    producer.send(b"seen")
    views = one.views()
    view = next(views)
    claim = one.claim(40)
    with pytest.raises(BufferError, match="still held"):
        one.close()
    claim.buffer.release()
    one.close()
    with pytest.raises(ChannelClosedError):
        claim.commit()
    with pytest.raises(ChannelClosedError):
        next(views)
    with pytest.raises((BufferError, ValueError)):
        memoryview(view)
    channel.close()


def test_an_end_of_a_channel_is_closed_by_the_channel_alone(make: Make) -> None:
    channel, _ = make("eventfd")
    for end in (channel.tx, channel.rx):
        with pytest.raises(HvringError, match="belongs to a channel"):
            end.close()
    assert channel.send(b"x")
    assert channel.arm() == 0


RACE = """if 1:
    import faulthandler, mmap, os, random, socket, sys, threading, time
    faulthandler.enable()
    from hvring.channel import Channel, EventfdDoorbell, UioDoorbell
    from hvring.errors import ChannelError, RingError, RingFullError
    rnd = random.Random(1)
    sys.setswitchinterval(1e-5)
    for n in range(400):
        memory = mmap.mmap(-1, 16384)
        ours, theirs = socket.socketpair()
        doorbell = UioDoorbell(ours.detach()) if n % 2 else EventfdDoorbell(os.eventfd(0), os.eventfd(0))
        channel = Channel(memory, ring_size=8192, tx_offset=0, rx_offset=8192, doorbell=doorbell)
        del memory
        go = threading.Event()

        def closer():
            go.wait()
            end = time.perf_counter() + rnd.random() * 2e-4
            while time.perf_counter() < end:
                pass
            channel.close()

        thread = threading.Thread(target=closer)
        thread.start()
        go.set()
        try:
            while True:
                channel.mask()
                try:
                    channel.send(b"x" * 8)
                except RingFullError:
                    pass
                channel.want_room(1000)
                channel.arm()
                channel.wait(0)
                channel.recv()
        except (ChannelError, RingError):
            pass
        thread.join()
        theirs.close()
    print("whole")
"""


def test_no_moment_of_closing_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", RACE], capture_output=True, text=True, timeout=LIMIT * 5)
    assert done.stdout == "whole\n", done.stderr


def test_descriptors_of_a_sleeper_are_nobody_elses_while_it_sleeps(make: Make) -> None:
    """Were they closed under it, a file opened next would get their numbers, and be polled."""
    rng = random.Random(3)
    for _ in range(50):
        channel, _ = make("eventfd and lifeline")
        ended: list[type] = []

        def sleep(channel: Channel = channel, ended: list[type] = ended) -> None:
            try:
                channel.wait()
            except HvringError as error:
                ended.append(type(error))

        thread = threading.Thread(target=sleep)
        thread.start()
        until = time.perf_counter() + rng.random() * 1e-3
        while time.perf_counter() < until:
            pass
        channel.close()
        opened = [os.eventfd(1) for _ in range(4)]
        thread.join(LIMIT)
        assert ended == [ChannelClosedError]
        for descriptor in opened:
            assert select.select([descriptor], [], [], 0)[0], "nobody read from it"
            os.close(descriptor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_channel_that_is_closed_is_in_nobodys_epoll_any_more(kind: str, make: Make) -> None:
    """The other side still has its eventfd, and with it what an epoll of ours would watch."""
    channel, ring = make(kind)
    with select.epoll() as watched:
        watched.register(channel.fileno(), select.EPOLLIN)
        ring()
        assert len(watched.poll(0)) == 1
        channel.close()
        ring()
        assert watched.poll(0) == []
