# SPDX-License-Identifier: Apache-2.0
"""The agent's end of the control socket, on the agent's loop: bounded in all that a client can make it do.

Nobody connected: nothing runs, no timer either.  An answer touches no file, so that there is one while file systems
are frozen.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hvring.daemon.control.peer import Gate, Peer, peer_of
from hvring.daemon.control.protocol import LARGEST_REQUEST, WATCH, Args, ControlError, line, parse
from hvring.daemon.share import Share
from hvring.errors import EndpointError, HvringError
from hvring.events import Event
from hvring.transport.listener import Listener

CLIENTS: Final = 16  # at the same time,
_OF_OTHERS: Final = 12  # of which so many may be neither root's nor this user's
PATIENCE: Final = 10.0  # seconds that a client may take for a request, and to read an answer
_UNREAD: Final = 64 * 1024  # bytes of answers that wait for a client before it is heard no more,
_UNREAD_CHANGES: Final = 512 * 1024  # and of changes before one that watches is dropped
_TOGETHER: Final = 0.05  # seconds in which changes are told in one line
_CHANGES: Final = 64  # of one line; what is behind them is counted

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    args: Args
    peer: Peer


Verb = Callable[[Asked], Answer | Awaitable[Answer]]
"""What a verb does.  Raises HvringError; what else it raises is told as an error, too."""


class ControlServer:
    """Answers by ``verbs``; ``watch`` is one of its own, and gives what ``status`` does with each change."""

    def __init__(
        self,
        path: str,
        verbs: Mapping[str, Verb],
        status: Callable[[], Answer],
        *,
        group: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        """``group``: whose members may speak to it, too; ``patience`` in seconds."""
        self.path: Final = path
        self._verbs = dict(verbs)
        self._status = status
        self._gate = Gate(group)
        self.patience: Final = patience
        self._listener: Listener | None = None
        self._server: asyncio.Server | None = None
        self._clients: set[_Client] = set()
        self.share: Final = Share()
        self._changes: list[dict[str, Any]] = []
        self._left_out = 0
        self._telling: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Raises EndpointError: another process listens there, or nobody can."""
        group = self._gate.group
        mode = 0o600 if group is None else 0o660
        self._listener = Listener(self.path, socket.SOCK_STREAM, mode=mode, group=group)
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(
            lambda: _Client(self), sock=self._listener.socket.dup(), backlog=CLIENTS
        )

    def close(self) -> None:
        """Hear nobody any more, and remove the path; may be called twice."""
        if self._listener is not None:
            self._listener.close()
        if self._server is not None:
            self._server.close()
        if self._telling is not None:
            self._telling.cancel()
        for client in list(self._clients):
            client.end()

    def changed(self, event: Event) -> None:
        """For those who watch."""
        if not any(client.watches for client in self._clients):
            return
        if len(self._changes) < _CHANGES:
            self._changes.append(
                {
                    "service": event.service,
                    "event": event.kind.value,
                    "at": event.at,
                    "detail": event.detail,
                    "facts": dict(event.facts),
                }
            )
        else:
            self._left_out += 1
        if self._telling is None:
            self._telling = asyncio.get_running_loop().call_later(_TOGETHER, self._tell)

    # ------------------------------------------------------------------------- for clients

    def admit(self, client: _Client, peer: Peer) -> str | None:
        """Why not, or None: it is one of the clients now."""
        if not self._gate.lets_in(peer):
            allowed = "" if self._gate.group is None else f", and of group {self._gate.group}"
            return f"only processes of root and of user {os.geteuid()}{allowed} may speak to this agent"
        others = sum(not self._gate.is_trusted(one.peer) for one in self._clients if one.peer is not None)
        if len(self._clients) >= CLIENTS or (not self._gate.is_trusted(peer) and others >= _OF_OTHERS):
            return "too many programs speak to this agent; try again in a moment"
        self._clients.add(client)
        return None

    def leave(self, client: _Client) -> None:
        """It is none any more."""
        self._clients.discard(client)

    def answer(self, request: bytes, peer: Peer) -> tuple[bool, Answer | Awaitable[Answer]]:
        """Whether it watches from now on, and the result.  Raises."""
        verb, args = parse(request)
        if verb == WATCH:
            return True, self._status()
        if verb not in self._verbs:
            known = ", ".join(sorted((*self._verbs, WATCH)))
            raise ControlError(f"there is no verb {verb!r:.100}; there are {known}", "request")
        return False, self._verbs[verb](Asked(args, peer))

    def _tell(self) -> None:
        self._telling = None
        changes, self._changes = self._changes, []
        left_out, self._left_out = self._left_out, 0
        message = line({"changed": changes, "left_out": left_out, "result": self._status()})
        for client in list(self._clients):
            if client.watches:
                client.tell(message)


