# SPDX-License-Identifier: Apache-2.0
"""All channels of a device, and sub-channels opened beside their primary (PROTOCOL §1.2, §1.6, §1.8).

The kernel is files and a stand-in for what a write to the uio file does; a real sub-channel is in tests/vm.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell
from hvring.errors import RingCorruptError
from hvring.transport import subchannels
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFaultError,
    DeviceNotFoundError,
    DevicePermissionError,
    DeviceUnavailableError,
    NodeMissingError,
    NotBoundError,
)
from hvring.transport.subchannels import channels, map_rings, open_subchannel
from hvring.transport.sysfs import UIO_DRIVER
from hvring.transport.uio_device import UioDevice
from hvring.vmbus.classes import NETWORK

NIC = "11223344-5566-7788-99aa-bbccddeeff00"
PAGE = os.sysconf("SC_PAGE_SIZE")
RING = 2 * PAGE
PRIMARY, SUB, MONITORED = 14, 15, 16
MASK = RING + 8  # of the ring that the guest reads


@pytest.fixture
def nic(bus) -> Iterator:
    """The bus with an open adapter of three channels."""
    bus.offer(NIC, UIO_DRIVER, class_guid=NETWORK, relid=PRIMARY)
    bus.set(NIC, "state", "3")
    add(bus, PRIMARY, 0)
    add(bus, MONITORED, 2, monitor_id=5)
    add(bus, SUB, 1)
    return bus


def directory(bus, relid: int) -> Path:
    return Path(bus.path(NIC)) / "channels" / str(relid)


def add(bus, relid: int, index: int, monitor_id: int = 255) -> None:
    path = directory(bus, relid)
    path.mkdir(parents=True)
    for key, number in {"subchannel_id": index, "cpu": index % 2, "monitor_id": monitor_id}.items():
        (path / key).write_text(f"{number}\n")
    (path / "ring").write_bytes(bytes(2 * RING))


def poke(bus, relid: int, at: int, value: int) -> None:
    with open(directory(bus, relid) / "ring", "r+b") as file:
        file.seek(at)
        file.write(struct.pack("<I", value))


def peek(bus, relid: int, at: int) -> int:
    return struct.unpack_from("<I", (directory(bus, relid) / "ring").read_bytes(), at)[0]


@pytest.fixture
def writes(nic, monkeypatch) -> list[int]:
    """What is written to the uio file; 1 unmasks all channels, as kernels do whose signal reaches them all."""
    seen: list[int] = []

    def control(device: UioDevice, value: int) -> None:
        seen.append(value)
        for relid in (PRIMARY, SUB, MONITORED):
            poke(nic, relid, MASK, 0 if value else 1)

    monkeypatch.setattr(UioDevice, "control", control)
    return seen


@contextmanager
def the_host(bus, relid: int) -> Iterator[Channel]:
    with open(directory(bus, relid) / "ring", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    with Channel(
        memory,
        ring_size=RING,
        tx_offset=RING,
        rx_offset=0,
        control_size=PAGE,
        doorbell=EventfdDoorbell(os.eventfd(0), os.eventfd(0)),
        on_close=memory.close,
    ) as channel:
        yield channel


def held() -> list[str]:
    """The descriptors and mappings of the fake bus that this process has."""
    gc.collect()
    files = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    names = [os.readlink(file) for file in files if os.path.islink(file)]
    with open("/proc/self/maps") as maps:
        names += maps
    return [name for name in names if name.rstrip().endswith(("/ring", "/dev/uio0"))]


def test_channels_are_listed_with_the_primary_first(nic) -> None:
    found = channels(nic, nic.find(NIC))
    assert [(c.relid, c.index, c.cpu, c.monitor_id) for c in found] == [
        (PRIMARY, 0, 0, None),
        (SUB, 1, 1, None),
        (MONITORED, 2, 0, 5),
    ]
    assert {c.rings for c in found} == {2 * RING}


def test_a_channel_without_rings_a_directory_that_is_none_and_one_that_is_going(nic) -> None:
    (directory(nic, SUB) / "ring").unlink()
    (directory(nic, SUB) / "monitor_id").unlink()
    (directory(nic, MONITORED) / "subchannel_id").unlink()
    directory(nic, SUB).with_name("power").mkdir()
    device = nic.find(NIC)
    found = channels(nic, device)
    assert [(c.relid, c.rings, c.monitor_id) for c in found] == [
        (PRIMARY, 2 * RING, None),
        (SUB, None, None),
    ]
    nic.withdraw(NIC)
    assert channels(nic, device) == []


def test_rings_are_mapped_as_they_lie(nic) -> None:
    poke(nic, PRIMARY, MASK, 77)
    with map_rings(channels(nic, nic.find(NIC))[0]) as memory:
        assert len(memory) == 2 * RING
        assert struct.unpack_from("<I", memory, MASK) == (77,)
        memory[0:4] = b"mark"
    assert (directory(nic, PRIMARY) / "ring").read_bytes()[:4] == b"mark"


def test_packets_go_both_ways_in_the_subchannels_own_rings(nic, writes) -> None:
    with open_subchannel(NIC, SUB, bus=nic) as guest, the_host(nic, SUB) as host:
        assert guest.name == f"network adapter/{SUB}"
        host.send(b"question", transaction_id=9)
        packet = guest.recv()
        assert packet is not None
        assert (packet.payload, packet.transaction_id) == (b"question", 9)
        assert guest.send(b"answer to") is True
        assert host.recv().payload[:9] == b"answer to"
    assert writes == [1], "the one try whether a signal gets there"
    assert (directory(nic, PRIMARY) / "ring").read_bytes() == bytes(2 * RING)


def test_closing_lets_everything_go(nic, writes) -> None:
    for relid, maps in ((SUB, 1), (MONITORED, 3)):
        for _ in range(2):
            channel = open_subchannel(NIC, relid, bus=nic)
            assert len(held()) == 1 + 2 * maps  # Python keeps a descriptor for each mapping
            channel.close()
            assert held() == []
    channel = open_subchannel(NIC, SUB, bus=nic)
    del channel
    assert held() == []


def test_with_a_monitor_bit_it_signals_in_the_pages(nic, writes) -> None:
    with open_subchannel(NIC, MONITORED, bus=nic) as channel:
        assert channel.send(b"") is True
    pages = Path(f"{nic.dev}/uio0").read_bytes()
    assert pages[PAGE + 2048 + MONITORED // 8] == 1 << MONITORED % 8
    assert pages[2 * PAGE + 8] == 1 << 5
    assert writes == []


def test_numbers_of_the_host_that_have_no_bit_leave_nothing_behind(nic, writes) -> None:
    (directory(nic, MONITORED) / "monitor_id").write_text("200\n")
    with pytest.raises(DeviceFaultError, match="no bit"):
        open_subchannel(NIC, MONITORED, bus=nic)
    (directory(nic, MONITORED) / "monitor_id").write_text("5\n")
    shutil.rmtree(Path(nic.path(NIC)) / "uio/uio0/maps/map2")
    with pytest.raises(DeviceFaultError, match="signalled"):
        open_subchannel(NIC, MONITORED, bus=nic)
    assert held() == []


def test_a_kernel_that_signals_only_the_primary_is_found_out(nic, monkeypatch) -> None:
    monkeypatch.setattr(UioDevice, "control", lambda device, value: poke(nic, PRIMARY, MASK, 0))
    with pytest.raises(DeviceError, match=r"6\.16"):
        open_subchannel(NIC, SUB, bus=nic)
    assert held() == []
    assert peek(nic, SUB, MASK) == 0, "as it was"
    open_subchannel(NIC, MONITORED, bus=nic).close()


def test_a_kernel_that_masks_itself_is_found_out(nic, writes) -> None:
    with open_subchannel(NIC, SUB, bus=nic) as channel:
        assert channel.recheck_every == 0
    poke(nic, SUB, MASK, 1)
    with open_subchannel(NIC, SUB, bus=nic) as channel:
        assert channel.recheck_every == 1.0


@pytest.mark.parametrize("relid", [PRIMARY, 99])
def test_what_is_no_subchannel_is_refused_with_what_there_is(nic, writes, relid: int) -> None:
    with pytest.raises(DeviceNotFoundError, match=f"{SUB}, {MONITORED}"):
        open_subchannel(NIC, relid, bus=nic)


def close_primary(bus) -> None:
    bus.set(NIC, "state", "2")


def unbind(bus) -> None:
    bus.detach(NIC)


def remove_ring(bus) -> None:
    (directory(bus, SUB) / "ring").unlink()


def cut_ring(bus) -> None:
    os.truncate(directory(bus, SUB) / "ring", 2 * RING - 8)


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        (unbind, NotBoundError, "hvring bind"),
        (close_primary, DeviceUnavailableError, "open it"),
        (remove_ring, NodeMissingError, "not open"),
        (cut_ring, DeviceFaultError, "pages"),
    ],
)
def test_what_is_missing_is_said(nic, writes, change: Callable[..., None], kind, says: str) -> None:
    change(nic)
    with pytest.raises(kind, match=says):
        open_subchannel(NIC, SUB, bus=nic)
    assert (writes, held()) == ([], [])


@pytest.mark.parametrize(("number", "kind"), [(errno.ENODEV, NodeMissingError), (errno.EINVAL, DeviceError)])
def test_a_channel_that_the_kernel_does_not_map(nic, writes, monkeypatch, number: int, kind) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(subchannels.mmap, "mmap", refuse)
    with pytest.raises(kind, match=f"sub-channel {SUB}"):
        open_subchannel(NIC, SUB, bus=nic)
    assert held() == []


def test_two_openers_of_one_subchannel(nic, writes) -> None:
    with (
        open_subchannel(NIC, SUB, bus=nic),
        open_subchannel(NIC, MONITORED, bus=nic),
        pytest.raises(DeviceBusyError, match="stop it"),
    ):
        open_subchannel(NIC, SUB, bus=nic)
    with open(directory(nic, SUB) / "ring") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DeviceBusyError):
            open_subchannel(NIC, SUB, bus=nic)
    open_subchannel(NIC, SUB, bus=nic).close()


def test_without_permission(nic, writes, monkeypatch) -> None:
    def refuse(path: str, mode: str) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(subchannels, "FileIO", refuse)
    with pytest.raises(DevicePermissionError, match="root"):
        open_subchannel(NIC, SUB, bus=nic)


@pytest.mark.parametrize("relid", [SUB, MONITORED])
def test_rings_that_are_broken_from_the_start_leave_nothing_behind(nic, writes, relid: int) -> None:
    poke(nic, relid, RING, 12345)  # the host's write index
    with pytest.raises(RingCorruptError):
        open_subchannel(NIC, relid, bus=nic)
    assert held() == []
