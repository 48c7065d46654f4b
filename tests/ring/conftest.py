# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from hvring.ring import RingConsumer, RingProducer

Ends = tuple[bytearray, RingProducer, RingConsumer]


@pytest.fixture
def ends() -> Callable[..., Ends]:
    """A ring with `data` bytes whose indices both start at `start`, and its two ends."""

    def make(data: int = 4096, start: int = 0, **consumer: object) -> Ends:
        memory = bytearray(4096 + data)
        struct.pack_into("<II", memory, 0, start, start)
        return memory, RingProducer(memory), RingConsumer(memory, **consumer)

    return make
