# SPDX-License-Identifier: Apache-2.0
"""What the agent and the process that runs the hooks say to each other: JSON, one object a message."""

from __future__ import annotations

import array
import json
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

_LARGEST: Final = 65536
_MOST_DESCRIPTORS: Final = 8


def say(connection: socket.socket, what: Mapping[str, Any], descriptors: Sequence[int] = ()) -> bool:
    """False: the other side is gone, or does not listen."""
    message = json.dumps(what).encode()
    try:
        # Nobody waits for one who does not listen: hooks must come to their end.
        socket.send_fds(connection, [message], list(descriptors), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def hear(connection: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """What has come, with its descriptors; None: the other side is gone.  Raises BlockingIOError if nothing has."""
    found = array.array("i")
    try:
        raw, more, _, _ = connection.recvmsg(
            _LARGEST,
            socket.CMSG_LEN(_MOST_DESCRIPTORS * found.itemsize),
            socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC,
        )
    except BlockingIOError:
        raise
    except OSError:
        return None, []
    for _, _, data in more:
        found.frombytes(data[: len(data) - len(data) % found.itemsize])
    try:
        said = json.loads(raw) if raw else None
    except ValueError:
        said = None
    return (said if isinstance(said, dict) else None), list(found)
