# SPDX-License-Identifier: Apache-2.0
"""chrony's reference clock SOCK: a datagram for each sample, to a socket that chronyd makes when it starts."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from hvring.errors import EffectError
from hvring.guest.time_feed import FeedSample
from hvring.reasons import Reason

_SAMPLE: Final = struct.Struct("@lldiiii")  # struct sock_sample: timeval, offset, pulse, leap, pad, magic
_MAGIC: Final = 0x534F434B
_NS: Final = 1_000_000_000
_LONGEST: Final = 107  # bytes of a Unix socket's path


class ChronySock:
    """Each sample goes to the socket that is there then: chronyd makes another one when it is started again."""

    def __init__(self, path: str) -> None:
        """ValueError for a path that no socket can have."""
        if not os.path.isabs(path) or "\0" in path or len(os.fsencode(path)) > _LONGEST:
            raise ValueError(f"{path!r} is no absolute path of a socket, of at most {_LONGEST} bytes")
        self._path = path

    def give(self, sample: FeedSample) -> None:
        """EffectError when chronyd is not there or does not keep up."""
        # The moment is cut to microseconds; the offset was the same then.
        micros = sample.at_ns // 1000
        data = _SAMPLE.pack(
            micros // 1_000_000, micros % 1_000_000, sample.offset_ns / _NS, 0, sample.leap, 0, _MAGIC
        )
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
                sock.sendto(data, self._path)
        except OSError as problem:
            raise EffectError(_words(self._path, problem), reason=Reason.FEED_UNREACHABLE) from problem


def _words(path: str, problem: OSError) -> str:
    if problem.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return f"chronyd does not listen on {path}"
    if problem.errno == errno.EAGAIN:
        return f"chronyd does not read {path}"
    return f"{path} takes no sample: {problem.strerror}"
