# SPDX-License-Identifier: Apache-2.0
"""What the three dialects have in common."""

from __future__ import annotations

from typing import Any, Final, Protocol

#: Seconds after which an answer is no use any more; the kernel waits 30 (PROTOCOL §10.3.5), counted from before we
#: read.  Effects that limit themselves do so at 25 at most.
PATIENCE: Final = 27.0


class Dialect(Protocol):
    """The words of one service; each module here is one."""

    REGISTRATION: bytes
    """What is written first, and answered before anything else is handed out."""

    def registered(self, answer: bytes, /) -> str:
        """What the kernel says to that, for people.  Raises MessageError when it is not what it says."""
        ...

    def decode(self, message: bytes, /) -> Any:
        """A message of :mod:`hvring.ic`, or :class:`~hvring.ic.unreadable.Unreadable`.  Never raises."""
        ...

    def encode(self, asked: Any, status: int, message: Any, /) -> bytes:
        """The answer to ``asked``: a status and, with status 0, what was asked for.

        Raises ValueError for an answer that does not go with what was asked.
        """
        ...

    def patience(self, asked: Any, /) -> float:
        """Seconds within which ``asked`` must be answered."""
        ...
