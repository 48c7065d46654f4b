# SPDX-License-Identifier: Apache-2.0
"""Hyper-V VMBus rings and the six integration services for Linux guests.

``Channel`` and the errors are here; ``Agent`` and ``serve`` are loaded when they are first used, so that a program
that needs only a ring does not pay for asyncio.
"""

from __future__ import annotations

from hvring.channel import Channel
from hvring.errors import (
    BufferTooSmallError,
    ChannelClosedError,
    ChannelError,
    ChannelRescindedError,
    EffectError,
    EndpointError,
    HvringError,
    LyingLengthError,
    MessageError,
    PacketTooLargeError,
    ReplyError,
    RingCorruptError,
    RingError,
    RingFullError,
    ShortMessageError,
)
from hvring.ring import Packet, RingConsumer, RingProducer

TYPE_CHECKING = False  # typing's own would cost half of this module's import time
if TYPE_CHECKING:
    from hvring.agent import Agent, serve

__version__ = "0.1.0.dev0"

__all__ = [
    "Agent",
    "BufferTooSmallError",
    "Channel",
    "ChannelClosedError",
    "ChannelError",
    "ChannelRescindedError",
    "EffectError",
    "EndpointError",
    "HvringError",
    "LyingLengthError",
    "MessageError",
    "Packet",
    "PacketTooLargeError",
    "ReplyError",
    "RingConsumer",
    "RingCorruptError",
    "RingError",
    "RingFullError",
    "RingProducer",
    "ShortMessageError",
    "serve",
]


def __getattr__(name: str) -> object:
    if name in ("Agent", "serve"):
        from hvring import agent

        return getattr(agent, name)
    raise AttributeError(f"module 'hvring' has no attribute {name!r}")
