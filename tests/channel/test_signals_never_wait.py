# SPDX-License-Identifier: Apache-2.0
"""No doorbell waits for the other side, whatever that does to the counters which both of them hold."""

from __future__ import annotations

import mmap
import os
import platform
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell
from hvring.channel._doorbell import Doorbell
from hvring.ring import RingConsumer

RING = 8192
FULL = (2**64 - 2).to_bytes(8, sys.byteorder)
LIMIT = 120  # seconds after which a process counts as hanging

FILLER = Path(__file__).parents[1] / "hostile" / "filler.py"

# Sends packets each of which must be signalled, says so in a file, and prints how often it signalled.
SENDER = """if 1:
    import mmap, os, sys
    from hvring import Channel
    from hvring.channel import EventfdDoorbell
    from hvring.ring import RingConsumer
    memory = mmap.mmap(-1, 16384)
    channel = Channel(memory, ring_size=8192, tx_offset=0, rx_offset=8192,
                      doorbell=EventfdDoorbell(int(sys.argv[1]), os.eventfd(0)))
    consumer = RingConsumer(memory, 0, 8192)
    progress = memoryview(mmap.mmap(int(sys.argv[3]), 4096)).cast("Q")
    for n in range(int(sys.argv[2])):
        channel.send(b"x")
        consumer.recv()
        progress[0] = n
    print(channel.stats()["signals_sent"])
"""


def run(
    code: str, *args: int, preamble: str = "", descriptors: tuple[int, ...] = ()
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", preamble + code, *map(str, args)],
        pass_fds=descriptors,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


# io_setup answers ENOSYS from here on, as on kernels without asynchronous operations or in confined services.
WITHOUT_AIO = """if 1:
    import ctypes, struct
    number = {number}
    code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 38), (0x06, 0, 0, 0x7FFF0000)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in code))
    fprog = ctypes.create_string_buffer(struct.pack("<H6xQ", len(code), ctypes.addressof(program)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl.argtypes = [ctypes.c_int] + [ctypes.c_ulong] * 4
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.addressof(fprog), 0, 0) == 0, "no seccomp"
"""


HANDLED = """
    import signal, sys
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(7))
"""
# The number of write()
WRITE = {"x86_64": 1, "aarch64": 64}.get(platform.machine())


@pytest.fixture
def without_aio() -> str:
    numbers = {"x86_64": 206, "aarch64": 0}
    if platform.machine() not in numbers:
        pytest.skip("the number of io_setup is not known here")
    return WITHOUT_AIO.format(number=numbers[platform.machine()])


@pytest.fixture
def progress() -> Iterator[int]:
    """The file by which a sender tells that it gets on."""
    descriptor = os.memfd_create("progress")
    os.ftruncate(descriptor, 4096)
    yield descriptor
    os.close(descriptor)


def fill(bell: int, progress: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, str(FILLER), str(bell), str(progress)], pass_fds=(bell, progress)
    )


@pytest.fixture
def bell() -> Iterator[int]:
    """A blocking eventfd."""
    descriptor = os.eventfd(0)
    yield descriptor
    os.close(descriptor)


def test_a_counter_that_is_filled_at_any_moment_holds_no_sender(bell: int, progress: int) -> None:
    sender = run(SENDER, bell, 300_000, progress, descriptors=(bell, progress))
    filler = fill(bell, progress)
    try:
        assert sender.communicate(timeout=LIMIT)[0] == "300000\n"
    finally:
        for process in (sender, filler):
            process.kill()
            process.communicate()


def test_a_million_signals_are_given(bell: int) -> None:
    """None gets lost where the kernel keeps a report of each until it is taken."""
    doorbell = EventfdDoorbell(bell, bell, closefd=False)
    for _ in range(1_000_000):
        doorbell.signal()
    assert doorbell.take() == 1_000_000
    assert doorbell.take() == 0


