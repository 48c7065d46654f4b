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
        self.limit = min(size or (LARGEST if limit is None else limit), LARGEST)
        #: Bytes from the beginning, when nothing else came, as a host sends them; -1: there are pieces.
        self.front = 0
        self._pieces: list[tuple[int, int]] = []  # [begin, end), in order, none touches the next

    @property
    def length(self) -> int:
        """Bytes from the beginning of the file to the last one that came."""
        return self.front if self.front >= 0 else self._pieces[-1][1]

    def follow(self, offset: int, count: int) -> bool:
        """Add bytes that are the next ones of a file which came in order so far; False, and nothing, for others."""
        if offset == self.front and 0 < count <= self.limit - offset:
            self.front = offset + count
            return True
        return False

    def check(self, offset: int, count: int) -> None:
        """Raises EffectError for bytes that the file cannot have, before they are written."""
        if offset < 0 or offset + count > self.limit:
            what = f"of {self._size} bytes" if self._size else f"of {self.limit} bytes at most"
            raise EffectError(f"{count} bytes at {offset} in a file {what}", reason=Reason.TOO_LARGE)
        if len(self._pieces) >= MOST_PIECES and all(offset != end for _, end in self._pieces):
            raise EffectError(f"the file comes in more than {MOST_PIECES} pieces", reason=Reason.INCOMPLETE)

    def add(self, offset: int, count: int) -> None:
        """``count`` bytes at ``offset`` are written."""
        if not count or self.follow(offset, count):
            return
        pieces = self._pieces
        begin, end = offset, offset + count
        if self.front > 0:
            pieces.append((0, self.front))
        self.front = -1
        first = bisect_left(pieces, begin, key=lambda piece: piece[1])
        last = first
        while last < len(pieces) and pieces[last][0] <= end:
            last += 1
        if first < last:
            begin, end = min(begin, pieces[first][0]), max(end, pieces[last - 1][1])
        pieces[first:last] = [(begin, end)]
        if len(pieces) == 1 and not begin:
            self.front = end
            pieces.clear()

    def check_whole(self) -> None:
        """Raises EffectError unless all came: exactly the announced bytes, or without a size no gap."""
        if self.front < 0:
            raise EffectError("bytes in the middle of the file never came", reason=Reason.INCOMPLETE)
        if self._size and self.length != self._size:
            raise EffectError(f"{self.length} bytes of {self._size} came", reason=Reason.INCOMPLETE)
