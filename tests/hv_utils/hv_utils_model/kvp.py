# SPDX-License-Identifier: Apache-2.0
"""hv_kvp (PROTOCOL §10.3.1, §10.4.1)."""

from __future__ import annotations

import errno
import struct

from hv_utils_model.device import Device
from hv_utils_model.file import error
from hv_utils_model.states import FAIL, HEADER, PAGE, State
from hv_utils_model.text import put_utf16, terminated, utf8

SIZE = 7432
LEGACY, REGISTER = 4, 100
GET, SET, DELETE, ENUMERATE, GET_IP, SET_IP = range(6)
NO_MORE = 0x80070103
NO_TYPE, TEXT, U32, U64 = 0, 1, 4, 8

# Offset in the message, bytes of the field, and where the host's UTF-16 lies in the body.
LISTS = ((262, 2048, 260), (2310, 2048, 2308), (4358, 1024, 4356), (5382, 2048, 5380))
ADAPTER = (4, 256, 2)


class KvpDevice(Device):
    """Reads nothing from the ring until a daemon has read the answer to its registration."""

    name = "kvp"
    kind = 2
    buffer_size = 4 * PAGE
    frameworks = ((3, 0), (1, 0))
    versions = ((4, 0), (3, 0), (1, 0))
    goes_on_after_negotiating = True
    _daemon = REGISTER

    def _ready(self) -> bool:
        return self.state == State.READY

    def _made_up(self) -> None:
        return None

    # ------------------------------------------------------------------------- towards user space

    def _handle(self) -> bool:
        body = self.buffer[HEADER:]
        message = bytearray(SIZE)
        message[0:2] = body[0:2]
        operation = body[0]
        if operation == SET:
            self._put_value(message, body)
            self._put_key(message, body)
        elif operation == GET:
            self._put_key(message, body)
        elif operation == DELETE:
            key = self._utf8(body[8:], _u32(body, 4), 511)
            struct.pack_into("<I", message, 4, len(key) + 1)
            message[8 : 8 + len(key)] = key
        elif operation == ENUMERATE:
            message[4:8] = body[4:8]
        elif operation in (GET_IP, SET_IP):
            self._put_ip(message, body, operation)
        self._hand_out(bytes(message))
        return False

    def _put_key(self, message: bytearray, body: bytearray) -> None:
        key = self._utf8(body[16:], _u32(body, 8), 511)
        struct.pack_into("<I", message, 8, len(key) + 1)
        message[16 : 16 + len(key)] = key

    def _put_value(self, message: bytearray, body: bytearray) -> None:
        kind = _u32(body, 4)
        if kind == TEXT:
            value = self._utf8(body[528:], _u32(body, 12), 2047)
        elif kind == U32:
            value = str(int.from_bytes(body[528:532], "little", signed=self.kernel.signed_numbers)).encode()
        elif kind == U64:
            value = str(int.from_bytes(body[528:536], "little")).encode()
        else:
            return  # with a size of 0, by which the loss can be told from an empty text
        struct.pack_into("<I", message, 12, len(value) + 1)
        message[528 : 528 + len(value)] = value

    def _put_ip(self, message: bytearray, body: bytearray, operation: int) -> None:
        # Fields of n units get n bytes at most, half of what there is room for.
        fields = (*LISTS, ADAPTER) if operation == SET_IP else (ADAPTER,)
        for at, size, source in fields:
            text = self._utf8(body[source:], size // 2, size // 2)
            message[at : at + len(text)] = text
        message[260] = body[258]
        if operation == SET_IP:
            message[261] = body[259]

    def _utf8(self, raw: bytearray, units: int, room: int) -> bytes:
        return utf8(raw, units, room, full_is_full=self.kernel.full_is_full)

    # ------------------------------------------------------------------------- from user space

    def _on_message(self, data: bytes) -> None:
        if len(data) < SIZE:
            raise error(errno.EINVAL)
        if self.state < State.READY:
            self._register(data[0])
            return
        if self.state < State.USERSPACE_REQ:
            raise error(errno.EINVAL)
        self._answered(data, lambda: self._finish(data))

    def _register(self, operation: int) -> None:
        if operation not in (LEGACY, REGISTER):
            raise error(errno.EINVAL)
        self._daemon = operation
        hello = (bytes([operation, 0, 0, 0]) + b"3.1").ljust(SIZE, b"\0")
        if self._send_up(hello, self._go_on) and self.kernel.second_registration:
            raise error(self.kernel.second_registration)

    def _finish(self, data: bytes) -> None:
        status = _u32(data, 0)
        if self._daemon == LEGACY:
            status = 0 if data[20] else NO_MORE
        operation = self.buffer[HEADER]
        if status == 0 and operation == GET_IP:
            status = self._take_ip(data)
        elif status == 0 and operation not in (SET, DELETE, SET_IP):
            status = self._take_pair(data, with_key=operation != GET)
        self._respond(status)

    def _take_pair(self, data: bytes, *, with_key: bool) -> int:
        """As ENUMERATE's answer, whatever was asked: the value is read at its place for GET, too."""
        # Where the host's GET has its fields, and where ENUMERATE has them.
        type_at, sizes_at, value_at = (8, 12, 532) if with_key else (4, 8, 528)
        key = value = 0
        if with_key:
            key = put_utf16(terminated(data, 20, 512), self.buffer, HEADER + 20, 254)
            struct.pack_into("<i", self.buffer, HEADER + sizes_at, 2 * (key + 1))
        value = put_utf16(terminated(data, 532, 2048), self.buffer, HEADER + value_at, 1022)
        struct.pack_into("<i", self.buffer, HEADER + sizes_at + 4, 2 * (value + 1))
        struct.pack_into("<I", self.buffer, HEADER + type_at, TEXT)
        return FAIL if min(key, value) < 0 else 0

    def _take_ip(self, data: bytes) -> int:
        for at, size, target in (*LISTS, ADAPTER):
            if put_utf16(terminated(data, at, size), self.buffer, HEADER + target, size // 2) < 0:
                return FAIL
        self.buffer[HEADER + 258] = data[260]
        self.buffer[HEADER + 259] = data[261]
        return 0


def _u32(raw: bytes | bytearray, at: int) -> int:
    return int.from_bytes(raw[at : at + 4], "little")
