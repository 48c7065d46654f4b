# SPDX-License-Identifier: Apache-2.0
"""Where the keys of a pool file are, and whether that is still so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from hvring.errors import EffectError
from hvring.guest.records import KEY_SIZE, RECORD_SIZE, alias
from hvring.reasons import Reason

#: The kernel's time stamps of files lag behind the clock by less than this, in nanoseconds.
STAMP_GRAIN: Final = 50_000_000
#: The same where the file system keeps whole seconds only.
_COARSE_GRAIN: Final = 2_000_000_000

#: Nobody needs more; what is longer, be it by a hole, is refused rather than read for minutes.
LARGEST_FILE: Final = 65536 * RECORD_SIZE
_CHUNK: Final = 256 * RECORD_SIZE


class MovedError(Exception):
    """The file was changed meanwhile by a program that takes no lock: look at it again."""


class EmptiedError(MovedError):
    """It was truncated: all that it holds are the zeros and the records that we wrote behind its end."""


class Stamp(NamedTuple):
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    modified: int  # content, as programs may claim; ns
    changed: int  # anything, as the kernel knows; ns

    @classmethod
    def of(cls, fd: int) -> Stamp:
        status = os.fstat(fd)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether any later change shows in the stamp: what changed a moment ago may change again in the same tick."""
        grain = STAMP_GRAIN if self.modified % 10**9 else _COARSE_GRAIN
        return time.time_ns() - self.modified > grain


_OF_NOTHING: Final = Stamp(0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Index:
    """The places of the keys in one state of a file; values are never kept in memory.

    Of several records of one key the last counts: who appends without looking means the newest.  A record with an
    empty key is none.  A reader in another thread may look while :meth:`appended` adds to it: it finds what was, or
    what is.
    """

    stamp: Stamp = _OF_NOTHING
    is_settled: bool = False
    count: int = 0  # whole records, those with an empty key among them
    live: Sequence[int] = range(0)  # the places of records with a key, in the order of the file
    newest: dict[bytes, int] = field(default_factory=dict)
    older: dict[bytes, list[int]] = field(default_factory=dict)
    aliases: dict[bytes, bytes] = field(default_factory=dict)

    @classmethod
    def read(cls, fd: int) -> Index:
        """The keys of the open file; raises EffectError, OSError."""
        stamp = Stamp.of(fd)
        if stamp.size > LARGEST_FILE:
            raise EffectError(f"a file of {stamp.size} bytes is no pool", reason=Reason.POOL_DAMAGED)
        index = cls(stamp, stamp.is_settled)
        live: list[int] = []
        count = 0
        for count, key in enumerate(_keys(fd, stamp.size), start=1):
            if key:
                live.append(count - 1)
                index._add(key, count - 1)
        everything = len(live) == count
        return replace(index, count=count, live=range(count) if everything else live)

    @property
    def empty(self) -> set[int]:
        """The places of records with an empty key."""
        return set() if len(self.live) == self.count else set(range(self.count)).difference(self.live)

    def find(self, key: bytes) -> bytes | None:
        """The key in the file that ``key`` means: itself, or what a host is shown under that name."""
        return key if key in self.newest else self.aliases.get(key)

    def appended(self, key: bytes) -> Index:
        """The same with one more record; only for a file in which every record has a key."""
        self._add(key, self.count)
        return replace(self, count=self.count + 1, live=range(self.count + 1))

    def stamped(self, stamp: Stamp) -> Index:
        """The same for another state of the file that has the same keys at the same places."""
        return replace(self, stamp=stamp, is_settled=stamp.is_settled)

    def _add(self, key: bytes, place: int) -> None:
        before = self.newest.get(key)
        if before is not None:
            self.older.setdefault(key, []).append(before)
        self.newest[key] = place
        name = alias(key)
        if name is not None:
            self.aliases[name] = key


def _keys(fd: int, size: int) -> Iterator[bytes]:
    """The key of each whole record, b"" where there is none."""
    for start in range(0, size - size % RECORD_SIZE, _CHUNK):
        chunk = os.pread(fd, min(_CHUNK, size - start), start)
        for at in range(0, len(chunk) - RECORD_SIZE + 1, RECORD_SIZE):
            yield chunk[at : at + KEY_SIZE].partition(b"\0")[0]
        if len(chunk) < min(_CHUNK, size - start):
            return  # shortened by a program that takes no lock
