# SPDX-License-Identifier: Apache-2.0
"""Every error that hvring raises, as one tree under :class:`HvringError`."""

from __future__ import annotations

from typing import Final

from hvring.reasons import Reason, of_errno
from hvring.status import Status


class HvringError(Exception):
    """The root: ``except HvringError`` catches all that this package raises on purpose.

    ``is_final``: asking again is useless until somebody on this machine changes something.  Never true of what the
    other side can cause.
    """

    is_final = False


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


class ChannelRingClosedError(ChannelClosedError, RingError):
    """A ring, or a claim or view of it, whose channel was closed on this side."""


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


class UnknownOperationError(MessageError):
    """A message of the right type that asks for something this service does not know."""


class ReplyError(MessageError):
    """A guest's reply breaks the rules that a host checks (PROTOCOL §3.1, §5.2)."""


_BY_STATUS: Final[dict[int, Reason]] = {
    Status.DISK_FULL: Reason.DISK_FULL,
    Status.ALREADY_EXISTS: Reason.ALREADY_EXISTS,
    Status.ACCESS_DENIED: Reason.PERMISSION_DENIED,
    Status.NOT_SUPPORTED: Reason.NOT_SUPPORTED,
}


class EffectError(HvringError):
    """An effect on this machine failed; ``status`` is what the host is told (PROTOCOL §3.3)."""

    def __init__(self, message: str, status: int = Status.FAIL, reason: Reason | None = None) -> None:
        """``reason``: None leaves it to what is known otherwise, see :attr:`reason`."""
        super().__init__(message)
        self.status = status
        self._reason = reason

    @property
    def reason(self) -> Reason:
        """As it was given; else what the error behind this one or the status says."""
        if self._reason is not None:
            return self._reason
        cause = self.__cause__
        found = reason_of(cause) if isinstance(cause, EffectError | OSError) else Reason.FAILED
        return _BY_STATUS.get(self.status, found) if found is Reason.FAILED else found


def reason_of(error: BaseException) -> Reason:
    """The name for it, whatever was raised."""
    if isinstance(error, EffectError):
        return error.reason
    if isinstance(error, OSError):
        return of_errno(error.errno)
    if isinstance(error, MessageError):
        return Reason.UNKNOWN_OPERATION if isinstance(error, UnknownOperationError) else Reason.BAD_REQUEST
    return Reason.FAILED if isinstance(error, HvringError) else Reason.UNEXPECTED
