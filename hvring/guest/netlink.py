# SPDX-License-Identifier: Apache-2.0
"""A dump of the kernel's links, addresses or routes over rtnetlink, without a library or a shell."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from hvring.errors import EffectError

RTM_GETLINK: Final = 18
RTM_GETADDR: Final = 22
RTM_GETROUTE: Final = 26

_NLM_F_REQUEST_DUMP: Final = 0x301
_NLM_F_DUMP_INTR: Final = 0x10
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_ATTRIBUTE_TYPE_MASK: Final = 0x3FFF
_TIMEOUT: Final = 2.0  # seconds for each answer of the kernel
_TRIES: Final = 5


class _InterruptedDumpError(Exception):
    """Something changed during the dump: it may lack entries."""


def dump(request: int, head: struct.Struct) -> list[tuple[tuple[int, ...], dict[int, bytes]]]:
    """All objects of one kind: the fields of ``head`` (ifinfomsg, ifaddrmsg, rtmsg) and the attributes.

    Raises EffectError when the kernel does not answer.
    """
    for _ in range(_TRIES):
        try:
            return _dump_once(request, head)
        except _InterruptedDumpError:
            continue
        except OSError as problem:
            raise EffectError(f"rtnetlink does not answer: {problem}") from problem
    raise EffectError("the network changes faster than it can be read")


def attributes(data: bytes | memoryview) -> dict[int, bytes]:
    """The attributes in ``data``, by type; the first one of a type counts."""
    found: dict[int, bytes] = {}
    view = memoryview(data)
    while len(view) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(view)
        if not _ATTRIBUTE.size <= length <= len(view):
            break
        found.setdefault(kind & _ATTRIBUTE_TYPE_MASK, bytes(view[_ATTRIBUTE.size : length]))
        view = view[(length + 3) & ~3 :]
    return found


def _dump_once(request: int, head: struct.Struct) -> list[tuple[tuple[int, ...], dict[int, bytes]]]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.settimeout(_TIMEOUT)
        kernel.sendto(
            _HEADER.pack(_HEADER.size + head.size, request, _NLM_F_REQUEST_DUMP, 1, 0) + bytes(head.size),
            (0, 0),
        )
        return [
            (head.unpack_from(body), attributes(body[head.size :]))
            for kind, body in _messages(kernel)
            if kind == request - 2 and len(body) >= head.size  # RTM_NEWx is RTM_GETx - 2
        ]


def _messages(kernel: socket.socket) -> Iterator[tuple[int, memoryview]]:
    """Types and bodies up to the end of the dump."""
    while True:
        datagram, sender = kernel.recvfrom(1 << 18)
        if sender[0] != 0:  # only the kernel has port 0
            continue
        view = memoryview(datagram)
        while len(view) >= _HEADER.size:
            length, kind, flags, _, _ = _HEADER.unpack_from(view)
            if not _HEADER.size <= length <= len(view):
                raise OSError("malformed netlink message")
            if flags & _NLM_F_DUMP_INTR:
                raise _InterruptedDumpError
            if kind == _NLMSG_DONE:
                return
            body = view[_HEADER.size : length]
            if kind == _NLMSG_ERROR:
                raise OSError(-struct.unpack_from("=i", body)[0], "netlink error")
            yield kind, body
            view = view[(length + 3) & ~3 :]