def test_a_full_counter_is_a_signal_that_was_given(bell: int) -> None:
    os.write(bell, FULL)
    doorbell = EventfdDoorbell(bell, bell, closefd=False)
    doorbell.signal()
    doorbell.signal()
    assert doorbell.take() == 1 << 62, "of any number that many are told"
    assert doorbell.take() == 0


def test_a_forked_child_signals_too(bell: int) -> None:
    doorbell = EventfdDoorbell(bell, bell, closefd=False)
    doorbell.signal()
    child = os.fork()
    if child == 0:
        try:
            for _ in range(1000):
                doorbell.signal()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    doorbell.signal()
    assert doorbell.take() == 1002


def test_taking_waits_for_nothing_though_the_counter_blocks(bell: int) -> None:
    assert os.get_blocking(bell)
    doorbell = EventfdDoorbell(bell, bell, closefd=False)
    assert doorbell.take() == 0
    os.eventfd_write(bell, 5)
    assert doorbell.take() == 5


def test_where_the_kernel_offers_nothing_else_signals_arrive_all_the_same(
    bell: int, progress: int, without_aio: str
) -> None:
    sender = run(SENDER, bell, 1000, progress, preamble=without_aio, descriptors=(bell, progress))
    assert sender.communicate(timeout=LIMIT)[0] == "1000\n"
    assert os.eventfd_read(bell) == 1000


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_and_a_sender_that_is_held_there_ends_by_a_signal(
    bell: int, progress: int, without_aio: str, number: int
) -> None:
    """What can only look before it writes is held sooner or later, by a filler that waits until it gets on."""
    sender = run(
        SENDER, bell, 1 << 40, progress, preamble=without_aio + HANDLED, descriptors=(bell, progress)
    )
    filler = fill(bell, progress)
    try:
        seen = memoryview(mmap.mmap(progress, 4096)).cast("Q")
        while True:  # until it is held
            before = seen[0]
            if before and Path(f"/proc/{sender.pid}/syscall").read_text().startswith(f"{WRITE} "):
                time.sleep(0.2)
                if seen[0] == before:
                    break
        sender.send_signal(number)
        assert sender.wait(LIMIT) == 7, "the handler of Python ran"
    finally:
        for process in (sender, filler):
            process.kill()
            process.communicate()


def test_a_descriptor_that_is_no_eventfd_is_written_to() -> None:
    reading, writing = os.pipe()
    EventfdDoorbell(writing, reading, closefd=False).signal()
    assert os.read(reading, 100) == (1).to_bytes(8, sys.byteorder)
    os.close(reading)
    os.close(writing)


def test_after_its_end_a_doorbell_says_so() -> None:
    doorbell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
    with Channel(mmap.mmap(-1, 2 * RING), ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell):
        pass
    with pytest.raises(OSError, match="cannot signal"):
        doorbell.signal()
    with pytest.raises(OSError, match="cannot look"):
        doorbell.take()


def test_a_doorbell_belongs_to_one_channel() -> None:
    memory = mmap.mmap(-1, 2 * RING)
    doorbell = EventfdDoorbell(os.eventfd(0), os.eventfd(0))
    with Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell):
        for _ in range(2):
            with pytest.raises(ValueError, match="doorbell of its own"):
                Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell)
    with pytest.raises(ValueError, match="doorbell of its own"):
        Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell)
    with pytest.raises(ValueError, match="doorbell of its own"):
        Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=Doorbell())


def test_signals_of_a_channel_reach_who_sleeps(bell: int) -> None:
    memory = mmap.mmap(-1, 2 * RING)
    doorbell = EventfdDoorbell(os.dup(bell), os.eventfd(0))
    with Channel(memory, ring_size=RING, tx_offset=0, rx_offset=RING, doorbell=doorbell) as channel:
        consumer = RingConsumer(memory, 0, RING)
        for _ in range(500):  # several times what the kernel keeps
            assert channel.send(b"x") is True
            assert select.select([bell], [], [], 0)[0]
            assert os.eventfd_read(bell) == 1
            assert consumer.recv() is not None
        consumer.close()
