# SPDX-License-Identifier: Apache-2.0
"""Ask the guest whether it lives (PROTOCOL §4.3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from enum import Enum

from hvring.errors import MessageError
from hvring.events import EventKind
from hvring.host.errors import GuestStatusError, HostError, NoAnswerError
from hvring.host.session import Session
from hvring.ic import ApplicationState, Heartbeat


class Contact(Enum):
    """What the host makes of the last beats."""

    NONE = "no contact"
    OK = "ok"
    LOST = "lost contact"


@dataclass(frozen=True, slots=True)
class HeartbeatStatus:
    """``application`` is None before the first answer; ``misses`` are those in a row."""

    contact: Contact = Contact.NONE
    application: ApplicationState | None = None
    sequence: int = 0
    misses: int = 0

    def __str__(self) -> str:
        if self.application is None:
            return self.contact.value
        return f"{self.contact.value}, applications {self.application.name.lower()}"


class HeartbeatVerbs:
    """The heartbeat's state, and a beat on demand."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._status = HeartbeatStatus()
        self._changed = asyncio.Event()
        session.background = self._keep_beating

    @property
    def status(self) -> HeartbeatStatus:
        """What the host makes of the guest now; as before the first beat while none is attached."""
        return self._status if self._session.link is not None else HeartbeatStatus()

    async def wait_contact(self, contact: Contact = Contact.OK) -> HeartbeatStatus:
        """Until the host's view is this one."""
        while self.status.contact is not contact:
            self._changed.clear()
            await self._changed.wait()
        return self.status

    async def beat(self) -> Heartbeat:
        """One exchange now; NoAnswerError when it takes longer than the latency."""
        before = self._status
        sent = Heartbeat(before.sequence)
        try:
            reply = await self._session.ask(
                "heartbeat", sent.encode(), timeout=self._session.timing.heartbeat_latency
            )
            if reply.status:
                raise GuestStatusError("heartbeat", "heartbeat", reply.status)
            beat = self._session.parse("heartbeat", reply, Heartbeat.decode)
        except (NoAnswerError, GuestStatusError, MessageError):
            self._missed()
            raise
        if beat.sequence != sent.next().sequence:
            self._session.violation("heartbeat", f"sequence {beat.sequence} in the answer to {sent.sequence}")
        try:
            application = ApplicationState(beat.state)
        except ValueError:
            self._session.violation("heartbeat", f"application state {beat.state} is not known")
            application = ApplicationState.UNKNOWN
        # Both sides count one up.
        self._set(HeartbeatStatus(Contact.OK, application, (beat.sequence + 1) % 2**64))
        return beat

    def _missed(self) -> None:
        old = self._status
        misses = old.misses + 1
        contact = Contact.LOST if misses >= self._session.timing.heartbeat_misses else old.contact
        self._set(HeartbeatStatus(contact, old.application, old.sequence, misses))

    def _set(self, new: HeartbeatStatus) -> None:
        old, self._status = self._status, new
        self._changed.set()
        if (old.contact, old.application) != (new.contact, new.application):
            self._session.tell(EventKind.CONTACT, str(new))

    async def _keep_beating(self) -> None:
        self._status = HeartbeatStatus()
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            try:
                await self.beat()
            except (HostError, MessageError):
                pass
            due = max(due + self._session.timing.heartbeat_interval, loop.time())
            await asyncio.sleep(due - loop.time())
