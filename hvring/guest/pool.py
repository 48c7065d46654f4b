# SPDX-License-Identifier: Apache-2.0
"""One pool file, read and changed beside other programs (PROTOCOL §4.4.5).

Of several records with one key the last counts, one with an empty key is none.  Nothing is forced to the disk, as in
Linux.  Nobody's lock keeps a reader out for good.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Sequence, Set
from typing import Final, TypeVar

from hvring.errors import EffectError
from hvring.guest import records
from hvring.guest.locks import LockedError, lock, locked, unlock
from hvring.guest.pool_file import (
    DIRECTORY_MODE,
    PoolFile,
    explain,
    make_directory,
    open_to_read,
    open_to_write,
    read_record,
    status_at,
)
from hvring.guest.pool_index import STAMP_GRAIN, EmptiedError, Index, MovedError, Stamp
from hvring.guest.records import KEY_SIZE, RECORD_SIZE, PoolLimitError
from hvring.pending import Pending, settle
from hvring.reasons import Reason
from hvring.status import Status

__all__ = [
    "DIRECTORY",
    "DIRECTORY_MODE",
    "MAX_RECORDS",
    "POOLS",
    "Pool",
    "PoolBusyError",
    "explain",
    "make_directory",
]

DIRECTORY: Final = "/var/lib/hyperv"
POOLS: Final = range(5)

#: Enough for every known use, and a bound on what a host can make this machine store in all pools (40 MiB).
MAX_RECORDS: Final = 16384

_TRIES: Final = 16
_FIRST_NAP: Final = 0.0005
_LONGEST_NAP: Final = 0.02

_UNKNOWN: Final = Index()

T = TypeVar("T")


class PoolBusyError(EffectError):
    """Another program kept the pool file locked for longer than one waits here."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason=Reason.POOL_LOCKED)


