# SPDX-License-Identifier: Apache-2.0
"""Fault injection: say anything to a guest, hear its unchecked answer, reach into the shared memory."""

from __future__ import annotations

import asyncio
import mmap
from collections import deque
from types import TracebackType
from typing import Final

from hvring.host.errors import HostError, NoAnswerError, NotReadyError
from hvring.host.link import Link, Packet
from hvring.host.ring_link import RingLink
from hvring.host.session import Session

_COST: Final = 256  # bytes that a packet takes beside its payload, about
_MAX_HEARD: Final = 1 << 24  # bytes of packets that nobody fetched; a guest may send without end


class Faults:
    """One service's channel without the host's own traffic, as ``async with host.faults("kvp") as faults:``.

    Entering waits for the request that is under way. Nothing that the guest sends meanwhile is checked,
    except for needless signals and a broken ring; what it still sends afterwards is an answer that no
    request waits for.  Packets that nobody fetches are kept up to 16 MiB; those behind them are lost, and a violation.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._packets: deque[Packet] = deque()
        self._heard = 0
        self._arrived = asyncio.Event()

    async def __aenter__(self) -> Faults:
        await self._session.lock.acquire()
        try:
            self._link()
        except BaseException:
            self._session.lock.release()
            raise
        self._session.tap = self._take
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.tap = None
        self._session.lock.release()

    @property
    def memory(self) -> mmap.mmap:
        """Both rings as the guest sees them, guest-to-host first; each ``ring_size`` bytes."""
        return self._ring_link().memory

    @property
    def ring_size(self) -> int:
        """Bytes of ONE ring, control page included."""
        return self._ring_link().ring_size

    def send(self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0) -> None:
        """Put one packet with any payload on the ring; RingFullError when there is no room."""
        self._link().send(payload, transaction_id=transaction_id, packet_type=packet_type, flags=flags)

    def signal(self) -> None:
        """Wake the guest for nothing."""
        self._ring_link().signal()

    async def receive(self, timeout: float = 5.0) -> Packet:
        """The next packet from the guest, unchecked. NoAnswerError after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while not self._packets:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            raise NoAnswerError(f"{self._session.name}: no packet within {timeout:g} s")
        packet = self._packets.popleft()
        self._heard -= len(packet.payload) + _COST
        return packet

    async def exchange(
        self,
        payload: bytes,
        *,
        transaction_id: int = 0,
        packet_type: int = 6,
        flags: int = 0,
        timeout: float = 5.0,
    ) -> Packet | None:
        """Send, and return the next packet; None when the guest stays silent for ``timeout`` seconds."""
        self.send(payload, transaction_id=transaction_id, packet_type=packet_type, flags=flags)
        try:
            return await self.receive(timeout)
        except NoAnswerError:
            return None

    def _take(self, packet: Packet) -> None:
        cost = len(packet.payload) + _COST
        if self._heard + cost > _MAX_HEARD:
            self._session.violation("packet", "more packets than anybody fetches")
            return
        self._heard += cost
        self._packets.append(packet)
        self._arrived.set()

    def _link(self) -> Link:
        if self._session.link is None:
            raise NotReadyError(f"{self._session.name}: no guest is attached")
        return self._session.link

    def _ring_link(self) -> RingLink:
        link = self._link()
        if not isinstance(link, RingLink):
            raise HostError(f"{self._session.name}: this channel's rings are not in reach")
        return link
