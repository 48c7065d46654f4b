# SPDX-License-Identifier: Apache-2.0
"""What the host has to offer: one slot a service or device, with whoever has it open."""

from __future__ import annotations

import socket
from typing import Protocol

from hvring.errors import HvringError
from hvring.host.link import Link, Packet, PausableLink
from hvring.vmbus import DeviceFacts


class Tenant(Protocol):
    """What stands behind a slot: the session of a service, or a device."""

    name: str

    @property
    def link(self) -> Link | None: ...
    @property
    def state(self) -> str: ...
    def opened(self, link: PausableLink) -> None:
        """A guest has the channel."""
        ...

    def closed(self, why: str) -> None:
        """The channel has ended; does nothing without one."""
        ...

    async def finished(self) -> None:
        """Wait for what ``closed`` ended."""
        ...

    def received(self, packet: Packet) -> None: ...
    def needless(self, count: int) -> None: ...
    def broken(self, error: HvringError) -> None: ...


class Slot:
    """One service or device: whether it is offered, who has it, and how many wait for it."""

    def __init__(self, facts: DeviceFacts, tenant: Tenant, offered: bool) -> None:
        self.facts = facts
        self.tenant = tenant
        self.offered = offered
        self.connection: socket.socket | None = None
        self.waiting = 0
        self.reason = "the guest detached"

    @property
    def free(self) -> bool:
        """Whether a guest may have the channel now."""
        return self.offered and self.connection is None

    @property
    def state(self) -> str:
        """As the tenant says, but ``off`` where there is nothing to wait for."""
        state = self.tenant.state
        return "off" if state == "waiting" and not self.offered else state

    def revoke(self, reason: str) -> None:
        """Take the channel back, if it is open: both ends of the connection see its end."""
        if self.connection is not None:
            self.reason = reason
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the guest was faster
                pass
