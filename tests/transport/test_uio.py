# SPDX-License-Identifier: Apache-2.0
"""From a bound device to an open channel, and every way in which that ends otherwise (PROTOCOL §1.6-1.9).

The device is a file that can be mapped; what only the kernel can do (interrupts, EIO) is shown in tests/vm.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import gc
import mmap
import os
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell
from hvring.errors import RingCorruptError
from hvring.transport import uevents, uio, waiting
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceFaultError,
    DeviceNotFoundError,
    DevicePermissionError,
    DeviceUnavailableError,
    NodeMissingError,
    NodePermissionError,
    NotBoundError,
    NotHyperVError,
    WrongNameError,
)
from hvring.transport.sysfs import UIO_DRIVER, Bus
from hvring.transport.uio import UioDevice, open_channel, open_channel_async
from hvring.vmbus import BY_NAME

KVP = BY_NAME["kvp"].instance_guid
PAGE = os.sysconf("SC_PAGE_SIZE")


class FakeNews:
    """In place of the kernel's uevents; each look of the waiter runs the next of ``steps``."""

    steps: ClassVar[list[Callable[[], object]]]
    made: ClassVar[list[FakeNews]]

    def __init__(self) -> None:
        self.reader, self.writer = socket.socketpair()
        self.writer.send(b"!")
        self.made.append(self)

    def fileno(self) -> int:
        return self.reader.fileno()

    def drain(self) -> bool:
        if self.steps:
            self.steps.pop(0)()
        return True

    def close(self) -> None:
        self.reader.close()
        self.writer.close()

    def __enter__(self) -> FakeNews:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@pytest.fixture
def steps(monkeypatch) -> Iterator[list]:
    """What happens on the bus while somebody waits; afterwards nobody listens any more."""
    FakeNews.steps, FakeNews.made = [], []
    monkeypatch.setattr(waiting, "Uevents", FakeNews)
    yield FakeNews.steps
    assert all(news.fileno() == -1 for news in FakeNews.made)


@contextmanager
def the_host(bus, node: str = "uio0") -> Iterator[Channel]:
    """The host's end of what is in the device's memory."""
    with open(f"{bus.dev}/{node}", "r+b") as file:
        memory = mmap.mmap(file.fileno(), 0)
    with Channel(
        memory,
        ring_size=len(memory) // 2,
        tx_offset=len(memory) // 2,
        rx_offset=0,
        control_size=PAGE,
        doorbell=EventfdDoorbell(os.eventfd(0), os.eventfd(0)),
        on_close=memory.close,
    ) as channel:
        yield channel


def descriptors() -> set[str]:
    return {f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}" for fd in os.listdir("/proc/self/fd") if _open(fd)}


