# SPDX-License-Identifier: Apache-2.0
"""Samples of the host's time on their way to chrony or ntpd; nothing here sets a clock."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvring.errors import EffectError
from hvring.guest.time_feed import FeedSample, RehearsedFeed, feed
from hvring.guest.time_feed.ntp_shm import KEY, precision
from hvring.reasons import Reason

AT = 1_700_000_000_123_456_789
SAMPLE = FeedSample(AT, -1_500_000_000, 250, leap=2)


@pytest.fixture
def chronyd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that chronyd would have made."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "sock"))
        sock.settimeout(10)
        yield sock


def test_a_sample_is_chronys_struct(chronyd: socket.socket) -> None:
    feed(f"sock:{chronyd.getsockname()}").give(SAMPLE)
    seconds, micros, offset, pulse, leap, _, magic = struct.unpack("@lldiiii", chronyd.recv(100))
    assert (seconds, micros, offset) == (1_700_000_000, 123_456, -1.5)
    assert (pulse, leap, magic) == (0, 2, 0x534F434B)


def test_a_chronyd_that_is_not_there_is_tried_again_with_each_sample(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    to = feed(f"sock:{path}")
    with pytest.raises(EffectError, match="chronyd does not listen on") as caught:
        to.give(SAMPLE)
    assert caught.value.reason is Reason.FEED_UNREACHABLE
    for _ in range(2):  # one that was started again has another socket
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind(path)
            to.give(SAMPLE)
            assert len(sock.recv(100)) == 40
        with pytest.raises(EffectError, match="chronyd does not listen on"):
            to.give(SAMPLE)
        os.unlink(path)


def test_a_chronyd_that_hangs_holds_nothing_up(chronyd: socket.socket) -> None:
    to = feed(f"sock:{chronyd.getsockname()}")
    with pytest.raises(EffectError, match="chronyd does not read"):
        for _ in range(100_000):
            to.give(SAMPLE)


def test_what_is_no_socket_takes_no_sample(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EffectError):
        feed(f"sock:{tmp_path}/file").give(SAMPLE)


def test_no_descriptor_is_left(chronyd: socket.socket) -> None:
    before = len(os.listdir("/proc/self/fd"))
    to = feed(f"sock:{chronyd.getsockname()}")
    for _ in range(5):
        to.give(SAMPLE)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    "to",
    [
        *("", "sock", "sock:", "sock:here", "sock:/a\0b", f"sock:/{'a' * 107}"),
        *("shm", "shm:", "shm:-1", "shm:256", "shm:²", "shm:two", "pipe:/x", "/run/chrony/x.sock"),
    ],
)
def test_what_no_feed_can_be_is_refused_at_once(to: str) -> None:
    with pytest.raises(ValueError, match=r"is no|neither"):
        feed(to)


def test_a_rehearsal_remembers_what_it_would_have_given() -> None:
    rehearsed = RehearsedFeed()
    rehearsed.give(SAMPLE)
    assert rehearsed.samples == [SAMPLE]


@pytest.mark.parametrize(
    ("uncertainty_ns", "log2"),
    [(0, -30), (1, -29), (100, -23), (1000, -19), (999_999_999, 0), (10**12, 0), (500_000_000, -1)],
)
def test_the_precision_is_never_finer_than_what_is_known(uncertainty_ns: int, log2: int) -> None:
    assert precision(uncertainty_ns) == log2
    assert log2 == 0 or 2.0**log2 >= uncertainty_ns / 1e9


# ------------------------------------------------------------------------------------------ shared memory


class ShmTime(ctypes.Structure):
    _fields_ = (
        ("mode", ctypes.c_int),
        ("count", ctypes.c_int),
        ("clock_sec", ctypes.c_long),
        ("clock_usec", ctypes.c_int),
        ("receive_sec", ctypes.c_long),
        ("receive_usec", ctypes.c_int),
        ("leap", ctypes.c_int),
        ("precision", ctypes.c_int),
        ("nsamples", ctypes.c_int),
        ("valid", ctypes.c_int),
        ("clock_nsec", ctypes.c_uint),
        ("receive_nsec", ctypes.c_uint),
        ("dummy", ctypes.c_int * 8),
    )


@pytest.fixture
def reader(shm_unit: int) -> Iterator[ShmTime]:
    """The segment, made by who reads it, as chrony does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    found = libc.shmget(KEY + shm_unit, ctypes.sizeof(ShmTime), 0o1600)
    at = libc.shmat(found, None, 0)
    yield ShmTime.from_address(at)
    libc.shmdt(ctypes.c_void_p(at))


def test_a_sample_is_in_the_segment_in_mode_1(shm_unit: int, reader: ShmTime) -> None:
    to = feed(f"shm:{shm_unit}")
    for n in (1, 2):
        to.give(SAMPLE)
        assert (reader.mode, reader.valid, reader.count) == (1, 1, 2 * n)
    clock = AT - 1_500_000_000
    assert (reader.clock_sec, reader.clock_nsec, reader.clock_usec) == (
        clock // 10**9,
        clock % 10**9,
        clock % 10**9 // 1000,
    )
    assert (reader.receive_sec, reader.receive_nsec, reader.receive_usec) == (
        1_700_000_000,
        123_456_789,
        123_456,
    )
    assert (reader.leap, reader.precision) == (2, -21)


def test_who_comes_first_makes_the_segment_and_only_for_this_user(shm_unit: int) -> None:
    feed(f"shm:{shm_unit}").give(SAMPLE)
    rows = Path("/proc/sysvipc/shm").read_text(encoding="ascii").splitlines()
    (row,) = [row.split() for row in rows[1:] if int(row.split()[0]) == KEY + shm_unit]
    assert (int(row[2], 8), int(row[3])) == (0o600, 96)


def test_a_segment_that_is_too_small_is_told(shm_unit: int) -> None:
    ctypes.CDLL(None).shmget(KEY + shm_unit, 8, 0o1600)
    with pytest.raises(EffectError, match="takes no sample") as caught:
        feed(f"shm:{shm_unit}").give(SAMPLE)
    assert caught.value.reason is Reason.FEED_UNREACHABLE


def test_a_time_that_no_memory_holds_is_told(shm_unit: int) -> None:
    with pytest.raises(EffectError, match="before 1970"):
        feed(f"shm:{shm_unit}").give(FeedSample(10**9, -(10**10), 1))
