# SPDX-License-Identifier: Apache-2.0
"""Both sides of a channel in one process, over the same memory and eventfds that two processes would share."""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Callable, Iterator

import pytest

from hvring import Channel
from hvring.channel import EventfdDoorbell

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