class _Client(asyncio.Protocol):
    """One connection: a request after the other."""

    def __init__(self, server: ControlServer) -> None:
        self.peer: Peer | None = None
        self.watches = False
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._kept = bytearray()
        self._is_done = False  # nothing more is read
        self._is_full = False  # it does not read what it is told
        self._turn: asyncio.TimerHandle | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None

    # ------------------------------------------------------------------------- of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=_UNREAD)
        try:
            peer = peer_of(transport.get_extra_info("socket"))
        except OSError:
            self.end()
            return
        why = self._server.admit(self, peer)
        if why is not None:
            self._refuse(why, "refused")
            return
        self.peer = peer
        self._be_patient()

    def data_received(self, data: bytes) -> None:
        if self._is_done or self.watches:  # who watches has nothing more to say
            return
        self._kept += data
        self._look()

    def eof_received(self) -> bool:
        """A client may say that it has no more requests, and still wait for the answer."""
        is_waited_for = self._work is not None or b"\n" in self._kept
        self._is_done = True
        return is_waited_for and not self.watches

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._is_done = True
        self._transport = None
        self._server.leave(self)
        for handle in (self._turn, self._limit):
            if handle is not None:
                handle.cancel()
        if self._work is not None:
            self._work.cancel()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._look()

    # ------------------------------------------------------------------------- requests

    def end(self) -> None:
        """At once."""
        if self._transport is not None:
            self._transport.abort()

    def tell(self, message: bytes) -> None:
        """Of a change.  Who does not read is dropped."""
        if self._transport is None:
            return
        self._transport.write(message)
        if self._transport.get_write_buffer_size() > _UNREAD_CHANGES:
            self.end()

    def _look(self) -> None:
        """One request in its turn; what is behind it waits, and is not read meanwhile."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        is_whole = self._kept.find(b"\n", 0, LARGEST_REQUEST) >= 0
        if is_whole and self._turn is None and self._work is None and not self._is_full:
            self._turn = self._loop.call_later(self._server.share.wait(self._loop.time()), self._take)
        if is_whole or self._work is not None:
            transport.pause_reading()
        elif len(self._kept) >= LARGEST_REQUEST:
            self._refuse(f"a request has up to {LARGEST_REQUEST} bytes, its end of line included", "request")
        elif self._is_done:
            transport.close()
        else:
            transport.resume_reading()

    def _take(self) -> None:
        self._turn = None
        now = self._loop.time()
        if self._server.share.wait(now) > 0:  # somebody else was faster
            self._look()
            return
        request, _, rest = self._kept.partition(b"\n")
        self._kept = rest
        assert self.peer is not None
        try:
            watches, answer = self._server.answer(bytes(request), self.peer)
        except Exception as error:
            self._send(_told(error))
        else:
            if isinstance(answer, Mapping):
                self._send({"result": answer})
                self.watches = watches
            else:
                self._work = self._loop.create_task(self._finish(answer), name="asked")
        self._server.share.took(now, self._loop.time())
        self._be_patient()
        self._look()

    async def _finish(self, answer: Awaitable[Answer]) -> None:
        try:
            message: Answer = {"result": await answer}
        except Exception as error:
            message = _told(error)
        self._work = None
        self._send(message)
        self._be_patient()
        self._look()

    def _send(self, message: Answer) -> None:
        if self._transport is not None:
            self._transport.write(line(message))

    def _refuse(self, why: str, kind: str) -> None:
        """The last word; what the client has to say to it is not read."""
        self._is_done = True
        self._send({"error": why, "kind": kind})
        if self._transport is not None:
            self._transport.close()
            # It may not read even that.
            self._limit = self._loop.call_later(self._server.patience, self.end)

    def _be_patient(self) -> None:
        """With a client that is to say something, or to read; not with work of ours, nor with one that watches."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        if self._work is None and not self.watches and self._transport is not None:
            self._limit = self._loop.call_later(self._server.patience, self._lose_patience)

    def _lose_patience(self) -> None:
        if self._transport is not None and self._transport.get_write_buffer_size():
            self.end()
        else:
            self._refuse(f"no request came within {self._server.patience:g} s", "request")


def _told(error: Exception) -> Answer:
    kind = error.kind if isinstance(error, ControlError) else "failed"
    if not isinstance(error, HvringError):
        _report(error)
    return {"error": str(error) or repr(error), "kind": kind}


def _report(error: Exception) -> None:
    import logging

    logging.getLogger("hvring.daemon").error("a request on the control socket failed", exc_info=error)


def group_number(name: str) -> int:
    """Of a group, by its name or number.  Raises EndpointError."""
    import grp

    try:
        return int(name) if name.isascii() and name.isdecimal() else grp.getgrnam(name).gr_gid
    except (KeyError, ValueError):
        raise EndpointError(
            f"there is no group {name!r}: make it, or name another in control.group"
        ) from None
