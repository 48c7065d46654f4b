# SPDX-License-Identifier: Apache-2.0
"""hv_fcopy (PROTOCOL §10.3.3, §10.4.3)."""

from __future__ import annotations

import errno

from hv_utils_model.device import Device
from hv_utils_model.file import error
from hv_utils_model.states import FAIL, HEADER, State
from hv_utils_model.text import utf8

SIZE = 4
LEGACY, REGISTER = 0, 1
START, WRITE, COMPLETE, CANCEL = range(4)
HEAD_SIZE, START_SIZE, WRITE_SIZE = 36, 1088, 6196


class FcopyDevice(Device):
    """Only kernels up to 6.9 have it."""

    name = "fcopy"
    kind = 7
    least = HEADER + HEAD_SIZE
    frameworks = ((3, 0),)
    versions = ((1, 1),)

    def _made_up(self) -> bytes:
        return CANCEL.to_bytes(4, "little").ljust(HEAD_SIZE, b"\0")

    def _handle(self) -> bool:
        if self.state < State.READY:
            self._respond(FAIL)
            return False
        body = self.buffer[HEADER:]
        operation = int.from_bytes(body[:4], "little")
        if operation == START:
            message = bytearray(START_SIZE)  # the ids are not copied
            for at in (36, 556):
                name = utf8(body[at:], 260, 259, full_is_full=self.kernel.full_is_full)
                message[at : at + len(name)] = name
            message[1076:START_SIZE] = body[1076:START_SIZE]
        else:
            # For the others the packet's length with its headers, from where the body begins.
            message = body[: WRITE_SIZE if operation == WRITE else self.length]
        self._hand_out(bytes(message))
        return False

    def _on_message(self, data: bytes) -> None:
        if len(data) != SIZE:
            raise error(errno.EINVAL)
        value = int.from_bytes(data, "little")
        if self.state == State.INIT:
            self._register(value)
            return
        if self.state != State.USERSPACE_REQ:
            raise error(errno.EINVAL)
        self._answered(data, lambda: self._respond(value))

    def _register(self, version: int) -> None:
        if version not in (LEGACY, REGISTER):
            raise error(errno.EINVAL)
        if version == REGISTER and self._send_up(REGISTER.to_bytes(4, "little"), self._go_on):
            raise error(errno.EFAULT)
