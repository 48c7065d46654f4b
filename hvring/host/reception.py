# SPDX-License-Identifier: Apache-2.0
"""The door of the virtual host: accepts guests, reads what they want, and keeps their number within bounds."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from hvring.errors import EndpointError
from hvring.events import EventKind
from hvring.host.reports import Reports
from hvring.transport.endpoint import MAX_DATAGRAM, OpenRequest, refusal
from hvring.transport.listener import Listener

MAX_SILENT: Final = 64  # connections that have not said yet what they want; the oldest goes for one more
_ACCEPT_AGAIN: Final = 0.2  # seconds

DOOR: Final = "endpoint"  # stands for a service in events about connections that got to none

_log = logging.getLogger("hvring.host")


class Reception:
    """Listens, and hands each connection with its request to ``attend``; what raises there is logged.

    However many connect, descriptors are taken by no more than ``MAX_SILENT`` connections and those that ``attend``
    holds on to.  ``timeout``: seconds that each has to say what it wants.
    """

    def __init__(
        self,
        reports: Reports,
        timeout: float,
        attend: Callable[[socket.socket, OpenRequest], Awaitable[None]],
    ) -> None:
        self._reports = reports
        self._timeout = timeout
        self._attend = attend
        self._listener: Listener | None = None
        self._again: asyncio.TimerHandle | None = None
        self._silent: dict[asyncio.Task[None], socket.socket] = {}  # oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_failure: type[BaseException] | None = None

    @property
    def connections(self) -> int:
        """How many there are, whatever they do."""
        return len(self._tasks)

    def open(self, path: str) -> None:
        """Listen.  Raises EndpointError."""
        self._listener = Listener(path, socket.SOCK_SEQPACKET)
        self._listen()

    def stop(self) -> None:
        """Let nobody in any more."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._listener is not None and self._listener.socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.socket)

    async def close(self) -> None:
        """End what is under way, and remove the socket.  May be called twice."""
        self.stop()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._listener is not None:
            self._listener.close()

    def refuse(self, connection: socket.socket, service: str, why: str, *, retry: bool = True) -> None:
        """Tell a guest, and the owner, why it gets nothing."""
        self._reports.tell(service, EventKind.REFUSED, why)
        try:
            connection.send(refusal(why, retry=retry), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except OSError:
            pass

    def _listen(self) -> None:
        self._again = None
        if self._listener is not None and self._listener.socket.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._listener.socket, self._accept, self._listener.socket)

    def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no descriptors left: guests wait in the queue meanwhile
            self._reports.failed(DOOR, "accepting a guest", error)
            loop.remove_reader(listening)
            self._again = loop.call_later(_ACCEPT_AGAIN, self._listen)
            return
        self._reports.worked(DOOR, "accepting a guest")
        connection.setblocking(False)
        if len(self._silent) >= MAX_SILENT:
            self._turn_out(next(iter(self._silent)))
        task = loop.create_task(self._receive(connection))
        self._silent[task] = connection
        self._tasks.add(task)
        task.add_done_callback(functools.partial(self._received, connection))

    def _turn_out(self, task: asyncio.Task[None]) -> None:
        self.refuse(
            self._silent.pop(task), DOOR, f"no request came, and more than {MAX_SILENT} wait to be heard"
        )
        task.cancel()

    def _received(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        connection.close()
        self._silent.pop(task, None)
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # An error of this host's own: a guest that knows how to cause it must not fill the log with it.
        if error is not None and type(error) is not self._last_failure:
            self._last_failure = type(error)
            _log.error("serving a guest failed: %r", error, exc_info=error)

    async def _receive(self, connection: socket.socket) -> None:
        """One connection, from its first datagram to its end."""
        request = await self._request(connection)
        task = asyncio.current_task()
        assert task is not None
        self._silent.pop(task, None)
        if request is not None:
            await self._attend(connection, request)

    async def _request(self, connection: socket.socket) -> OpenRequest | None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                data = await loop.sock_recv(connection, MAX_DATAGRAM + 1)
            if not data:
                return None
            if len(data) > MAX_DATAGRAM:
                raise EndpointError(f"the datagram is longer than {MAX_DATAGRAM} bytes")
            return OpenRequest.decode(data)
        except TimeoutError:
            self.refuse(connection, DOOR, "no request came")
        except EndpointError as error:
            self.refuse(connection, DOOR, str(error), retry=False)
        except OSError:
            pass
        return None
