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

from hvring.transport import uevents
from hvring.transport.errors import DeviceError
from hvring.transport.uevents import Uevents, wait, wait_async

KERNEL, UDEV = (0, 1), (4711, 2)


class FakeSocket:
    """Gives what it is told, datagram by datagram, then blocks."""

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


def test_a_machine_without_such_sockets_says_so(monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPROTONOSUPPORT, os.strerror(errno.EPROTONOSUPPORT))

    monkeypatch.setattr(uevents, "socket", _module(refuse))
    with pytest.raises(DeviceError, match="uevents"):
        Uevents()
