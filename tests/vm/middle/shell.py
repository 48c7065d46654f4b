# SPDX-License-Identifier: Apache-2.0
"""Run commands in the guest: a line over a virtio port, l2init's answer back."""

from __future__ import annotations

import socket
import time


class ShellError(Exception):
    """A command ended with an error, or not in time; the text has its output."""


class Shell:
    """Serial: one command at a time. Not for two threads at once."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._bytes = b""
        self._token = 0

    def wait_ready(self, timeout: float) -> None:
        """Wait for the guest's first line. ShellError."""
        end = time.monotonic() + timeout
        while self._line(end, "the guest's start") != "READY":
            pass

    def run(self, line: str, timeout: float) -> tuple[int, str]:
        """(exit status, output without the last line end). ShellError when there is no answer in time."""
        if "\n" in line:
            raise ValueError("a command is one line")
        self._token += 1
        self._socket.sendall(f"{self._token} {line}\n".encode())
        end = time.monotonic() + timeout
        # a command that was given up on may still answer: only lines between our own marks count
        while self._line(end, line) != f"<<< {self._token}":
            pass
        output: list[str] = []
        mark = f">>> {self._token} "
        while not (text := self._line(end, line)).startswith(mark):
            output.append(text)
        return int(text.removeprefix(mark)), "\n".join(output).rstrip("\n")

    def tell(self, line: str) -> None:
        """Send a command that will not answer (``poweroff``)."""
        self._socket.sendall(f"0 {line}\n".encode())

    def _line(self, end: float, what: str) -> str:
        while b"\n" not in self._bytes:
            self._socket.settimeout(max(0.001, end - time.monotonic()))
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise ShellError(f"no answer in time: {what}") from None
            if not data:
                raise ShellError(f"the guest is gone: {what}")
            self._bytes += data
        text, self._bytes = self._bytes.split(b"\n", 1)
        return text.decode(errors="replace").rstrip("\r")
