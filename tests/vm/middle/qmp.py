# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol: a command, its answer."""

from __future__ import annotations

import json
import socket
from typing import Any


class QmpError(Exception):
    """QEMU refused a command; the text is its reason."""


class Qmp:
    """One connection; events are passed over."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._file = self._socket.makefile("rw")
        json.loads(self._file.readline())  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Execute ``command``; its "return" value. QmpError."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise QmpError(answer["error"]["desc"])
            if "return" in answer:
                return answer["return"]
        raise QmpError("QEMU is gone")
