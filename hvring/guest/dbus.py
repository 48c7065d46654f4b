# SPDX-License-Identifier: Apache-2.0
"""A connection to a message bus that never waits: jeepney packs and parses, the steps say what to wait for.

Importing this imports jeepney, the extra ``dbus``.
"""

from __future__ import annotations

import array
import socket
import time
from collections.abc import Callable
from typing import Any, Final

from jeepney import DBusAddress, MessageType, Properties, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.bus_messages import message_bus
from jeepney.fds import FileDescriptor
from jeepney.low_level import HeaderFields, Message, Parser

from hvring.errors import EffectError
from hvring.pending import Steps, Wait

_MOST_DESCRIPTORS: Final = 8
_LARGEST: Final = 1 << 20  # bytes of an answer; those that are asked for are small


class BusError(EffectError):
    """The bus or who was asked said no; ``name`` is D-Bus's name for it, if it has one."""

    def __init__(self, words: str, name: str = "") -> None:
        super().__init__(words)
        self.name = name


class Bus:
    """``with Bus(path) as bus: yield from bus.connect(until)``, then :meth:`call`; until are monotonic times."""

    def __init__(self, path: str) -> None:
        """Raises OSError when nobody listens there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)
        except BaseException:
            self._socket.close()
            raise
        self._parser = Parser()
        self._serial = 0

    def __enter__(self) -> Bus:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """No answer is wanted any more."""
        self._socket.close()

    def connect(self, until: float) -> Steps[None]:
        """Say who we are."""
        sasl = Authenticator(enable_fds=True)
        for words in sasl:
            if words:  # else a line is not whole yet
                self._send(words)
            data, _ = yield from self._receive(until, 512)
            try:
                sasl.feed(data)
            except AuthenticationError as error:
                raise BusError(f"the bus does not take us: {error}") from error
        self._send(BEGIN)
        yield from self._ask(message_bus.Hello(), until)

    def call(
        self, to: DBusAddress, member: str, signature: str, body: tuple[Any, ...], until: float
    ) -> Steps[tuple[Any, ...]]:
        """What it answers; BusError.  Descriptors in it are numbers and belong to the caller."""
        answer = yield from self._ask(new_method_call(to, member, signature or None, body), until)
        return tuple(_number(one) for one in answer)

    def get(self, of: DBusAddress, name: str, until: float) -> Steps[Any]:
        """A property."""
        answer = yield from self._ask(Properties(of).get(name), until)
        return answer[0][1]

    def _ask(self, message: Message, until: float) -> Steps[tuple[Any, ...]]:
        self._serial += 1
        serial = self._serial
        self._send(message.serialise(serial=serial))
        while True:
            while (answer := self._parsed(self._parser.get_next_message)) is None:
                size = self._parsed(self._parser.bytes_desired)
                data, descriptors = yield from self._receive(until, size)
                self._parser.add_data(data, fds=[FileDescriptor(one) for one in descriptors])
            if answer.header.fields.get(HeaderFields.reply_serial) == serial:
                break
            for one in answer.body:  # nobody asked for it
                if isinstance(one, FileDescriptor):
                    one.close()
        if answer.header.message_type is MessageType.error:
            name = str(answer.header.fields.get(HeaderFields.error_name, "error"))
            words = answer.body[0] if answer.body and isinstance(answer.body[0], str) else name
            raise BusError(words, name)
        return tuple(answer.body)

    def _parsed(self, what: Callable[[], Any]) -> Any:
        try:
            return what()
        except Exception as error:  # jeepney has no error of its own for what is no message
            raise BusError(f"the bus sent what is no message: {error!r}") from error

    def _send(self, data: bytes) -> None:
        """All of it: what is asked fits into the socket's buffer many times."""
        if self._socket.send(data, socket.MSG_NOSIGNAL) != len(data):
            raise BusError("the bus does not read")

    def _receive(self, until: float, size: int) -> Steps[tuple[bytes, list[int]]]:
        if size > _LARGEST:
            raise BusError(f"an answer of {size} bytes")
        room = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
        while True:
            try:
                data, control, _, _ = self._socket.recvmsg(size, room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise BusError("no answer in time") from None
                yield Wait(until, self._socket.fileno())
                continue
            if not data:
                raise BusError("the bus ended the connection")
            return data, _descriptors(control)


def _descriptors(control: list[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in control:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _number(one: object) -> object:
    return one.to_raw_fd() if isinstance(one, FileDescriptor) else one


__all__ = ["Bus", "BusError", "DBusAddress"]
