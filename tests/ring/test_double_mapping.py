# SPDX-License-Identifier: Apache-2.0
"""Rings whose data area is mapped twice: nothing wraps for whoever looks in place; the file says the same."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvring.ring import DoubleMapping, RingConsumer, RingProducer

PAGE = mmap.PAGESIZE
RING = 3 * PAGE
DATA = RING - PAGE


@pytest.fixture
def file() -> Iterator[int]:
    """Two rings, one page into the file."""
    fd = os.memfd_create("rings")
    os.ftruncate(fd, PAGE + 2 * RING)
    yield fd
    os.close(fd)


def mapped(fd: int) -> DoubleMapping:
    return DoubleMapping(fd, RING, offset=PAGE, control_size=PAGE)


def test_a_packet_at_every_place_is_claimed_and_seen_in_one_piece(file: int) -> None:
    both = mapped(file)
    plain = mmap.mmap(file, PAGE + 2 * RING)
    for number in range(2):
        at = number * both.stride
        sent = bytes(range(251)) * 4
        for start in range(DATA - 1104, DATA, 8):
            struct.pack_into("<II", plain, PAGE + number * RING, start, start)
            producer = RingProducer(both, at, RING, control_size=PAGE, mirrored=True)
            consumer = RingConsumer(both, at, RING, control_size=PAGE, mirrored=True)
            other = RingConsumer(plain, PAGE + number * RING, RING, control_size=PAGE)
            with producer.claim(len(sent)) as claim:
                claim.buffer[:] = sent
            assert other.recv().payload[: len(sent)] == sent, "in the file it wraps as it always does"
            struct.pack_into("<I", plain, PAGE + number * RING + 4, start)  # read again, by the other end
            with consumer.views() as views:
                assert bytes(next(views))[: len(sent)] == sent


def test_the_two_copies_of_the_data_are_one(file: int) -> None:
    both = memoryview(mapped(file))
    both[PAGE] = 1
    assert both[RING] == 1
    both[RING + DATA - 1] = 2
    assert both[RING - 1] == 2
    assert os.pread(file, 1, PAGE + RING - 1) == b"\2"


@pytest.mark.parametrize(
    "wrong",
    [
        {"ring_size": RING + 8},
        {"ring_size": PAGE},
        {"ring_size": 0},
        {"ring_size": -RING},
        {"ring_size": 1 << 40},
        {"ring_size": RING, "control_size": 100},
        {"ring_size": RING, "offset": 8},
        {"ring_size": RING, "offset": -PAGE},
        {"ring_size": RING, "rings": 0},
    ],
)
def test_sizes_that_cannot_be_mapped(file: int, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"multiples of the page|cannot be mapped"):
        DoubleMapping(file, **{"control_size": PAGE, **wrong})


def test_a_file_that_cannot_be_mapped(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="cannot map"):
        DoubleMapping(-1, RING, control_size=PAGE)
    with (tmp_path / "read-only").open("wb") as file, pytest.raises(PermissionError):
        DoubleMapping(file.fileno(), RING, control_size=PAGE)


def test_a_ring_is_not_mirrored_by_saying_so(file: int) -> None:
    memory = bytearray(RING + DATA - 8)
    for end in (RingProducer, RingConsumer):
        with pytest.raises(ValueError, match="once more"):
            end(memory, 0, RING, mirrored=True)
        with pytest.raises(ValueError, match="once more"):
            end(bytearray(RING), mirrored=True)


def test_the_memory_goes_when_the_last_user_does(file: int) -> None:
    def mappings() -> int:
        return sum("/memfd:rings" in line for line in Path("/proc/self/maps").read_text().splitlines())

    both = mapped(file)
    held = mappings()
    assert held >= 2
    producer = RingProducer(both, 0, RING, control_size=PAGE, mirrored=True)
    del both
    assert mappings() == held
    producer.send(b"still there")
    producer.close()
    assert mappings() == 0