def _open(fd: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{fd}")


def mappings() -> int:
    with open("/proc/self/maps") as file:
        return sum("/dev/uio" in line for line in file)


def test_a_bound_device_opens_and_packets_go_both_ways(bus) -> None:
    bus.offer("kvp", UIO_DRIVER)
    with open_channel("kvp", bus=bus) as guest, the_host(bus) as host:
        assert guest.name == "kvp"
        host.send(b"question", transaction_id=9)
        packet = guest.recv()
        assert (packet.payload, packet.transaction_id) == (b"question", 9)
        guest.tx.send(b"answer")  # past the doorbell: a file takes what is written to it into the ring
        assert host.recv().payload == b"answer\0\0"


def test_closing_leaves_no_descriptor_and_no_mapping(bus) -> None:
    bus.offer("kvp", UIO_DRIVER)
    gc.collect()
    before = descriptors()
    for _ in range(3):
        channel = open_channel("kvp", bus=bus)
        assert mappings() == 1
        channel.close()
        assert mappings() == 0
        assert descriptors() == before
    channel = open_channel("kvp", bus=bus)
    del channel
    gc.collect()
    assert (mappings(), descriptors()) == (0, before), "a channel that was dropped lets go too"


def test_a_monitored_channel_signals_in_the_pages_and_lets_them_go(bus) -> None:
    bus.offer("kvp", UIO_DRIVER, monitor_id=5, relid=12)
    with open_channel("kvp", bus=bus) as channel:
        assert mappings() == 3
        assert channel.send(b"") is True
        with open(
            f"{bus.dev}/uio0", "rb"
        ) as file:  # uio finds map N at N pages, so in a file the maps overlap
            memory = file.read()
        assert memory[PAGE + 2048 + 1] == 1 << (12 - 8)
        assert memory[2 * PAGE + 8] == 1 << 5
    assert mappings() == 0


def test_the_mask_is_cleared_at_open_and_tells_of_a_kernel_that_masks_itself(bus) -> None:
    bus.offer("kvp", UIO_DRIVER)
    bus.offer("vss", UIO_DRIVER)
    with open(f"{bus.dev}/uio1", "r+b") as file:
        file.seek(4 * PAGE + 8)
        file.write(struct.pack("<I", 1))
    with open_channel("kvp", bus=bus) as kvp, open_channel("vss", bus=bus) as vss:
        assert kvp.recheck_every == 0
        assert vss.recheck_every == 1.0
        with open(f"{bus.dev}/uio1", "rb") as file:
            assert file.read()[4 * PAGE + 8] == 0


def test_a_second_opener_is_told(bus) -> None:
    bus.offer("kvp", UIO_DRIVER)
    with open_channel("kvp", bus=bus), pytest.raises(DeviceBusyError, match="fuser"):
        open_channel("kvp", bus=bus)
    open_channel("kvp", bus=bus).close()


def test_somebody_elses_opening_is_seen_in_the_state(bus) -> None:
    bus.offer("kvp", UIO_DRIVER)
    bus.set(KVP, "state", "3")
    with pytest.raises(DeviceBusyError, match="stop it"):
        open_channel("kvp", bus=bus)


@pytest.mark.parametrize("driver", ["hv_utils", None])
def test_a_device_that_is_not_bound(bus, driver) -> None:
    bus.offer("kvp", driver)
    with pytest.raises(NotBoundError, match=f"{driver or 'no driver'}: .*hvring bind kvp"):
        open_channel("kvp", bus=bus)


def test_a_device_that_is_not_offered(bus) -> None:
    with pytest.raises(DeviceNotFoundError, match="settings"):
        open_channel("kvp", bus=bus)


def test_a_name_that_is_none(bus) -> None:
    with pytest.raises(WrongNameError, match="shutdown"):
        open_channel("kpv", bus=bus)


def test_no_vmbus(tmp_path) -> None:
    with pytest.raises(NotHyperVError):
        open_channel("kvp", bus=Bus(tmp_path, tmp_path), wait=True, timeout=None)


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.EACCES, DevicePermissionError, "root"),
        (errno.EPERM, DevicePermissionError, "udev"),
        (errno.EBUSY, DeviceBusyError, "stop"),
        (errno.EINVAL, DeviceFaultError, "dmesg"),
        (errno.ENOMEM, DeviceFaultError, "Cannot allocate memory"),
        (errno.ENODEV, NodeMissingError, "hvring bind"),
    ],
)
def test_a_node_that_does_not_open(bus, monkeypatch, steps, number: int, kind, says: str) -> None:
    def refuse(path, flags, *mode):
        raise OSError(number, os.strerror(number))

    bus.offer("kvp", UIO_DRIVER)
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(kind, match=says):
        open_channel("kvp", bus=bus, timeout=0)


OTHER = "11223344-5566-7788-99aa-bbccddeeff00"


def _odd_rings(bus) -> None:
    (Path(bus.path(KVP)) / "uio/uio0/maps/map0/size").write_text("0x1004\n")


def _tiny_rings(bus) -> None:
    (Path(bus.path(KVP)) / "uio/uio0/maps/map0/size").write_text("0x1000\n")


def _no_map(bus) -> None:
    Path(f"{bus.dev}/uio0").unlink()
    Path(f"{bus.dev}/uio0").symlink_to("/dev/null")


def _no_monitor_page(bus) -> None:
    bus.set(KVP, "monitor_id", "5")
    shutil.rmtree(Path(bus.path(KVP)) / "uio/uio0/maps/map2")


def _no_bit(bus) -> None:
    bus.set(KVP, "monitor_id", "200")


def _no_relid(bus) -> None:
    bus.set(KVP, "monitor_id", "5")
    bus.set(KVP, "id", str(1 << 20))


def _wrong_class(bus) -> None:
    bus.set(KVP, "class_id", f"{{{OTHER}}}")


def _several(bus) -> None:
    bus.withdraw(KVP)
    for n in "89":
        bus.offer(OTHER[:-1] + n, UIO_DRIVER, class_guid=BY_NAME["kvp"].class_guid)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_odd_rings, "pages"),
        (_tiny_rings, "pages"),
        (_no_map, "map 0"),
        (_no_monitor_page, "monitor page"),
        (_no_bit, "no bit"),
        (_no_relid, "no bit"),
        (_wrong_class, "class"),
        (_several, "2 devices"),
    ],
)
def test_nothing_that_a_host_offers_is_final_but_nobody_waits_in_silence(bus, spoil, says: str) -> None:
    """Whoever serves tries again after a DeviceFaultError, and can tell it: no opener swallows it."""
    bus.offer("kvp", UIO_DRIVER)
    spoil(bus)
    before = descriptors()
    for _ in range(2):
        with pytest.raises(DeviceFaultError, match=says) as caught:
            open_channel("kvp", bus=bus, wait=True, timeout=None)
        with pytest.raises(type(caught.value)):
            asyncio.run(open_channel_async("kvp", bus=bus, wait=True, timeout=None))
        del caught
    assert (mappings(), descriptors()) == (0, before)


