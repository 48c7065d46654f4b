# SPDX-License-Identifier: Apache-2.0
"""The SHA-256 of a file that comes in pieces, made while it comes: only in the process that writes it."""

from __future__ import annotations

import os
import time
from typing import Any, Final

_PIECE: Final = 1 << 20


class Digest:
    """:meth:`add` what was written; what did not come in order is read back by :meth:`finish`."""

    def __init__(self) -> None:
        from hashlib import sha256  # a megabyte, which nobody else should pay

        self._new: Any = sha256
        self._sum = sha256()
        self._done = 0  # bytes from the start that are in the sum

    def add(self, offset: int, data: bytes | memoryview) -> None:
        """``data`` is in the file now, at ``offset``."""
        if offset == self._done:
            self._sum.update(data)
            self._done += len(data)
        elif offset < self._done:  # what was summed up is not in the file any more
            self._sum = self._new()
            self._done = 0

    def finish(self, fd: int, size: int, seconds: float) -> str:
        """Of the file's ``size`` bytes, in hexadecimal; empty if reading takes over ``seconds``.  Raises OSError."""
        until = time.monotonic() + seconds
        while self._done < size:
            piece = os.pread(fd, min(_PIECE, size - self._done), self._done)
            if not piece or time.monotonic() > until:
                return ""
            self.add(self._done, piece)
        return str(self._sum.hexdigest())
