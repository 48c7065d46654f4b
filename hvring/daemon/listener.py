# SPDX-License-Identifier: Apache-2.0
"""`GET /metrics` and nothing else, on the agent's loop; bounded in all that a stranger can make it do."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import Any, Final

from hvring.daemon.metrics import CONTENT_TYPE, exposition
from hvring.daemon.share import Share
from hvring.errors import EndpointError

CLIENTS: Final = 8  # at the same time; one more is hung up on
PATIENCE: Final = 5.0  # seconds for a request, and to read the answer
LARGEST_REQUEST: Final = 8 * 1024
_END: Final = b"\r\n\r\n"


def address(text: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Of ``127.0.0.1:9925`` or ``[::1]:9925``; no names: looking one up takes its time.  Raises EndpointError."""
    host, _, port = text.rpartition(":")
    family = socket.AF_INET6 if host.startswith("[") and host.endswith("]") else socket.AF_INET
    host = host[1:-1] if family is socket.AF_INET6 else host
    try:
        socket.inet_pton(family, host)
        if not (port.isascii() and port.isdecimal() and int(port) < 65536):
            raise ValueError(port)
    except (OSError, ValueError):
        raise EndpointError(f"{text!r} is no address and port, as 127.0.0.1:9925 or [::1]:9925")
    return family, (host, int(port))


class MetricsListener:
    """Listens at ``where``; each page is made of ``snapshot``."""

    def __init__(
        self, where: str, snapshot: Callable[[], Mapping[str, Any]], *, patience: float = PATIENCE
    ) -> None:
        """``patience`` in seconds.  Raises EndpointError for what is no address and port."""
        self._where = where
        self._family, self._address = address(where)
        self._snapshot = snapshot
        self._bound: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[_Client] = set()
        self.share: Final = Share()
        self.patience: Final = patience

    def bind(self) -> None:
        """Take the address.  Raises EndpointError when nobody can listen there."""
        taken = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(self._address)
            taken.listen(CLIENTS)
        except OSError as error:
            taken.close()
            raise EndpointError(f"cannot listen on {self._where}: {error.strerror or error}") from error
        self._bound = taken

    async def start(self) -> None:
        """Answer; binds if that was not done yet.  Raises EndpointError as :meth:`bind`."""
        if self._bound is None:
            self.bind()
        assert self._bound is not None
        loop = asyncio.get_running_loop()
        # In two steps, of which the second one waits: who closes this meanwhile has something to close.
        self._server = await loop.create_server(
            lambda: _Client(self), sock=self._bound, backlog=CLIENTS, start_serving=False
        )
        await self._server.start_serving()

    @property
    def port(self) -> int:
        """Where it listens; one of the kernel's choice for port 0."""
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        """May be called twice."""
        if self._server is not None:
            self._server.close()
        elif self._bound is not None:
            self._bound.close()
        for client in list(self._clients):
            client.end()

    # ------------------------------------------------------------------------- for clients

    def admit(self, client: _Client) -> bool:
        """Whether there is room for it."""
        if len(self._clients) >= CLIENTS:
            return False
        self._clients.add(client)
        return True

    def leave(self, client: _Client) -> None:
        """It is none any more."""
        self._clients.discard(client)

    def page(self) -> str:
        """The numbers of now."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            return exposition(self._snapshot())
        finally:
            self.share.took(began, loop.time())


class _Client(asyncio.Protocol):
    """One request, one answer."""

    def __init__(self, listener: MetricsListener) -> None:
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._kept = bytearray()
        self._turn: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._is_heard = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if not self._listener.admit(self):
            transport.abort()
            return
        self._limit = self._loop.call_later(self._listener.patience, self.end)

    def data_received(self, data: bytes) -> None:
        if not self._is_heard:
            return
        self._kept += data
        if _END in self._kept:
            self._is_heard = False
            self._answer()
        elif len(self._kept) > LARGEST_REQUEST:
            self._is_heard = False
            self._send("431 Request Header Fields Too Large", "too much\n")

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._transport = None
        self._listener.leave(self)
        for handle in (self._turn, self._limit):
            if handle is not None:
                handle.cancel()

    def end(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()

    def _answer(self) -> None:
        wait = self._listener.share.wait(self._loop.time())
        if wait > 0:
            self._turn = self._loop.call_later(wait, self._answer)
            return
        words = bytes(self._kept).partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            self._send("400 Bad Request", "that is no HTTP/1\n")
        elif words[0] not in (b"GET", b"HEAD"):
            self._send("405 Method Not Allowed", "only GET\n", allow="GET, HEAD")
        elif words[1].partition(b"?")[0] != b"/metrics":
            self._send("404 Not Found", "only /metrics\n")
        else:
            self._send("200 OK", self._listener.page(), CONTENT_TYPE, is_head=words[0] == b"HEAD")

    def _send(
        self,
        status: str,
        body: str,
        kind: str = "text/plain; charset=utf-8",
        *,
        allow: str = "",
        is_head: bool = False,
    ) -> None:
        if self._transport is None:
            return
        data = body.encode()
        more = f"Allow: {allow}\r\n" if allow else ""
        head = (
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n{more}"
            "Connection: close\r\n\r\n"
        )
        self._transport.write(head.encode() + (b"" if is_head else data))
        self._transport.close()