def test_what_may_pass_and_what_needs_somebody() -> None:
    kinds = set(_kinds(DeviceError))
    assert not any(kind.is_final for kind in kinds if issubclass(kind, DeviceUnavailableError))
    assert {kind.__name__ for kind in kinds if kind.is_final} == {
        "NotHyperVError",
        "WrongNameError",
        "DevicePermissionError",
        "NodePermissionError",
        "DriverMissingError",
        "BindRefusedError",
    }


def _kinds(base: type) -> Iterator[type]:
    yield base
    for kind in base.__subclasses__():
        yield from _kinds(kind)


def _refusing(monkeypatch, times: int) -> list[str]:
    """The node refuses this user so many times, as one does that udev has not given away yet."""
    asked: list[str] = []
    opened = os.open

    def refuse(path, flags, *mode, **where):
        if str(path).endswith("/uio0"):
            asked.append(path)
            if len(asked) <= times:
                raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return opened(path, flags, *mode, **where)

    monkeypatch.setattr(os, "open", refuse)
    return asked


def test_a_node_that_udev_gives_away_a_moment_later_is_waited_for(bus, steps, monkeypatch) -> None:
    bus.offer("kvp", UIO_DRIVER)
    asked = _refusing(monkeypatch, 3)
    open_channel("kvp", bus=bus).close()
    assert len(asked) == 4
    asked.clear()
    asyncio.run(open_channel_async("kvp", bus=bus, wait=True, timeout=None)).close()
    assert len(asked) == 4


def test_a_node_that_is_never_given_away_is_an_error_also_for_those_who_wait(bus, steps, monkeypatch) -> None:
    bus.offer("kvp", UIO_DRIVER)
    _refusing(monkeypatch, 10**9)
    monkeypatch.setattr(waiting, "_GIVEN_AWAY_WITHIN", 0.05)
    with pytest.raises(NodePermissionError):
        open_channel("kvp", bus=bus, wait=True, timeout=None)
    with pytest.raises(NodePermissionError):
        asyncio.run(open_channel_async("kvp", bus=bus, wait=True, timeout=None))


def test_where_nothing_can_be_listened_to_it_is_looked_now_and_then(bus, monkeypatch) -> None:
    def none() -> None:
        raise DeviceFaultError("cannot listen to the kernel's uevents: Too many open files")

    looked: list[str] = []
    find = bus.find

    def late(name: str):
        looked.append(name)
        if len(looked) % 3 == 0:
            bus.attach(KVP, UIO_DRIVER) if bus.read(KVP).driver is None else None
        return find(name)

    bus.offer("kvp")
    monkeypatch.setattr(bus, "find", late)
    monkeypatch.setattr(waiting, "Uevents", none)
    monkeypatch.setattr(uevents, "LOOK_EVERY", 0.01)
    open_channel("kvp", bus=bus, wait=True, timeout=None).close()
    assert len(looked) == 3
    bus.detach(KVP)
    looked.clear()
    asyncio.run(open_channel_async("kvp", bus=bus, wait=True, timeout=None)).close()
    assert len(looked) == 3


@pytest.mark.parametrize("monitor_id", [None, 5])
def test_rings_that_are_broken_from_the_start_leave_nothing_behind(bus, monitor_id) -> None:
    bus.offer("kvp", UIO_DRIVER, monitor_id=monitor_id)
    with open(f"{bus.dev}/uio0", "r+b") as file:
        file.seek(4 * PAGE)
        file.write(struct.pack("<I", 12345))  # the host's write index
    before = descriptors()
    for _ in range(2):
        with pytest.raises(RingCorruptError):
            open_channel("kvp", bus=bus)
    assert (mappings(), descriptors()) == (0, before)


def test_a_number_that_went_to_another_device_while_it_was_opened(bus, monkeypatch, steps) -> None:
    bus.offer("kvp", UIO_DRIVER)
    opened = os.open

    def late(path, flags, *mode, **where):
        descriptor = opened(path, flags, *mode, **where)
        if str(path).endswith("/uio0"):
            bus.detach(KVP)
        return descriptor

    monkeypatch.setattr(os, "open", late)
    before = descriptors()
    with pytest.raises(NodeMissingError, match="went away"):
        uio.open_now("kvp", bus=bus)
    assert descriptors() == before


