# SPDX-License-Identifier: Apache-2.0
"""Which bytes of a file have come: what decides whether it is whole."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from hvring.errors import EffectError
from hvring.reasons import Reason

#: Pieces with gaps between them that are kept track of; hosts send in order, and one piece is enough for that.
MOST_PIECES: Final = 64
LARGEST: Final = (1 << 63) - 1


class Extents:
    """The bytes that came of a file of ``size`` bytes; 0 stands for a size that nobody announced.

    They may come in any order and more than once, and must leave no gap in the end.
    """

    def __init__(self, size: int = 0, limit: int | None = None) -> None:
        """``limit``: bytes that the file may have at most."""
        self._size = size
        self._limit = size or (LARGEST if limit is None else limit)
        self._pieces: list[tuple[int, int]] = []  # [begin, end), in order, none touches the next

    @property
    def length(self) -> int:
        """Bytes from the beginning of the file to the last one that came."""
        return self._pieces[-1][1] if self._pieces else 0

    def check(self, offset: int, count: int) -> None:
        """Raises EffectError for bytes that the file cannot have, before they are written."""
        if offset < 0 or offset + count > self._limit:
            what = f"of {self._size} bytes" if self._size else f"of {self._limit} bytes at most"
            raise EffectError(f"{count} bytes at {offset} in a file {what}", reason=Reason.TOO_LARGE)
        if len(self._pieces) >= MOST_PIECES and all(offset != end for _, end in self._pieces):
            raise EffectError(f"the file comes in more than {MOST_PIECES} pieces", reason=Reason.INCOMPLETE)

    def add(self, offset: int, count: int) -> None:
        """``count`` bytes at ``offset`` are written."""
        pieces = self._pieces
        begin, end = offset, offset + count
        if not count:
            return
        if len(pieces) == 1 and pieces[0][1] == begin:  # the usual case
            pieces[0] = (pieces[0][0], end)
            return
        first = bisect_left(pieces, begin, key=lambda piece: piece[1])
        last = first
        while last < len(pieces) and pieces[last][0] <= end:
            last += 1
        if first < last:
            begin, end = min(begin, pieces[first][0]), max(end, pieces[last - 1][1])
        pieces[first:last] = [(begin, end)]

    def check_whole(self) -> None:
        """Raises EffectError unless all came: exactly the announced bytes, or without a size no gap."""
        if len(self._pieces) > 1 or (self._pieces and self._pieces[0][0]):
            raise EffectError("bytes in the middle of the file never came", reason=Reason.INCOMPLETE)
        if self._size and self.length != self._size:
            raise EffectError(f"{self.length} bytes of {self._size} came", reason=Reason.INCOMPLETE)
