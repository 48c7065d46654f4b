# SPDX-License-Identifier: Apache-2.0
"""Hyper-V VMBus rings and the six integration services for Linux guests.

The errors are here; everything else is loaded when it is first used, so that a program that needs only a ring does not
pay for the services, and one that needs only the pools of data exchange (``hvring.pools``) not for the extensions.
"""

from __future__ import annotations

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

TYPE_CHECKING = False  # typing's own would cost half of this module's import time
if TYPE_CHECKING:
    from hvring.agent import Agent, serve
    from hvring.channel import Channel
    from hvring.ring import Packet, RingConsumer, RingProducer

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


_HOMES = {
    "Agent": "hvring.agent",
    "Channel": "hvring.channel",
    "Packet": "hvring.ring",
    "RingConsumer": "hvring.ring",
    "RingProducer": "hvring.ring",
    "serve": "hvring.agent",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    found: object
    if name in _HOMES:
        found = getattr(import_module(_HOMES[name]), name)
    elif name in ("channel", "ring"):
        found = import_module(f"hvring.{name}")
    else:
        raise AttributeError(f"module 'hvring' has no attribute {name!r}")
    globals()[name] = found  # the next use costs nothing
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
