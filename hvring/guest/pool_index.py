# SPDX-License-Identifier: Apache-2.0
"""Where the keys of a pool file are, and whether that is still so."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    @property
    def is_settled(self) -> bool:
        """Whether any later change shows in the stamp: what changed a moment ago may change again in the same tick."""
        grain = STAMP_GRAIN if self.modified % 10**9 else _COARSE_GRAIN
        return time.time_ns() - self.modified > grain


_OF_NOTHING: Final = Stamp(0, 0, 0, 0, 0)

#: Bytes of keys and values that are kept of a pool; of one that has more only the keys are.
KEPT: Final = 256 << 10
OF_A_PAIR: Final = 160  # bytes that two texts take beside their letters


class Pairs:
    """Keys and values by their places, as they stand in the file up to their NULs."""

    __slots__ = ("_room", "_texts")

    def __init__(self) -> None:
        self._texts: list[tuple[bytes, bytes]] = []
        self._room = KEPT

    def __getitem__(self, place: int) -> tuple[bytes, bytes]:
        return self._texts[place]

    def __len__(self) -> int:
        return len(self._texts)

    def put(self, place: int, key: bytes, value: bytes) -> bool:
        """In the place of another one, or behind the last.  False: with this one it is too much to be kept."""
        room = self._room - len(key) - len(value)
        if place < len(self._texts):
            before = self._texts[place]
            room += len(before[0]) + len(before[1])
            self._texts[place] = key, value
        else:
            room -= OF_A_PAIR
            self._texts.append((key, value))
        self._room = room
        return room >= 0


@dataclass(slots=True)
class Index:
    """The places of the keys in one state of a file, and of a small file also the values; nobody changes its fields.

    Of several records of one key the last counts: who appends without looking means the newest.  A record with an
    empty key is none.  A reader in another thread may look while :meth:`appended` or :meth:`replaced` changes it: it
    finds what was, or what is.
    """

    stamp: Stamp = _OF_NOTHING
    is_settled: bool = False
    count: int = 0  # whole records, those with an empty key among them
    live: Sequence[int] = range(0)  # the places of records with a key, in the order of the file
    newest: dict[bytes, int] = field(default_factory=dict)
    older: dict[bytes, list[int]] = field(default_factory=dict)
    aliases: dict[bytes, bytes] = field(default_factory=dict)
    pairs: Pairs | None = None

    @classmethod
    def read(cls, fd: int) -> Index:
        """Of the open file; raises EffectError, OSError."""
        stamp = Stamp.of(os.fstat(fd))
        if stamp.size > LARGEST_FILE:
            raise EffectError(f"a file of {stamp.size} bytes is no pool", reason=Reason.POOL_DAMAGED)
        index = cls(stamp, stamp.is_settled)
        live: list[int] = []
        pairs: Pairs | None = Pairs()
        place = -1
        for place, (key, value) in enumerate(_records(fd, stamp.size)):
            if pairs is not None and not pairs.put(place, key, value.partition(b"\0")[0]):
                pairs = None
            if key:
                live.append(place)
                index._add(key, place)
        index.count = place + 1
        index.live = range(place + 1) if len(live) == place + 1 else live
        index.pairs = pairs
        return index

    @property
    def empty(self) -> set[int]:
        """The places of records with an empty key."""
        return set() if len(self.live) == self.count else set(range(self.count)).difference(self.live)

    def find(self, key: bytes) -> bytes | None:
        """The key in the file that ``key`` means: itself, or what a host is shown under that name."""
        return key if key in self.newest else self.aliases.get(key)

    def place(self, key: bytes) -> int | None:
        """Of the record that counts for ``key``, in the meaning of :meth:`find`."""
        found = self.find(key)
        return None if found is None else self.newest[found]

    def is_of(self, status: os.stat_result) -> bool:
        """Whether this is surely what the file holds that looks so."""
        return self.is_settled and self.stamp == (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )

    def appended(self, stamp: Stamp, key: bytes, value: bytes) -> Index:
        """The same with one more record, in that state; only for a file in which every record has a key."""
        place = self.count
        pairs = self._put(place, key, value)  # before the key can be found there
        self._add(key, place)
        count = place + 1
        return Index(
            stamp,
            stamp.is_settled,
            count,
            range(count),
            self.newest,
            self.older,
            self.aliases,
            pairs,
        )

    def replaced(self, stamp: Stamp, place: int, key: bytes, value: bytes) -> Index:
        """The same with another value at this place, in that state."""
        return Index(
            stamp,
            stamp.is_settled,
            self.count,
            self.live,
            self.newest,
            self.older,
            self.aliases,
            self._put(place, key, value),
        )

    def _put(self, place: int, key: bytes, value: bytes) -> Pairs | None:
        pairs = self.pairs
        return pairs if pairs is not None and pairs.put(place, key, value) else None

    def _add(self, key: bytes, place: int) -> None:
        before = self.newest.get(key)
        if before is not None:
            self.older.setdefault(key, []).append(before)
        self.newest[key] = place
        name = alias(key)
        if name is not None:
            self.aliases[name] = key


def _records(fd: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Of each whole record the key, b"" where there is none, and the field of its value."""
    for start in range(0, size - size % RECORD_SIZE, _CHUNK):
        chunk = os.pread(fd, min(_CHUNK, size - start), start)
        for at in range(0, len(chunk) - RECORD_SIZE + 1, RECORD_SIZE):
            yield chunk[at : at + KEY_SIZE].partition(b"\0")[0], chunk[at + KEY_SIZE : at + RECORD_SIZE]
        if len(chunk) < min(_CHUNK, size - start):
            return  # shortened by a program that takes no lock
