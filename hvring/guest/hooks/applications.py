# SPDX-License-Identifier: Apache-2.0
"""A socket for applications that hold the freeze themselves: lines, and the end of the connection as ``abort``.

The agent says ``freeze``, ``thaw`` and ``abort``; an application answers ``ok``, or ``failed`` and why.
"""

from __future__ import annotations

import os
import select
import socket
import stat
import struct
import time
from typing import Final

from hvring.errors import EffectError
from hvring.pending import Steps, Wait
from hvring.reasons import Reason

MOST: Final = 64  # connections; more are closed at once
_LONGEST: Final = 4096  # bytes of a line; whoever says more is not an application
_CREDENTIALS: Final = struct.Struct("=iII")


class _Application:
    """One connection; ``name`` is for people."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        self.name = f"application {pid} of user {uid}"
        self.is_told = False  # to freeze, and not yet of the end
        self.answer: str | None = None
        self.is_gone = False
        self._line = b""

    def tell(self, word: str) -> None:
        """One line; who does not read is hung up on."""
        self.answer = None
        try:
            taken = self.connection.send(f"{word}\n".encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except OSError:
            taken = 0
        self.is_gone |= taken != len(word) + 1

    def read(self) -> None:
        """Take what it has said; its last line counts."""
        while not self.is_gone:
            try:
                piece = self.connection.recv(_LONGEST, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                piece = b""
            self._line += piece
            *lines, self._line = self._line.split(b"\n")
            if lines:
                self.answer = lines[-1].decode(errors="replace").strip()
            self.is_gone |= not piece or len(self._line) > _LONGEST


class Applications:
    """Those that are connected to the socket at ``path``, which only ``group`` and root can reach.

    It is made by :meth:`listen`; ``timeout``: seconds for an answer.
    """

    def __init__(self, path: str, group: str | None = None, timeout: float = 30.0) -> None:
        self.path: Final = path
        self.group: Final = group
        self._timeout = timeout
        self._listener: socket.socket | None = None
        self._epoll: select.epoll | None = None
        self._connected: list[_Application] = []
        self.complaints: list[tuple[str, EffectError]] = []

    def listen(self) -> None:
        """Make the socket, if it is not there.  Raises EffectError."""
        if self._listener is not None:
            return
        listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        try:
            self._make_room()
            mask = os.umask(0o177)
            try:
                listener.bind(self.path)
            finally:
                os.umask(mask)
            if self.group is not None:
                import grp

                os.chown(self.path, -1, grp.getgrnam(self.group).gr_gid)
            os.chmod(self.path, 0o660)
            listener.listen(MOST)
        except (OSError, KeyError) as error:
            listener.close()
            why = getattr(error, "strerror", None) or error
            raise EffectError(f"the socket for applications, {self.path}: {why}") from error
        self._listener, self._epoll = listener, select.epoll()
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def _make_room(self) -> None:
        """A socket that nobody listens at is left by an agent that was killed."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(found.st_mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.setblocking(False)
            try:
                other.connect(self.path)
            except ConnectionRefusedError:
                os.unlink(self.path)
            except OSError:
                pass

    def fileno(self) -> int:
        """Gets readable when :meth:`look` is due; -1 before :meth:`listen`."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def look(self) -> None:
        """Take in who comes, who goes, and what is said.  Does not wait."""
        while self._listener is not None and self._epoll is not None:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                break
            if len(self._connected) >= MOST:
                connection.close()
                continue
            self._epoll.register(connection.fileno(), select.EPOLLIN)
            self._connected.append(_Application(connection))
        for one in list(self._connected):
            one.read()
            if not one.is_told and one.answer is not None:
                self._hear_of_end(one)
            if one.is_gone:
                self._hang_up(one)

    @property
    def holds(self) -> bool:
        """Whether some were told to freeze, and not yet of the end."""
        return any(one.is_told for one in self._connected)

    @property
    def names(self) -> list[str]:
        """Of those that were told to freeze."""
        return [one.name for one in self._connected if one.is_told]

    def freeze(self) -> Steps[None]:
        """All that are connected hold.  EffectError names one that does not; then :meth:`end` is due."""
        self.look()
        asked = list(self._connected)
        for one in asked:
            one.is_told = True
            one.tell("freeze")
        until = time.monotonic() + self._timeout
        while True:
            for one in asked:
                one.read()
                if one.is_gone:
                    raise EffectError(f"{one.name} hung up instead of freezing", reason=Reason.HOOK_FAILED)
                if one.answer not in (None, "ok"):
                    words = (one.answer or "").removeprefix("failed").strip(" :") or "failed"
                    raise EffectError(f"{one.name} at freeze: {words}", reason=Reason.HOOK_FAILED)
            late = next((one for one in asked if one.answer is None), None)
            if late is None:
                return
            if time.monotonic() >= until:
                words = f"{late.name} did not answer within {self._timeout:g} s"
                raise EffectError(words, reason=Reason.HOOK_TIMEOUT)
            yield Wait(until, self.fileno())

    def end(self, word: str) -> None:
        """``thaw`` or ``abort`` to those that were told to freeze; does not wait for what they make of it."""
        for one in [one for one in self._connected if one.is_told]:
            one.read()
            if one.is_gone:
                error = EffectError(f"{one.name} hung up while it held", reason=Reason.HOOK_FAILED)
                self.complaints.append(("application", error))
            one.tell(word)
            one.is_told = False
            if one.is_gone:
                self._hang_up(one)

    def inherit(self, before: Applications) -> None:
        """Go on with the socket and the connections of ``before``."""
        self._listener, before._listener = before._listener, None
        self._epoll, before._epoll = before._epoll, None
        self._connected, before._connected = before._connected, []

    def close(self) -> None:
        """Hang up on all, and take the socket away."""
        for one in list(self._connected):
            self._hang_up(one)
        if self._listener is not None:
            self._listener.close()
            self._listener = None
            try:
                os.unlink(self.path)
            except OSError:
                pass
        if self._epoll is not None:
            self._epoll.close()
            self._epoll = None

    def __del__(self) -> None:
        if getattr(self, "_listener", None) is not None:
            self.close()

    def _hear_of_end(self, one: _Application) -> None:
        answer, one.answer = one.answer or "", None
        if answer != "ok":
            words = answer.removeprefix("failed").strip(" :") or "failed"
            error = EffectError(f"{one.name} at its end: {words}", reason=Reason.HOOK_FAILED)
            self.complaints.append(("application", error))

    def _hang_up(self, one: _Application) -> None:
        if one.is_told:
            return  # it is told of at its end
        if self._epoll is not None:
            self._epoll.unregister(one.connection.fileno())
        one.read()  # what is left unread would make its end of the connection an error
        one.connection.close()
        self._connected.remove(one)
