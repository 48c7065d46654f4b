# SPDX-License-Identifier: Apache-2.0
"""Every error that hvring raises, as one tree under :class:`HvringError`."""

from __future__ import annotations


class HvringError(Exception):
    """The root: ``except HvringError`` catches all that this package raises on purpose."""


class RingError(HvringError):
    """Something is wrong with, or on, a ring buffer."""


class RingFullError(RingError):
    """There is no room for the packet now; nothing was written (PROTOCOL §2.4)."""


class PacketTooLargeError(RingFullError):
    """The packet cannot fit into this ring even when the ring is empty, or exceeds what a descriptor can say."""


class RingCorruptError(RingError):
    """The other side broke the rules of the ring (PROTOCOL §2.1, §2.5); the stream cannot be trusted any more."""


class BufferTooSmallError(RingError):
    """The caller's buffer cannot hold the next packet; the packet stays in the ring."""


class ChannelError(HvringError):
    """A channel cannot do what was asked of it."""


class ChannelClosedError(ChannelError):
    """The channel was closed on this side."""


class ChannelRescindedError(ChannelError):
    """The host took the channel back, or died (PROTOCOL §1.9); wait for a new offer and open it again."""


class EndpointError(HvringError):
    """A virtual host cannot be reached, refused, or does not keep to the endpoint's rules."""


class MessageError(HvringError):
    """An integration-service message that cannot be used (PROTOCOL §3)."""


class ShortMessageError(MessageError):
    """The message ends before a field that is needed."""


class LyingLengthError(MessageError):
    """A length or count in the message points beyond the bytes that came."""


class ReplyError(MessageError):
    """A guest's reply breaks the rules that a host checks (PROTOCOL §3.1, §5.2)."""


class EffectError(HvringError):
    """An effect on this machine failed; ``status`` is what the host is told (PROTOCOL §3.3)."""

    def __init__(self, message: str, status: int = 0x80004005) -> None:
        super().__init__(message)
        self.status = status


class EffectBusyError(EffectError):
    """Not yet: what the effect needs is in use, or it takes its time; the same attempt may work a moment later."""
