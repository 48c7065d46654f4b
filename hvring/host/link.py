# SPDX-License-Identifier: Apache-2.0
"""What the host needs of an open channel; hvring has one over shared memory, a VMM may bring its own."""

from __future__ import annotations

from typing import Protocol


class Packet(Protocol):
    """What a link receives; hvring.ring.Packet is one. ``flags`` are the descriptor's."""

    @property
    def type(self) -> int: ...
    @property
    def flags(self) -> int: ...
    @property
    def transaction_id(self) -> int: ...
    @property
    def payload(self) -> bytes: ...


class Link(Protocol):
    """The host's end of one open channel.

    Whoever makes one gives it to a session's ``opened``, every packet that comes to ``received``, and says
    ``closed`` at the end.
    """

    def send(self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0) -> None:
        """Put one packet on the ring; RingFullError without room, NotReadyError without a guest."""
        ...

    async def send_when_room(
        self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0
    ) -> None:
        """As :meth:`send`, but wait for room; PacketTooLargeError if there can be none."""
        ...

    def unread(self) -> bool:
        """Did the guest leave something that was sent in the ring?"""
        ...

    def silent(self) -> bool:
        """Is there something from the guest that it ought to have signalled by now, and did not?"""
        ...

    def look(self) -> None:
        """Take what is there, signalled or not."""
        ...

    def close(self) -> None:
        """Take what the guest still sent, then let go of everything. May be called twice."""
        ...


class PausableLink(Link, Protocol):
    """A link whose owner may have enough for a while; hvring's own is one."""

    def pause(self) -> None:
        """Receive nothing until :meth:`resume`; the guest finds its ring full by and by."""
        ...

    def resume(self) -> None: ...
