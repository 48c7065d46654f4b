# SPDX-License-Identifier: Apache-2.0
"""Who is at the other end of a Unix socket, by the kernel's word, and who of them may speak."""

from __future__ import annotations

import array
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

_CREDENTIALS: Final = struct.Struct("=iII")  # struct ucred
_SO_PEERGROUPS: Final = 59
_GROUPS: Final = 65536  # the kernel knows no process with more


@dataclass(frozen=True, slots=True)
class Peer:
    """As the process was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        return f"process {self.pid} of user {self.uid}"


def peer_of(connected: socket.socket) -> Peer:
    """Raises OSError."""
    pid, uid, gid = _CREDENTIALS.unpack(
        connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    )
    groups = array.array("I")
    try:
        groups.frombytes(
            connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)  # 256 of them, mostly
        )
    except OSError:  # there are more; the largest buffer that getsockopt() takes is 1024 bytes
        pass
    return Peer(pid, uid, gid, frozenset(groups))


@dataclass(frozen=True, slots=True)
class Gate:
    """Root, this process's own user, and the members of ``group``."""

    group: int | None = None

    def is_trusted(self, peer: Peer) -> bool:
        """Whether it could end this process anyhow."""
        return peer.uid in (0, os.geteuid())

    def lets_in(self, peer: Peer) -> bool:
        """Whether it may speak."""
        return self.is_trusted(peer) or (
            self.group is not None and (peer.gid == self.group or self.group in peer.groups)
        )
