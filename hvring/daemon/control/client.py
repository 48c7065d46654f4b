# SPDX-License-Identifier: Apache-2.0
"""The other end of an agent's control socket: asks and waits."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

from hvring.daemon.control.protocol import DIRECTORY, SUFFIX, WATCH, ControlError, line
from hvring.events import printable

TIMEOUT: Final = 30.0  # seconds for an answer


class NotRunningError(ControlError):
    """Nobody listens there."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "not_running")


class ControlClient:
    """A connection.  NotRunningError, or ControlError of kind "refused" for who may not speak to it."""

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = TIMEOUT) -> None:
        self.path: Final = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(self.path)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            self._socket.close()
            raise NotRunningError(f"no agent listens at {self.path}") from None
        except PermissionError:
            self._socket.close()
            raise ControlError(
                f"{self.path}: only root, the agent's own user and the members of control.group may speak to it",
                "refused",
            ) from None
        except (OSError, ValueError) as error:
            self._socket.close()
            raise ControlError(f"{self.path}: {getattr(error, 'strerror', None) or error}") from error
        self._lines = self._socket.makefile("rb")

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        """The result; ControlError is the agent's word, or says that it does not answer."""
        self._send(verb, args)
        return self._result(self._read())

    def watch(self) -> Iterator[dict[str, Any]]:
        """``result`` now, and with each change, beside what ``changed``; until the agent ends."""
        self._send(WATCH, {})
        first = self._read()
        self._result(first)
        self._socket.settimeout(None)
        yield first
        while True:
            try:
                message = self._read()
            except NotRunningError:
                return
            yield message

    def _send(self, verb: str, args: dict[str, Any]) -> None:
        # An agent that refuses does not wait for what is asked; why is there to be read.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(line({"verb": verb, "args": args}))

    def _read(self) -> dict[str, Any]:
        try:
            found = self._lines.readline()
        except ConnectionResetError:
            found = b""
        except TimeoutError:
            raise ControlError(f"the agent at {self.path} does not answer", "timeout") from None
        if not found.endswith(b"\n"):
            raise NotRunningError(f"the agent at {self.path} ended before it answered")
        try:
            message = json.loads(found)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise ControlError(f"what listens at {self.path} is no agent")
        return message

    def _result(self, message: dict[str, Any]) -> dict[str, Any]:
        if "error" in message:
            raise ControlError(printable(str(message["error"])), str(message.get("kind")))
        result = message.get("result")
        if not isinstance(result, dict):
            raise ControlError(f"what listens at {self.path} is no agent")
        return result

    def close(self) -> None:
        """May be called twice."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sockets(directory: str = DIRECTORY) -> list[str]:
    """Where agents of this machine listen, or did: units have a directory of their own below this one."""
    found = []
    for place in (directory, *_below(directory)):
        try:
            names = sorted(os.listdir(place))
        except OSError:  # nobody's, or not for this user
            continue
        found += [f"{place}/{name}" for name in names if name.endswith(SUFFIX)]
    return found


def _below(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))
    except OSError:
        return []
