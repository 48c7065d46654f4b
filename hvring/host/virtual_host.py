# SPDX-License-Identifier: Apache-2.0
"""The virtual Hyper-V host: offers the services at a Unix socket and serves whoever attaches."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Final

from hvring.errors import EndpointError
from hvring.host.events import Event
from hvring.host.host import Host
from hvring.host.ring_link import RingLink
from hvring.host.session import Session
from hvring.host.timing import Timing
from hvring.transport.endpoint import MAX_DATAGRAM, OpenRequest, normal_guid, refusal
from hvring.transport.listener import Listener
from hvring.transport.virtual import Offer
from hvring.vmbus import BY_CLASS, BY_NAME, SERVICE_NAMES

_ACCEPT_AGAIN: Final = 0.2  # seconds

_log = logging.getLogger("hvring.host")


class _Slot:
    """One service: whether it is offered, and who has it."""

    def __init__(self, session: Session, offered: bool) -> None:
        self.session = session
        self.offered = offered
        self.connection: socket.socket | None = None
        self.reason = "the guest detached"

    @property
    def free(self) -> bool:
        return self.offered and self.connection is None

    def revoke(self, reason: str) -> None:
        """Take the channel back, if it is open: both ends of the connection see its end."""
        if self.connection is not None:
            self.reason = reason
            try:
                self.connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # the guest was faster
                pass


class VirtualHost(Host):
    """A host for guests on this machine; ``async with VirtualHost(path) as host:``.

    ``services`` are offered from the start; the others can be offered later. The verbs and what they report
    are those of Host. Raises EndpointError when the socket cannot be made, on entering.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        services: Iterable[str] = SERVICE_NAMES,
        *,
        timing: Timing | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        super().__init__(timing=timing, on_event=on_event)
        self.path = os.fspath(path)
        offered = set(services)
        if unknown := offered - set(SERVICE_NAMES):
            raise ValueError(f"no such service: {', '.join(sorted(unknown))}")
        self._slots = {name: _Slot(session, name in offered) for name, session in self.sessions.items()}
        self._changed = asyncio.Event()  # replaced whenever a slot changes
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: Listener | None = None

    async def __aenter__(self) -> VirtualHost:
        self._listener = Listener(self.path, socket.SOCK_SEQPACKET)
        self._listen()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Thaw a frozen guest, take every channel back, remove the socket. May be called twice."""
        if self._listener is not None and self._listener.socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.socket)
        try:
            await self.thaw()
        finally:
            for slot in self._slots.values():
                slot.offered = False
                slot.revoke("the host ends")
            for task in self._connections:
                task.cancel()
            if self._connections:
                await asyncio.wait(self._connections)
            if self._listener is not None:
                self._listener.close()

    # ---------------------------------------------------------------------------------- for the administrator

    async def set_offered(self, service: str, offered: bool) -> None:
        """Untick or tick a service: an open channel is rescinded, a guest that waits gets a new one."""
        slot = self._slot(service)
        if slot.offered == offered:
            return
        slot.offered = offered
        slot.session.tell("offer", "offered" if offered else "no longer offered")
        if not offered:
            slot.revoke("the host took the channel back")
            while slot.connection is not None:
                await self._changed.wait()
        self._notify()

    async def wait_ready(self, *services: str, timeout: float | None = None) -> None:
        """Until guests are attached and have agreed to versions, by default for all offered services.

        Raises TimeoutError.
        """
        names = services or [name for name, slot in self._slots.items() if slot.offered]
        if names:
            await super().wait_ready(*names, timeout=timeout)

    async def wait_detached(self, service: str, timeout: float | None = None) -> None:
        """Until no guest is attached to the service. Raises TimeoutError."""
        slot = self._slot(service)
        async with asyncio.timeout(timeout):
            while slot.connection is not None:
                await self._changed.wait()

    def status(self) -> dict[str, Any]:
        """As for Host, with the path of the socket."""
        return {"socket": self.path, **super().status()}

    def _state(self, session: Session) -> str:
        state = super()._state(session)
        return "off" if state == "waiting" and not self._slots[session.name].offered else state

    def _corrupted(self, service: str) -> None:
        self._slots[service].revoke("the guest corrupted the ring")

    def _slot(self, service: str) -> _Slot:
        return self._slots[self._named(service).name]

    def _notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    # ---------------------------------------------------------------------------------- connections

    def _listen(self) -> None:
        if self._listener is not None and self._listener.socket.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener.socket, self._accept, self._listener.socket)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors left: guests wait in the queue meanwhile
            _log.error("cannot accept a guest: %s", error)
            loop.remove_reader(listening)
            loop.call_later(_ACCEPT_AGAIN, self._listen)
            return
        connection.setblocking(False)
        task = loop.create_task(self._attend(connection))
        self._connections.add(task)
        task.add_done_callback(functools.partial(self._attended, connection))

    def _attended(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()
        self._connections.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("serving a guest failed: %r", error, exc_info=error)

    async def _attend(self, connection: socket.socket) -> None:
        """One connection, from its first datagram to its end."""
        request = await self._request(connection)
        if request is None:
            return
        known = BY_NAME.get(request.service) or BY_CLASS.get(normal_guid(request.service))
        if known is None:
            self._refuse(connection, request.service, "there is no such service", retry=False)
            return
        slot = self._slots[known.name]
        gone = asyncio.create_task(self._until_gone(connection, slot))
        try:
            if await self._take_turn(connection, slot, request, gone):
                await self._serve(connection, slot, gone)
        finally:
            gone.cancel()
            await asyncio.wait([gone])

    async def _request(self, connection: socket.socket) -> OpenRequest | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.timing.open_request):
                data = await loop.sock_recv(connection, MAX_DATAGRAM + 1)
            if not data:
                return None
            if len(data) > MAX_DATAGRAM:
                raise EndpointError(f"the datagram is longer than {MAX_DATAGRAM} bytes")
            return OpenRequest.decode(data)
        except TimeoutError:
            self._refuse(connection, "endpoint", "no request came", retry=False)
        except EndpointError as error:
            self._refuse(connection, "endpoint", str(error), retry=False)
        except OSError:
            pass
        return None

    async def _until_gone(self, connection: socket.socket, slot: _Slot) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(connection, MAX_DATAGRAM):
                slot.session.accuse("connection", f"a datagram of {len(data)} bytes after the request")
                await asyncio.sleep(0)  # a guest that never stops must not have the loop to itself
        except OSError:
            pass

    async def _take_turn(
        self, connection: socket.socket, slot: _Slot, request: OpenRequest, gone: asyncio.Task[None]
    ) -> bool:
        """Occupy the slot, for a guest that waits when it is free. False: refused, or the guest left."""
        while not slot.free:
            if not request.wait:
                why = "busy: another guest has it open" if slot.offered else "not offered at present"
                self._refuse(connection, slot.session.name, why)
                return False
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait([gone, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                changed.cancel()
            if gone.done():
                return False
        slot.connection = connection
        self._notify()
        return True

    async def _serve(self, connection: socket.socket, slot: _Slot, gone: asyncio.Task[None]) -> None:
        """Open the channel and keep it for as long as the connection lasts."""
        session = slot.session
        slot.reason = "the guest detached"
        link: RingLink | None = None
        try:
            offer = Offer(BY_NAME[session.name])
            link = RingLink(
                offer, received=session.received, needless=session.needless, broken=session.broken
            )
            offer.answer(connection)
            session.tell("attached", "a guest attached")
            session.opened(link)
            await asyncio.wait([gone])
        except EndpointError as error:
            self._refuse(connection, session.name, str(error))
        except OSError:  # the guest left before the answer
            pass
        finally:
            if session.link is not None:
                session.closed(slot.reason)
                session.tell("detached", slot.reason)
            elif link is not None:
                link.close()
            slot.connection = None
            self._notify()
            await session.finished()

    def _refuse(self, connection: socket.socket, service: str, why: str, *, retry: bool = True) -> None:
        self._tell(Event("refused", service, f"refused: {why}"))
        try:
            connection.send(refusal(why, retry=retry), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            pass
