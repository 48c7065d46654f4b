# SPDX-License-Identifier: Apache-2.0
"""Waiting for news of devices: what counts, what does not, and that it ends (the kernel's own: tests/vm)."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from types import SimpleNamespace

import pytest

from hvring.transport import uevents, waiting
from hvring.transport.errors import (
    DeviceBusyError,
    DeviceError,
    DeviceNotFoundError,
    NodeMissingError,
    NotBoundError,
)
from hvring.transport.uevents import Uevents, come_here, wait, wait_async

KERNEL, UDEV = (0, 1), (4711, 2)


class FakeSocket:
    """Gives what it is told, datagram by datagram, then blocks."""

    endless: str | None = None

    def __init__(self, *_: object) -> None:
        self.reader, self.writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.reader.setblocking(False)
        self.senders: list[tuple[int, int]] = []
        self.bound: object = None
        self.lost = 0

    def bind(self, address: object) -> None:
        self.bound = address

    def fileno(self) -> int:
        return self.reader.fileno()

    def say(self, text: str, sender: tuple[int, int] = KERNEL) -> None:
        self.senders.append(sender)
        self.writer.send(text.encode())

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        if self.lost:
            self.lost -= 1
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
        if self.endless is not None:
            return self.endless.encode(), KERNEL
        data = self.reader.recv(size)
        return data, self.senders.pop(0)

    def close(self) -> None:
        self.reader.close()
        self.writer.close()


@pytest.fixture
def news(monkeypatch):
    monkeypatch.setattr(uevents, "socket", _module(FakeSocket))
    with Uevents() as one:
        yield one


def _module(kind: object) -> SimpleNamespace:
    """The module socket, with another class in it."""
    return SimpleNamespace(**{name: getattr(socket, name) for name in socket.__all__} | {"socket": kind})


def event(subsystem: str) -> str:
    return f"bind@/devices/x\0ACTION=bind\0DEVPATH=/devices/x\0SUBSYSTEM={subsystem}\0SEQNUM=7\0"


def test_it_listens_to_the_kernels_group(news) -> None:
    assert news._socket.bound == (0, 1)


@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ([(event("vmbus"), KERNEL)], True),
        ([(event("uio"), KERNEL)], True),
        ([(event("block"), KERNEL), (event("vmbus"), KERNEL)], True),
        ([("add@/devices/virtual/misc/vmbus!hv_kvp\0SUBSYSTEM=misc\0DEVNAME=vmbus/hv_kvp\0", KERNEL)], True),
        ([("add@/devices/virtual/misc/fuse\0SUBSYSTEM=misc\0DEVNAME=fuse\0", KERNEL)], False),
        ([(event("block"), KERNEL)], False),
        ([(event("vmbus_not"), KERNEL)], False),
        ([(event("vmbus"), UDEV)], False),
        ([], False),
    ],
)
def test_only_the_kernels_word_about_vmbus_and_uio_counts(news, said, counts: bool) -> None:
    for text, sender in said:
        news._socket.say(text, sender)
    assert news.drain() is counts
    assert news.drain() is False


def test_lost_events_are_a_reason_to_look(news) -> None:
    news._socket.lost = 1
    assert news.drain() is True


@pytest.mark.parametrize(("subsystem", "counts"), [("vmbus", True), ("block", False)])
def test_no_host_can_hold_the_loop_with_events_that_come_faster_than_they_are_read(
    news, subsystem: str, counts: bool
) -> None:
    news._socket.endless = event(subsystem)
    assert news.drain() is counts


def test_a_socket_that_fails_for_good_is_left_and_looked_past(news) -> None:
    news._socket.reader.close()
    assert news.drain() is True


def test_waiting_ends_by_news_and_goes_on_over_what_is_none(news, monkeypatch) -> None:
    monkeypatch.setattr(uevents, "LOOK_EVERY", 1000)
    news._socket.say(event("block"))
    assert wait(news, time.monotonic() + 0.01) is False
    news._socket.say(event("block"))
    news._socket.say(event("uio"))
    assert wait(news, None) is True

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(news._socket.say, event("block"))
        loop.call_later(0.01, news._socket.say, event("vmbus"))
        await wait_async(news)
        assert loop.remove_reader(news.fileno()) is False

    asyncio.run(main())


def test_it_is_looked_now_and_then_without_news(news, monkeypatch) -> None:
    monkeypatch.setattr(uevents, "LOOK_EVERY", 0.01)
    assert wait(news, None) is True
    assert wait(news, time.monotonic() + 1000) is True
    asyncio.run(wait_async(news))


@pytest.mark.parametrize(
    ("uid_map", "come"),
    [
        ("         0          0 4294967295\n", True),
        ("         0     100000      65536\n", False),
        ("", False),
        (None, False),
    ],
)
def test_events_come_to_processes_of_the_initial_user_namespace(tmp_path, uid_map, come: bool) -> None:
    (tmp_path / "self").mkdir()
    if uid_map is not None:
        (tmp_path / "self/uid_map").write_text(uid_map)
    assert come_here(str(tmp_path)) is come


@pytest.mark.parametrize(
    ("error", "here", "rarely"),
    [
        (DeviceNotFoundError("not offered"), True, True),
        (NodeMissingError("not there yet"), True, True),
        (NotBoundError("not bound"), True, True),
        (DeviceBusyError("nobody says when it is free"), True, False),
        (DeviceNotFoundError("not offered"), False, False),
    ],
)
def test_what_the_kernel_says_is_looked_for_rarely(monkeypatch, error, here: bool, rarely: bool) -> None:
    """An agent that waits for a service which its host does not offer has nothing to do."""
    monkeypatch.setattr(uevents, "come_here", lambda: here)
    seconds: list[float | None] = []

    class Done(Exception):
        pass

    async def look(notices: object, every: float | None = None) -> None:
        seconds.append(every)
        raise Done

    def attempt() -> None:
        raise error

    monkeypatch.setattr(uevents, "wait_async", look)
    with pytest.raises(Done):
        asyncio.run(waiting.opened_async(attempt, timeout=None, wait=True))
    assert seconds == [uevents.LOOK_RARELY if rarely else uevents.LOOK_EVERY]
    assert uevents.LOOK_RARELY >= 20 * uevents.LOOK_EVERY


def test_a_machine_without_such_sockets_says_so(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(uevents, "socket", _module(refuse))
    with pytest.raises(DeviceError, match="uevents"):
        Uevents()
