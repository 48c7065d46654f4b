# SPDX-License-Identifier: Apache-2.0
"""The host's end of a channel in shared memory, on an event loop; the guest's signals are counted."""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import Final

from hvring.channel import ROOM_RECHECK, EventfdDoorbell
from hvring.errors import RingCorruptError
from hvring.host.errors import NotReadyError
from hvring.ring import Packet, RingConsumer, RingProducer
from hvring.transport.virtual import Offer

_BURST: Final = 64  # packets that are taken before other tasks have their turn


class RingLink:
    """A Link over both rings of an Offer.

    ``received`` gets every packet, of whatever type. ``needless`` gets the number of signals that the rules
    of PROTOCOL §2.6 and §2.7 do not allow. ``broken`` is called once when the guest corrupted a ring; the
    link is of no use then. All are called from the event loop.

    The guest may signal once for each time that it made the ring non-empty while it was not masked. It
    decides and signals in two steps and the host may drain in between, so one signal of an earlier arming
    may come together with that of the present one: the credit is never more than two.
    """

    def __init__(
        self,
        offer: Offer,
        *,
        received: Callable[[Packet], None],
        needless: Callable[[int], None],
        broken: Callable[[RingCorruptError], None],
    ) -> None:
        self.memory = offer.memory
        self.ring_size = offer.ring_size
        self.open = True
        self._offer = offer
        self._rx = RingConsumer(offer.memory, 0, offer.ring_size, types=None)
        self._tx = RingProducer(offer.memory, offer.ring_size, offer.ring_size)
        self._received, self._needless, self._broken = received, needless, broken
        self._loop = asyncio.get_running_loop()
        self._paused = False
        self._fresh = False  # armed since the last packet was found
        self._credit = 0
        self._room_credit = 0
        self._room: asyncio.Event | None = None
        # The guest holds both eventfds, too, and must not be able to make this loop wait at them.
        self._doorbell = EventfdDoorbell(offer.host_event, offer.guest_event, closefd=False)
        self._loop.add_reader(offer.guest_event, self._wake)
        self._loop.call_soon(self._wake)

    def send(self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0) -> None:
        """Put one packet on the ring; RingFullError without room, NotReadyError without a guest."""
        if not self.open:
            raise NotReadyError("the guest is gone")
        try:
            due = self._tx.send(payload, transaction_id=transaction_id, packet_type=packet_type, flags=flags)
        except RingCorruptError as error:
            self._break(error)
            raise NotReadyError(f"the guest corrupted the ring: {error}") from error
        if due:
            self.signal()

    async def send_when_room(
        self, payload: bytes, *, transaction_id: int = 0, packet_type: int = 6, flags: int = 0
    ) -> None:
        """As :meth:`send`, but wait for room (PROTOCOL §2.7); PacketTooLargeError if there can be none."""
        if len(payload) <= self._tx.max_payload and not self._fits(len(payload)):
            self._room_credit = 1
            self._room = room = asyncio.Event()
            try:
                while not self._fits(len(payload)):
                    room.clear()
                    try:
                        async with asyncio.timeout(ROOM_RECHECK):
                            await room.wait()
                    except TimeoutError:
                        pass
            finally:
                self._room = None
                if self.open:
                    self._tx.unwant_room()
        self.send(payload, transaction_id=transaction_id, packet_type=packet_type, flags=flags)

    def signal(self) -> None:
        """Ring the guest's doorbell, needed or not."""
        if self.open:
            self._doorbell.signal()

    def unread(self) -> bool:
        """Did the guest leave something that was sent in the ring?"""
        try:
            return self._tx.free < self._tx.size
        except RingCorruptError:
            return True

    def silent(self) -> bool:
        """Is there something from the guest that it ought to have signalled by now, and did not?"""
        try:
            return self.open and self._fresh and self._rx.available > 0 and not self._rung()
        except RingCorruptError:
            return False

    def look(self) -> None:
        """Take what is there, signalled or not."""
        self._wake()

    def pause(self) -> None:
        """Take nothing until :meth:`resume`, but for what was taken from the ring already."""
        if self.open and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._offer.guest_event)

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        if self.open and self._paused:
            self._paused = False
            self._loop.add_reader(self._offer.guest_event, self._wake)
            self._loop.call_soon(self._wake)

    def close(self) -> None:
        """Take what the guest still sent, then let go of everything. May be called twice."""
        if not self.open:
            return
        self._wake(again=False)
        if self.open:
            self._release()

    def _fits(self, length: int) -> bool:
        """Is there room, or no use in waiting for it? Otherwise the guest is asked to signal."""
        try:
            return not self.open or self._tx.want_room(length)
        except RingCorruptError as error:
            self._break(error)
            return True

    def _break(self, error: RingCorruptError) -> None:
        if self.open:
            self._release()
            self._broken(error)

    def _release(self) -> None:
        self.open = False
        self._loop.remove_reader(self._offer.guest_event)
        self._offer.close()
        if self._room is not None:
            self._room.set()

    def _rung(self) -> bool:
        poll = select.poll()
        poll.register(self._offer.guest_event, select.POLLIN)
        return bool(poll.poll(0))

    def _wake(self, again: bool = True) -> None:
        """One round: take the signals, mask, drain, account, arm; until arming finds nothing."""
        if not self.open or self._paused:
            return
        try:
            while True:
                drained = self._round()
                if not self.open or self._paused:
                    return
                if not drained:
                    if again:
                        self._loop.call_soon(self._wake)
                    return
                self._fresh = True
                if not self._rx.arm() or not again:
                    return
        except RingCorruptError as error:
            self._break(error)

    def _round(self) -> bool:
        """False: the guest sends faster than it should be listened to at one go."""
        rung = self._doorbell.take()
        if rung and self._room is not None:
            self._room.set()
        self._rx.mask()
        packets = self._rx.recv_many(_BURST)
        if packets and self._fresh:
            self._fresh = False
            self._credit = min(self._credit + 1, 2)
        self._account(rung)
        if self._rx.take_signal():
            self.signal()
        for packet in packets:
            if self.open:
                self._received(packet)
        return len(packets) < _BURST

    def _account(self, rung: int) -> None:
        self._credit -= rung
        if self._credit < 0:
            allowed = min(self._room_credit, -self._credit)
            self._room_credit -= allowed
            excess = -self._credit - allowed
            self._credit = 0
            if excess:
                self._needless(excess)
