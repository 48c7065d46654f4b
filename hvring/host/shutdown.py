# SPDX-License-Identifier: Apache-2.0
"""Ask the guest to go down (PROTOCOL §4.1)."""

from __future__ import annotations

from hvring.host.errors import GuestStatusError, HostError
from hvring.host.session import Session
from hvring.ic import ShutdownFlag, ShutdownRequest, Version
from hvring.ic.shutdown import PLANNED


class ShutdownVerbs:
    """The administrator's verbs for shutdown."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def request(
        self,
        *,
        restart: bool = False,
        hibernate: bool = False,
        force: bool = False,
        reason: int = PLANNED,
        timeout: int = 0,
        text: str = "",
    ) -> None:
        """Power off, restart or hibernate the guest; returns when it has agreed, it goes down after that.

        ``timeout``: seconds that the guest is told it has. Raises GuestStatusError when the guest refuses,
        and HostError when it agreed to a version without restart (before 3.1) or hibernation (before 3.2).
        """
        if restart and hibernate:
            raise ValueError("restart or hibernate, not both")
        what, needed = "shutdown", Version(1, 0)
        flags = ShutdownFlag.FORCE if force else ShutdownFlag(0)
        if restart:
            what, needed, flags = "restart", Version(3, 1), flags | ShutdownFlag.RESTART
        elif hibernate:
            what, needed, flags = "hibernate", Version(3, 2), flags | ShutdownFlag.HIBERNATE
        body = ShutdownRequest(reason, timeout, flags, text).encode()
        agreed = self._session.require().version
        if agreed < needed:
            raise HostError(f"shutdown: {what} needs version {needed}, the guest agreed to {agreed}")
        # A guest that drains first, or waits for a program's lock, answers within the time that it was told it has.
        limit = self._session.timing.answer + timeout
        reply = await self._session.ask(what, body, limit=limit)
        if reply.status:
            raise GuestStatusError("shutdown", what, reply.status)