class Pool:
    """One pool file; a missing one is an empty pool. Safe to use from several threads and processes.

    Every method raises EffectError when the file cannot be used.  While another program keeps it locked, a change is
    given up after ``timeout`` seconds (PoolBusyError); reading goes on without the lock then.  The ``begin_`` methods
    do not wait: they give the result, or a Pending.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = 2.0,
        max_records: int = MAX_RECORDS,
        elsewhere: Callable[[], int] = lambda: 0,
        makes_directory: bool = False,
    ) -> None:
        """set() adds no record when here and ``elsewhere`` there are ``max_records``.

        ``makes_directory``: a change makes it if it is missing, rather than raise EffectError.
        """
        self.path = os.fspath(path)
        self._timeout = timeout
        self._max_records = max_records
        self._elsewhere = elsewhere
        self._makes_directory = makes_directory
        self._known = _UNKNOWN
        self._is_locked_for_long = False

    def __len__(self) -> int:
        return settle(self._until_unlocked(lambda last: self._read(lambda _, now: len(now.live), last)))

    def items(self) -> list[tuple[str, str]]:
        """All keys and values in the order of the file; a key comes as often as it is there."""
        return settle(self.begin_items())

    def get(self, key: str) -> str | None:
        """The value of ``key``, or None."""
        return settle(self.begin_get(key))

    def record(self, index: int) -> tuple[str, str] | None:
        """Key and value of record ``index``, or None past the end."""
        return settle(self.begin_record(index))

    def set(self, key: str, value: str) -> None:
        """Replace the value of ``key``, or append a record. Also raises PoolLimitError."""
        settle(self.begin_set(key, value))

    def delete(self, key: str) -> bool:
        """Remove all records of ``key``. False if there is none."""
        return settle(self.begin_delete(key))

    def exchange(self, drop: Collection[str] | None, add: Sequence[tuple[str, str]]) -> bool:
        """Take all records of the keys ``drop`` away (None: all records), and add these at the end, as one change.

        False, and nothing written: that is what the file holds.  Whoever takes a lock sees the old records or the new
        ones; killed meanwhile, the file holds one or the other if nobody else has it open, and else for each key.
        Unlike set() it takes fields without room for a NUL and bytes that are no UTF-8, as "surrogateescape" reads
        them.  Also raises PoolLimitError.
        """
        return settle(self.begin_exchange(drop, add))

    def begin_items(self) -> list[tuple[str, str]] | Pending[list[tuple[str, str]]]:
        """As :meth:`items`."""

        def read(fd: int, now: Index) -> list[tuple[str, str]]:
            return [records.pair(read_record(fd, place)) for place in now.live]

        return self._until_unlocked(lambda last: self._read(read, last))

    def begin_get(self, key: str) -> str | Pending[str | None] | None:
        """As :meth:`get`."""
        wanted = records.key_bytes(key)
        known = self._unchanged()
        if known is not None and known.pairs is not None:
            place = known.place(wanted)
            return None if place is None else known.pairs[place][1].decode(errors="surrogateescape")

        def read(fd: int, now: Index) -> str | None:
            found = now.find(wanted)
            if found is None:
                return None
            record = read_record(fd, now.newest[found])
            if record[:KEY_SIZE].partition(b"\0")[0] != found:
                raise MovedError
            return records.text(record[KEY_SIZE:])

        return self._until_unlocked(lambda last: self._read(read, last))

    def begin_record(self, index: int) -> tuple[str, str] | Pending[tuple[str, str] | None] | None:
        """As :meth:`record`."""
        known = self._unchanged()
        if known is not None and known.pairs is not None:
            if not 0 <= index < len(known.live):
                return None
            key, value = known.pairs[known.live[index]]
            return key.decode(errors="surrogateescape"), value.decode(errors="surrogateescape")

        def read(fd: int, now: Index) -> tuple[str, str] | None:
            return records.pair(read_record(fd, now.live[index])) if 0 <= index < len(now.live) else None

        return self._until_unlocked(lambda last: self._read(read, last))

    def begin_set(self, key: str, value: str) -> Pending[None] | None:
        """As :meth:`set`."""
        record = records.pack(key, value)
        return self._until_unlocked(lambda _: self._change(lambda file, now: self._set(record, file, now)))

    def begin_delete(self, key: str) -> bool | Pending[bool]:
        """As :meth:`delete`."""
        wanted = records.key_bytes(key)

        def delete(last: bool) -> bool:
            # Nothing is made, locked or written for a key that is not there.
            if self._read(lambda _, now: now.find(wanted), last) is None:
                return False
            return self._change(lambda file, now: self._delete(wanted, file, now))

        return self._until_unlocked(delete)

    def begin_exchange(
        self, drop: Collection[str] | None, add: Sequence[tuple[str, str]]
    ) -> bool | Pending[bool]:
        """As :meth:`exchange`."""
        wanted = None if drop is None else {records.key_bytes(key) for key in drop}
        added = [records.pack_raw(key, value) for key, value in add]

        def exchange(last: bool) -> bool:
            # Nothing is made, locked or written for what is there already.
            if self._read(lambda fd, now: self._holds(fd, now, wanted, added), last):
                return False
            return self._change(lambda file, now: self._exchange(wanted, added, file, now))

        return self._until_unlocked(exchange)

    def create(self) -> None:
        """Make the file if it is missing, and take away what a kill may have left: waits for nobody's lock."""
        try:
            fd, _ = open_to_write(self.path)
            try:
                with contextlib.suppress(LockedError), locked(fd, exclusive=True):
                    PoolFile(self.path, fd, 0, set()).tidy()
            finally:
                os.close(fd)
        except OSError as problem:
            raise explain(self.path, problem) from problem

    # ------------------------------------------------------------------------- inside

    def _until_unlocked(self, work: Callable[[bool], T]) -> T | Pending[T]:
        """Try ``work`` until no lock is in its way; it is told which attempt is the last."""
        if self._timeout > 0:
            try:
                return work(False)
            except LockedError:
                pass
        nap = _FIRST_NAP
        began = time.monotonic()
        give_up_at = began + self._timeout

        def attempt() -> T | Pending[T]:
            nonlocal nap
            now = time.monotonic()
            try:
                return work(now >= give_up_at)
            except LockedError as problem:
                if now >= give_up_at:
                    raise PoolBusyError(f"{self.path}: {problem}") from problem
            # The kernel has no lock with a time limit, and none that a descriptor would tell of.
            at, nap = min(now + nap, give_up_at), min(2 * nap, _LONGEST_NAP)
            return Pending(attempt, at)

        return Pending(attempt, min(began + nap, give_up_at)) if self._timeout > 0 else attempt()

    def _unchanged(self) -> Index | None:
        """What is known of the file, if it surely still holds that; not even opened for it."""
        known = self._known
        if not known.is_settled:
            return None
        try:
            return known if known.is_of(os.stat(self.path)) else None
        except OSError:
            return None

    def _read(self, use: Callable[[int, Index], T], last: bool) -> T:
        """``use`` with the open file and its index, both of one state of the file."""
        try:
            for _ in range(_TRIES):
                try:
                    fd, opened = open_to_read(self.path)
                except FileNotFoundError:
                    return use(-1, _UNKNOWN)
                try:
                    return self._read_from(fd, opened, use, last)
                except MovedError:
                    continue
                finally:
                    os.close(fd)
        except OSError as problem:
            raise explain(self.path, problem) from problem
        raise LockedError("the pool file changes faster than it can be read")

    def _read_from(self, fd: int, opened: os.stat_result, use: Callable[[int, Index], T], last: bool) -> T:
        now = self._known
        if not now.is_of(opened):
            try:
                with locked(fd, exclusive=False):
                    self._is_locked_for_long = False
                    return use(fd, self._load(fd))
            except LockedError:
                # Whoever may read the file may lock it for ever.  What it costs to find that out is paid once.
                if not (last or self._is_locked_for_long):
                    raise
                self._is_locked_for_long = True
                now = self._load(fd)
        result = use(fd, now)
        if Stamp.of(os.fstat(fd)) != now.stamp:
            raise MovedError
        return result

    def _change(self, work: Callable[[PoolFile, Index], T]) -> T:
        """``work`` with the locked file, a torn record at its end cut off."""
        try:
            for _ in range(_TRIES):
                fd, opened = open_to_write(self.path, makes_directory=self._makes_directory)
                try:
                    lock(fd, exclusive=True)
                    try:
                        return self._change_locked(fd, opened, work)
                    finally:
                        unlock(fd)
                except MovedError:
                    continue
                finally:
                    os.close(fd)
        except OSError as problem:
            raise explain(self.path, problem) from problem
        raise EffectError(f"{self.path}: changed by a program that takes no lock", reason=Reason.POOL_DAMAGED)

    def _change_locked(self, fd: int, opened: os.stat_result, work: Callable[[PoolFile, Index], T]) -> T:
        status = status_at(self.path, opened)
        if status is None:
            raise MovedError  # replaced or removed while we waited for the lock
        now = self._known if self._known.is_of(status) else self._load(fd)
        self._known = _UNKNOWN  # unless the change works, the next look reads the file
        if now.stamp.size != now.count * RECORD_SIZE:
            os.ftruncate(fd, now.count * RECORD_SIZE)
        try:
            return work(PoolFile(self.path, fd, now.count, now.empty), now)
        except EmptiedError:
            os.ftruncate(fd, 0)  # before anybody can lock it and read zeros
            raise

    def _set(self, record: bytes, file: PoolFile, now: Index) -> None:
        key, value = record[:KEY_SIZE].partition(b"\0")[0], record[KEY_SIZE:].partition(b"\0")[0]
        drop = now.empty.union(now.older.get(key, ()))
        place = now.newest.get(key)
        if place is None and len(now.live) + self._elsewhere() >= self._max_records:
            raise PoolLimitError(
                f"{self.path}: there are {self._max_records} records already",
                Status.DISK_FULL,
                Reason.POOL_FULL,
            )
        if drop:
            file.rewrite(drop, place, record)
        elif place is None:
            file.append(record)
            stamp = file.backdate(STAMP_GRAIN)
            if stamp is not None:  # so the file need not be read again
                self._known = now.appended(stamp, key, value)
        elif file.replace(place, record):
            stamp = file.backdate(STAMP_GRAIN)
            if stamp is not None:
                self._known = now.replaced(stamp, place, key, value)
        else:
            file.rewrite(set(), place, record)

    def _delete(self, wanted: bytes, file: PoolFile, now: Index) -> bool:
        key = now.find(wanted)
        if key is None:
            return False
        file.rewrite(now.empty.union(now.older.get(key, ()), (now.newest[key],)))
        return True

    def _exchange(
        self, wanted: Set[bytes] | None, added: Sequence[bytes], file: PoolFile, now: Index
    ) -> bool:
        drop = now.empty | _dropped(now, wanted)
        if now.count - len(drop) + len(added) + self._elsewhere() > self._max_records:
            raise PoolLimitError(
                f"{self.path}: {len(added)} more records are too many, {self._max_records} fit",
                Status.DISK_FULL,
                Reason.POOL_FULL,
            )
        file.exchange(drop, added)
        return True

    @staticmethod
    def _holds(fd: int, now: Index, wanted: Set[bytes] | None, added: Sequence[bytes]) -> bool:
        """Whether the records of these keys are what is to be added, in that order."""
        places = sorted(_dropped(now, wanted))
        if wanted is None and now.stamp.size != len(added) * RECORD_SIZE:
            return False
        return len(places) == len(added) and all(
            records.same(read_record(fd, place), record) for place, record in zip(places, added, strict=True)
        )

    def _load(self, fd: int) -> Index:
        """The index of the file; made again only if that is not surely known."""
        known = self._known
        if not known.is_of(os.fstat(fd)):
            try:
                known = self._known = Index.read(fd)
            except EffectError as problem:
                raise EffectError(f"{self.path}: {problem}", reason=Reason.POOL_DAMAGED) from problem
        return known


def _dropped(now: Index, wanted: Set[bytes] | None) -> set[int]:
    """The places of the records of these keys; None: of all that have a key."""
    if wanted is None:
        return set(now.live)
    return {
        place for key in wanted & now.newest.keys() for place in (*now.older.get(key, ()), now.newest[key])
    }