def test_a_node_that_comes_late_is_waited_for(bus, steps) -> None:
    bus.late_nodes = True
    bus.offer("kvp", UIO_DRIVER)
    steps += [lambda: None, lambda: bus.add_node(KVP)]
    with open_channel("kvp", bus=bus) as channel:
        assert channel.name == "kvp"
    assert steps == []


def test_a_node_that_does_not_come_is_given_up(bus, steps) -> None:
    bus.late_nodes = True
    bus.offer("kvp", UIO_DRIVER)
    with pytest.raises(NodeMissingError, match="devtmpfs"):
        open_channel("kvp", bus=bus, timeout=0.01)


def test_with_wait_a_device_may_come_be_bound_and_become_free(bus, steps) -> None:
    def bind() -> None:
        bus.attach(KVP, UIO_DRIVER)
        bus.set(KVP, "state", "3")

    steps += [
        lambda: bus.offer("kvp", "hv_utils"),
        lambda: bus.detach(KVP),
        bind,
        lambda: bus.set(KVP, "state", "2"),
    ]
    with open_channel("kvp", bus=bus, wait=True, timeout=None) as channel:
        assert channel.name == "kvp"
    assert steps == []


def test_with_wait_time_may_run_out(bus, steps) -> None:
    with pytest.raises(DeviceNotFoundError):
        open_channel("kvp", bus=bus, wait=True, timeout=0.01)


def test_asyncio_waits_for_the_device_and_its_end_is_the_next_one(bus, steps) -> None:
    async def main() -> None:
        steps.extend((lambda: bus.offer("kvp", "hv_utils"), lambda: bus.detach(KVP)))
        steps.append(lambda: bus.attach(KVP, UIO_DRIVER))
        first = await open_channel_async("kvp", bus=bus, wait=True, timeout=None)
        first.close()
        bus.withdraw(KVP)
        steps.append(lambda: bus.offer("kvp", UIO_DRIVER))
        (await open_channel_async("kvp", bus=bus, wait=True, timeout=None)).close()

    asyncio.run(main())


def test_asyncio_gives_up_in_time_and_says_why(bus, steps) -> None:
    bus.offer("kvp", "hv_utils")
    with pytest.raises(NotBoundError):
        asyncio.run(open_channel_async("kvp", bus=bus, wait=True, timeout=0.01))
    with pytest.raises(NotBoundError):
        asyncio.run(open_channel_async("kvp", bus=bus, timeout=None))


def test_an_opening_that_is_cancelled_leaves_nothing_behind(bus, steps) -> None:
    async def main() -> None:
        waiting = asyncio.ensure_future(open_channel_async("kvp", bus=bus, wait=True, timeout=None))
        while not FakeNews.made:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_a_device_that_came_back_to_its_driver_is_bound_again_on_request(bus, steps) -> None:
    def bind() -> None:
        if bus.find("kvp").driver == "hv_utils":
            bus.detach(KVP)
            bus.attach(KVP, UIO_DRIVER)

    async def main() -> None:
        steps.append(lambda: bus.offer("kvp", "hv_utils"))
        (await open_channel_async("kvp", bus=bus, wait=True, timeout=None, prepare=bind)).close()

    asyncio.run(main())


def test_the_plain_device_reads_waits_and_controls(tmp_path: Path) -> None:
    maps = tmp_path / "sys/class/uio/uio3/maps/map0"
    maps.mkdir(parents=True)
    for key, text in (("name", "registers"), ("size", "0x2000"), ("offset", "0x0"), ("addr", "0x1000")):
        (maps / key).write_text(f"{text}\n")
    node = tmp_path / "uio3"
    os.mkfifo(node)
    with UioDevice(node, sysfs=tmp_path / "sys") as device:
        assert device.maps == (("registers", 0x2000, 0),)
        assert device.read() is None
        assert device.wait(0) is None
        device.control(1)  # a fifo gives back what was written
        assert device.wait() == 1
        assert device.read() is None
        with pytest.raises(DeviceError, match="map 0"):
            device.map()
        with pytest.raises(IndexError):
            device.map(1)
    assert device.fileno() == -1
    device.close()


def test_the_plain_device_says_when_it_was_taken_away(tmp_path: Path, monkeypatch) -> None:
    node = tmp_path / "uio3"
    os.mkfifo(node)

    def gone(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with UioDevice(node, sysfs=tmp_path) as device:
        monkeypatch.setattr(os, "read", gone)
        monkeypatch.setattr(os, "write", gone)
        for act in (device.read, lambda: device.control(1)):
            with pytest.raises(DeviceUnavailableError, match="taken away"):
                act()
        monkeypatch.undo()


def test_a_lock_of_the_node_is_what_keeps_others_out(bus) -> None:
    bus.offer("kvp", UIO_DRIVER)
    with open(f"{bus.dev}/uio0") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(DeviceBusyError):
            open_channel("kvp", bus=bus)
