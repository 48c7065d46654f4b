# SPDX-License-Identifier: Apache-2.0
"""Both sides of a channel in one process, over the same memory and eventfds that two processes would share."""

from __future__ import annotations

import mmap
import os
import select
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell

PEER = Path(__file__).with_name("peer.py")
Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Callable[..., Pair]]:
    """A guest's and a host's channel with rings of `ring_size` bytes; closing one rescinds the other."""
    opened: list[Channel] = []

    def make(ring_size: int = 8192) -> Pair:
        memory = mmap.mmap(-1, 2 * ring_size)
        to_host, to_guest = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(2))
        guest_life, host_life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        guest = Channel(
            memory,
            ring_size=ring_size,
            tx_offset=0,
            rx_offset=ring_size,
            doorbell=EventfdDoorbell(os.dup(to_host), os.dup(to_guest)),
            lifeline=guest_life.detach(),
            name="guest",
        )
        host = Channel(
            memory,
            ring_size=ring_size,
            tx_offset=ring_size,
            rx_offset=0,
            doorbell=EventfdDoorbell(to_guest, to_host),
            lifeline=host_life.detach(),
            name="host",
        )
        opened.extend((guest, host))
        return guest, host

    yield make
    for channel in opened:
        channel.close()


class Link:
    """The descriptors of one channel, and processes that use them."""

    def __init__(self, ring_size: int) -> None:
        self.ring_size = ring_size
        memory = os.memfd_create("test")
        os.ftruncate(memory, 2 * ring_size)
        self.guest_life, self.host_life = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.shared = [memory, os.eventfd(0), os.eventfd(0)]
        self.processes: list[subprocess.Popen[str]] = []

    def start(self, role: str, side: str, *numbers: int) -> subprocess.Popen[str]:
        life = self.guest_life if side == "guest" else self.host_life
        descriptors = [*self.shared, life.fileno()]
        process = subprocess.Popen(
            [
                sys.executable,
                str(PEER),
                role,
                side,
                str(self.ring_size),
                *map(str, descriptors),
                *map(str, numbers),
            ],
            pass_fds=descriptors,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        life.close()
        self.processes.append(process)
        return process

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()
        for descriptor in self.shared:
            os.close(descriptor)
        self.guest_life.close()
        self.host_life.close()


@pytest.fixture
def link():
    links: list[Link] = []

    def make(ring_size: int) -> Link:
        links.append(Link(ring_size))
        return links[-1]

    yield make
    for one in links:
        one.close()


@pytest.fixture
def counters() -> Callable[[subprocess.Popen[str]], dict[str, int]]:
    """What a process prints when its work is done."""

    def counters(process: subprocess.Popen[str]) -> dict[str, int]:
        assert select.select([process.stdout], [], [], 300)[0], "a process hangs"
        line = process.stdout.readline()
        assert line, "a process ended early"
        return {key: int(value) for key, value in (word.split("=") for word in line.split())}

    return counters


@pytest.fixture
def peer() -> ModuleType:
    """peer.py, for a side of the link in this process."""
    sys.path.insert(0, str(PEER.parent))
    try:
        import peer
    finally:
        sys.path.pop(0)
    return peer
