# SPDX-License-Identifier: Apache-2.0
"""hv_vss (PROTOCOL §10.3.2, §10.4.2)."""

from __future__ import annotations

import errno

from hv_utils_model.device import Device
from hv_utils_model.file import error
from hv_utils_model.states import FAIL, FREEZE_LIMIT, HEADER, LIMIT, State

SIZE = 12
LEGACY, REGISTER = 128, 129
HOT_BACKUP, GET_DM_INFO, FREEZE, THAW = 2, 3, 5, 6
NO_AUTO_RECOVERY = 5


class VssDevice(Device):
    """Answers all but three operations without user space."""

    name = "vss"
    kind = 5
    least = HEADER + SIZE
    frameworks = ((3, 0),)
    versions = ((5, 0),)

    def _made_up(self) -> bytes:
        return bytes([THAW]).ljust(SIZE, b"\0")

    def _handle(self) -> bool:
        operation = self.buffer[HEADER]
        if operation in (HOT_BACKUP, FREEZE, THAW):
            if self.state < State.READY:
                self._respond(FAIL)
                return False
            limit = FREEZE_LIMIT if operation == FREEZE else LIMIT
            self._hand_out(bytes([operation]).ljust(SIZE, b"\0"), limit)
            return False
        if operation == GET_DM_INFO:
            self.buffer[HEADER + 8 : HEADER + 12] = bytes(4)
        self._respond(0)
        return True

    def _on_message(self, data: bytes) -> None:
        if len(data) != SIZE:
            raise error(errno.EINVAL)
        if data[0] in (LEGACY, REGISTER):
            # A status with such a low byte is taken for this, too.
            if self.state > State.READY:
                raise error(errno.EINVAL)
            if data[0] == REGISTER and self._send_up(bytes([REGISTER, 0, 0, 0]), self._go_on):
                raise error(errno.EFAULT)
            return
        if self.state != State.USERSPACE_REQ:
            raise error(errno.EINVAL)
        self._answered(data, lambda: self._finish(data))

    def _finish(self, data: bytes) -> None:
        # The driver means the operation, but the status lies in its place.
        if data[0] == HOT_BACKUP:
            self.buffer[HEADER + 8 : HEADER + 12] = NO_AUTO_RECOVERY.to_bytes(4, "little")
        self._respond(int.from_bytes(data[:4], "little"))
