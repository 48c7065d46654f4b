# SPDX-License-Identifier: Apache-2.0
"""Redis from Debian, with an append-only file or snapshots."""

from __future__ import annotations

import contextlib
import shutil
import socket
from typing import Any

import pytest
from program import Program
from scene import HOOKS

_WRITERS = 2


class Client:
    """Each transaction sets two keys to its number, and its bit in a third."""

    def __init__(self, path: str, number: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._answers = self._socket.makefile("rb")
        self._number = number

    def commit(self, number: int) -> None:
        n = self._number
        self._send("MULTI", f"SET a{n} {number}", f"SET b{n} {number}", f"SETBIT all{n} {number} 1", "EXEC")
        expected = ["+OK", *["+QUEUED"] * 3, "*3", "+OK", "+OK", ":0"]
        for line in expected:
            if (answer := self._line()) != line:
                raise ValueError(f"{answer!r} for {line!r} of {number}")

    def ask(self, command: str) -> str:
        self._send(command)
        answer = self._line()
        return self._line() if answer.startswith("$") and answer != "$-1" else answer.lstrip(":")

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._answers.close()
        self._socket.close()

    def _send(self, *lines: str) -> None:
        self._socket.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def _line(self) -> str:
        return self._answers.readline().decode().rstrip("\r\n")


class Redis:
    def __init__(self, namespace: Any, mount: str, *, append_only: bool = True) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("not installed: redis-server")
        self._namespace = namespace
        self._append_only = append_only
        self._sockets = namespace.folder / "sockets"
        self._sockets.mkdir()
        self._sockets.chmod(0o777)
        self._running: Program | None = None
        self._looking: Program | None = None
        self._mount = mount

    def begin(self) -> None:
        self._namespace.run("mkdir", f"{self._mount}/db")
        self._namespace.run("chown", "redis:", f"{self._mount}/db")
        self._running = self._start(f"{self._mount}/db", "running")

    def hook(self) -> str:
        path = self._sockets / "running"
        return f'#!/bin/sh\nexport HVRING_REDIS={path}\nexec {HOOKS / "redis"} "$@"\n'

    def clients(self) -> list[Client]:
        return [Client(str(self._sockets / "running"), n) for n in range(_WRITERS)]

    def ask(self, command: str, which: str = "running") -> str:
        client = Client(str(self._sockets / which), 0)
        try:
            return client.ask(command)
        finally:
            client.close()

    def look(self, *data: str) -> list[int]:
        self._looking = server = self._start(f"{data[0]}/db", "copy")
        try:
            found = []
            for n in range(_WRITERS):
                sides = [self.ask(f"GET {side}{n}", "copy") for side in "ab"]
                assert sides[0] == sides[1], f"torn: {sides}"
                count = 0 if sides[0] == "$-1" else int(sides[0])
                assert int(self.ask(f"BITCOUNT all{n}", "copy")) == count, "holes"
                found.append(count)
            return found
        finally:
            server.kill()
            self._looking = None

    def end(self) -> None:
        if self._looking is not None:
            self._looking.kill()
        if self._running is not None:
            self._running.kill()

    def _start(self, data: str, which: str) -> Program:
        options = {
            "port": "0",
            "unixsocket": str(self._sockets / which),
            "unixsocketperm": "777",
            "dir": data,
            "save": "",
            "appendonly": "yes" if self._append_only else "no",
            "appendfsync": "everysec",
            "auto-aof-rewrite-min-size": "4mb",  # the file is written anew every now and then
            "aof-load-truncated": "no",  # a command that is cut off is not to be forgiven
        }
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        server = Program(self._namespace, "redis", shutil.which("redis-server") or "", *words)
        try:
            server.wait_for("eady to accept connections")
        except BaseException:
            server.kill()
            raise
        return server
