# SPDX-License-Identifier: Apache-2.0
"""The other end of the control socket: drive a host that serves in another process. Blocking."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Any

from hvring.errors import EndpointError
from hvring.host.control import SUFFIX
from hvring.host.errors import HostError


class RemoteError(HostError):
    """The serving host's error: ``kind`` names its class, ``status`` is the guest's, if there is one."""

    def __init__(self, message: str, kind: str, status: int | None) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status


class ControlClient:
    """A connection to the control socket of the host at ``path`` (that of its guests' socket).

    Closing it cancels the request that runs. Raises EndpointError when no host serves there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(self._path + SUFFIX)
        except OSError as error:
            self._socket.close()
            raise EndpointError(
                f"no host serves at {self._path} ({error.strerror or error}): "
                f"start one with `hvring host --socket {self._path}`"
            ) from error
        self._lines = self._socket.makefile("rb")

    def request(
        self, verb: str, on_event: Callable[[dict[str, Any]], None] | None = None, **args: Any
    ) -> Any:
        """The result of a verb; ``on_event`` gets what comes before; arguments that are None are left out.

        Raises RemoteError, EndpointError.
        """
        given = {name: value for name, value in args.items() if value is not None}
        try:
            self._socket.sendall(json.dumps({"verb": verb, "args": given}).encode() + b"\n")
            for line in self._lines:
                message = json.loads(line)
                if "event" not in message:
                    return _result(message)
                if on_event is not None:
                    on_event(message)
        except (OSError, ValueError) as error:
            raise EndpointError(f"the host at {self._path} cannot be understood: {error}") from error
        raise EndpointError(f"the host at {self._path} ended before it answered")

    def close(self) -> None:
        """Leave; may be called twice."""
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _result(message: dict[str, Any]) -> Any:
    if "error" in message:
        raise RemoteError(message["error"], message.get("kind", "HostError"), message.get("status"))
    return message["result"]
