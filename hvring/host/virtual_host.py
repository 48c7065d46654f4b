# SPDX-License-Identifier: Apache-2.0
"""The virtual Hyper-V host: offers services and devices at a Unix socket and serves whoever attaches."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any, Final

from hvring.errors import EndpointError
from hvring.events import Event, EventKind
from hvring.host.device import Device, Handler, device_facts
from hvring.host.host import Host
from hvring.host.reception import DOOR, Reception
from hvring.host.ring_link import RingLink
from hvring.host.session import Session
from hvring.host.slots import Slot, Tenant
from hvring.host.timing import Timing
from hvring.transport.endpoint import MAX_DATAGRAM, OpenRequest
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_CLASS, BY_NAME, SERVICE_NAMES, DeviceFacts
from hvring.vmbus.guids import is_guid, normal_guid
from hvring.vmbus.services import DEFAULT_RING_SIZE

MAX_WAITING: Final = 16  # guests that wait for one service, or for one device


class VirtualHost(Host):
    """A host for guests on this machine; ``async with VirtualHost(path) as host:``.

    ``services`` are offered from the start; the others can be offered later. ``devices`` are of any other class, each
    with the coroutine that serves it, see :meth:`offer`. The verbs and what they report are those of Host. Raises
    EndpointError when the socket cannot be made, on entering.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        services: Iterable[str] = SERVICE_NAMES,
        *,
        devices: Mapping[str, Handler] | None = None,
        timing: Timing | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(timing=timing, on_event=on_event)
        self.path = os.fspath(path)
        offered = set(services)
        if unknown := offered - set(SERVICE_NAMES):
            names = ", ".join(sorted(unknown))
            raise ValueError(f"no such service: {names}; other classes go into devices={{guid: handler}}")
        self._slots = {
            name: Slot(BY_NAME[name], session, name in offered) for name, session in self.sessions.items()
        }
        self._changed = asyncio.Event()  # replaced whenever a slot changes
        self._reception = Reception(self.reports, self.timing.open_request, self._attend)
        for class_guid, handler in (devices or {}).items():
            self.offer(class_guid, handler)

    async def __aenter__(self) -> VirtualHost:
        self._reception.open(self.path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Thaw a frozen guest, take every channel back, remove the socket. May be called twice."""
        self._reception.stop()
        try:
            await self.thaw()
        finally:
            for slot in self._slots.values():
                slot.offered = False
                slot.revoke("the host ends")
            await self._reception.close()
            self.reports.close()

    # ---------------------------------------------------------------------------------- for the administrator

    def offer(
        self,
        class_guid: str,
        handler: Handler,
        *,
        instance: str | None = None,
        ring_size: int = DEFAULT_RING_SIZE,
    ) -> None:
        """Offer a device of any class but the six services'; ``handler(channel)`` serves each opening.

        ``instance``: its GUID, by default one made of the class's; ``ring_size``: bytes of one ring. From then on the
        class's GUID stands for it where a service's name would. Raises ValueError.
        """
        facts = device_facts(class_guid, instance, ring_size)
        if facts.class_guid in self._slots:
            raise ValueError(f"a device of the class {facts.class_guid} is offered already")

        def drop(reason: str) -> None:
            self._slots[facts.class_guid].revoke(reason)

        self._slots[facts.class_guid] = Slot(facts, Device(facts.name, handler, self.reports, drop), True)

    async def set_offered(self, service: str, offered: bool) -> None:
        """Untick or tick a service or device: an open channel is rescinded, a guest that waits gets a new one."""
        slot = self._slot(service)
        if slot.offered == offered:
            return
        slot.offered = offered
        self.reports.tell(slot.facts.name, EventKind.OFFERED if offered else EventKind.WITHDRAWN)
        if not offered:
            slot.revoke("the host took the channel back")
            while slot.connection is not None:
                await self._changed.wait()
        self._notify()

    async def wait_ready(self, *services: str, timeout: float | None = None) -> None:
        """Until guests are attached and have agreed to versions, by default for all offered services.

        A device is ready as soon as it is open. Raises TimeoutError.
        """
        slots = [self._slot(name) for name in services] or [
            slot for name, slot in self._slots.items() if slot.offered and name in self.sessions
        ]
        async with asyncio.timeout(timeout):
            for slot in slots:
                if isinstance(slot.tenant, Session):
                    await slot.tenant.wait_ready()
                while slot.tenant.state != "ready":
                    await self._changed.wait()

    async def wait_detached(self, service: str, timeout: float | None = None) -> None:
        """Until no guest is attached to the service or device. Raises TimeoutError."""
        slot = self._slot(service)
        async with asyncio.timeout(timeout):
            while slot.connection is not None:
                await self._changed.wait()

    def status(self) -> dict[str, Any]:
        """As for Host, with the path of the socket, and the state of each device by its class."""
        devices = {guid: slot.state for guid, slot in self._slots.items() if guid not in self.sessions}
        return {"socket": self.path, **super().status(), "devices": devices}

    def _state(self, session: Session) -> str:
        return self._slots[session.name].state

    def _corrupted(self, service: str) -> None:
        self._slots[service].revoke("the guest corrupted the ring")

    def _slot(self, service: str) -> Slot:
        slot = self._slots.get(normal_guid(service))
        return self._slots[self._named(service).name] if slot is None else slot

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---------------------------------------------------------------------------------- guests

    async def _attend(self, connection: socket.socket, request: OpenRequest) -> None:
        """One connection, from its request to its end."""
        guid = normal_guid(request.service)
        known: DeviceFacts | None = BY_NAME.get(request.service) or BY_CLASS.get(guid)
        slot = self._slots.get(guid) if known is None else self._slots[known.name]
        if slot is None:
            why = f"there is no such service: {request.service}"
            self._reception.refuse(connection, DOOR, why, retry=is_guid(guid))  # a device may be offered yet
            return
        gone = asyncio.create_task(self._until_gone(connection, slot.tenant))
        try:
            if await self._take_turn(connection, slot, request, gone):
                await self._serve(connection, slot, gone)
        finally:
            gone.cancel()
            await asyncio.wait([gone])

    async def _until_gone(self, connection: socket.socket, tenant: Tenant) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(connection, MAX_DATAGRAM):
                what = f"a datagram of {len(data)} bytes after the request"
                self.reports.violation(tenant.name, "connection", what)
                await asyncio.sleep(0)  # a guest that never stops must not have the loop to itself
        except OSError:
            pass

    async def _take_turn(
        self, connection: socket.socket, slot: Slot, request: OpenRequest, gone: asyncio.Task[None]
    ) -> bool:
        """Occupy the slot, for a guest that waits when it is free. False: refused, or the guest left."""
        if not slot.free:
            why = "busy: another guest has it open" if slot.offered else "not offered at present"
            if request.wait and slot.waiting >= MAX_WAITING:
                why = f"busy: {MAX_WAITING} guests wait for it already"
            elif request.wait:
                why = ""
            if why:
                self._reception.refuse(connection, slot.facts.name, why)
                return False
        slot.waiting += 1
        try:
            while not slot.free:
                changed = asyncio.create_task(self._changed.wait())
                try:
                    await asyncio.wait([gone, changed], return_when=asyncio.FIRST_COMPLETED)
                finally:
                    changed.cancel()
                if gone.done():
                    return False
        finally:
            slot.waiting -= 1
        slot.connection = connection
        self._notify()
        return True

    async def _serve(self, connection: socket.socket, slot: Slot, gone: asyncio.Task[None]) -> None:
        """Open the channel and keep it for as long as the connection lasts."""
        tenant = slot.tenant
        slot.reason = "the guest detached"
        link: RingLink | None = None
        try:
            offer = Offer(slot.facts)
            link = RingLink(offer, received=tenant.received, needless=tenant.needless, broken=tenant.broken)
            offer.answer(connection)
            self.reports.tell(slot.facts.name, EventKind.ATTACHED)
            tenant.opened(link)
            self._notify()
            await asyncio.wait([gone])
        except EndpointError as error:
            self._reception.refuse(connection, slot.facts.name, str(error))
        except OSError:  # the guest left before the answer
            pass
        finally:
            if tenant.link is not None:
                tenant.closed(slot.reason)
                self.reports.tell(slot.facts.name, EventKind.DETACHED, slot.reason)
            elif link is not None:
                link.close()
            slot.connection = None
            self._notify()
            await tenant.finished()
