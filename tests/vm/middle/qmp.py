# SPDX-License-Identifier: Apache-2.0
"""QEMU's machine protocol: a command and its answer, or an event."""

from __future__ import annotations

import json
import socket
import time
from typing import Any


class QmpError(Exception):
    """QEMU refused a command or did not answer; the text is the reason."""


class Qmp:
    """One connection. Events that come meanwhile are kept for ``event``."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(10)
        self._socket.connect(path)
        self._bytes = b""
        self._events: list[dict[str, Any]] = []
        self._read(time.monotonic() + 10)  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Execute ``command``; its "return" value. QmpError."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        end = time.monotonic() + 10
        while message := self._read(end):
            if "error" in message:
                raise QmpError(message["error"]["desc"])
            if "return" in message:
                return message["return"]
            self._events.append(message)
        raise QmpError(f"no answer to {command}")

    def event(self, name: str, timeout: float) -> dict[str, Any] | None:
        """The data of the next event of this name, others before it are dropped; None if none comes."""
        end = time.monotonic() + timeout
        while message := self._events.pop(0) if self._events else self._read(end):
            if message.get("event") == name:
                return dict(message.get("data", {}))
        return None

    def _read(self, end: float) -> dict[str, Any] | None:
        while b"\n" not in self._bytes:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            if not data:
                raise QmpError("QEMU is gone")
            self._bytes += data
        line, self._bytes = self._bytes.split(b"\n", 1)
        return dict(json.loads(line))
