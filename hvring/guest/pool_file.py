# SPDX-License-Identifier: Apache-2.0
"""Changing an open, locked pool file so that a kill at any moment leaves the old state or the new one.

What one write can do is written in place.  What needs more goes into a new file that takes the old one's name, if
nobody else has the old one open: who waits for its lock would write into a file without a name.  Else it is done in
place by steps after each of which a reader finds the old value or the new one: at worst an older record of a key, or a
record with an empty key, is left for the next change to drop.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator, Sequence
from typing import Final

from hvring.errors import EffectError
from hvring.guest import records
from hvring.guest.locks import LockedError, is_alone, locked, unlock
from hvring.guest.pool_index import EmptiedError, MovedError, Stamp
from hvring.guest.records import KEY_SIZE, RECORD_SIZE
from hvring.reasons import Reason
from hvring.status import Status

DIRECTORY_MODE: Final = 0o755
FILE_MODE: Final = 0o644

#: What the host is told (PROTOCOL §3.3).
_STATUS: Final = {
    errno.ENOSPC: Status.DISK_FULL,
    errno.EDQUOT: Status.DISK_FULL,
    errno.EFBIG: Status.DISK_FULL,
    errno.EACCES: Status.ACCESS_DENIED,
    errno.EPERM: Status.ACCESS_DENIED,
    errno.EROFS: Status.ACCESS_DENIED,
}

_CHUNK: Final = 256 * RECORD_SIZE
_STRAGGLERS: Final = 0.25  # seconds for those who opened the old file in the moment before it lost its name
# A FIFO or a device in a pool's place must not hold us up.
_FLAGS: Final = os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


def explain(path: str, problem: OSError) -> EffectError:
    """What the host is told of it."""
    return EffectError(f"{path}: {problem.strerror}", _STATUS.get(problem.errno or 0, Status.FAIL))


def make_directory(path: str) -> None:
    """The folder of the pools, as the in-tree daemon makes it; raises EffectError."""
    if os.path.isdir(path):
        return
    try:
        os.makedirs(path, exist_ok=True)
        os.chmod(path, DIRECTORY_MODE)
    except OSError as problem:
        raise explain(path, problem) from problem


def open_to_read(path: str) -> tuple[int, os.stat_result]:
    """A descriptor and what the file was then; raises OSError, EffectError for what is no file, LockedError while an
    opener has to wait."""
    return _open(path, os.O_RDONLY)


def open_to_write(path: str, *, makes_directory: bool = False) -> tuple[int, os.stat_result]:
    """The same, and the file is made if it is missing, and if it may be its directory."""
    while True:
        try:
            return _open(path, os.O_RDWR)
        except FileNotFoundError:
            if makes_directory:
                make_directory(os.path.dirname(path))
        try:
            fd, status = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            if os.path.islink(path):
                raise EffectError(f"{path}: a link that leads nowhere", reason=Reason.POOL_DAMAGED) from None
            continue
        os.fchmod(fd, FILE_MODE)  # whatever the umask; an older file keeps the mode its owner chose
        return fd, status


def status_at(path: str, opened: os.stat_result) -> os.stat_result | None:
    """What the file of this name is now, if it still is the one that was opened."""
    try:
        now = os.stat(path)
    except FileNotFoundError:
        return None
    return now if os.path.samestat(now, opened) else None


def read_record(fd: int, place: int) -> bytes:
    """A whole record; raises EmptiedError where there is none any more."""
    record = os.pread(fd, RECORD_SIZE, place * RECORD_SIZE)
    if len(record) != RECORD_SIZE:
        raise EmptiedError
    return record


class PoolFile:
    """One change of the open file ``fd``, exclusively locked, of ``count`` whole records and nothing behind them.

    Every method raises OSError, and MovedError if the file turns out not to hold what it should.
    """

    def __init__(self, path: str, fd: int, count: int, empty: set[int]) -> None:
        """``empty``: the places of records without a key."""
        self._path = path
        self._fd = fd
        self._count = count
        self._empty = empty
        self._accessed = 0  # the file's time of that, in ns

    def append(self, record: bytes) -> None:
        """One more record, at the end that the file has in that moment."""
        start = self._count * RECORD_SIZE
        parts = records.parts(self._count, record)
        try:
            if len(parts) == 1 or is_alone(self._fd):
                self._write_at_the_end(record)
            else:
                # Killed after a part of it, others would append behind that part: so there is a whole record from the
                # beginning, one without a key.
                for offset, data in reversed(parts):
                    _write(self._fd, data, offset)
        except OSError:
            with contextlib.suppress(OSError):  # else the next change cuts the rest off
                os.ftruncate(self._fd, start)
            raise
        self._count += 1
        self._must_hold(self._count - 1, record)

    def _write_at_the_end(self, record: bytes) -> None:
        flags = fcntl.fcntl(self._fd, fcntl.F_GETFL)
        fcntl.fcntl(self._fd, fcntl.F_SETFL, flags | os.O_APPEND)
        try:
            _write(self._fd, record, self._count * RECORD_SIZE)
        finally:
            fcntl.fcntl(self._fd, fcntl.F_SETFL, flags)

    def replace(self, place: int, record: bytes) -> bool:
        """Another value for the key at ``place``.  False, and nothing done: it takes more than one write."""
        old = read_record(self._fd, place)
        writes = records.steps(place, old, record)
        if writes is None:
            return False
        try:
            for offset, data in writes:
                self._look_at_the_end()
                _write(self._fd, data, offset)
        except OSError:
            with contextlib.suppress(OSError):
                _write(self._fd, old, place * RECORD_SIZE)
            raise
        self._must_hold(place, record)
        return True

    def rewrite(self, drop: set[int], place: int | None = None, record: bytes | None = None) -> None:
        """Without the records at the places ``drop``, and with ``record`` at ``place`` or, for None, at the end."""
        if record is None and drop == {self._count - 1}:
            self._cut(self._count - 1)
        elif not (is_alone(self._fd) and self._take_its_name(drop, place, record)):
            self._rewrite_in_place(drop, place, record)

    def exchange(self, drop: set[int], added: Sequence[bytes]) -> None:
        """Without the records at the places ``drop``, and with these at the end."""
        if not added and len(drop) == self._count:
            self._cut(0)
        elif not (is_alone(self._fd) and self._take_its_name(drop, None, b"".join(added))):
            for record in added:  # the last record of a key counts: each is its key's new value at once
                self.append(record)
            self._rewrite_in_place(drop, None, None)

    def tidy(self) -> None:
        """Cut off a part of a record at the end, and remove a file that was to take this one's name."""
        size = os.fstat(self._fd).st_size
        if size % RECORD_SIZE:
            os.ftruncate(self._fd, size - size % RECORD_SIZE)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(_beside(os.path.realpath(self._path)))

    def backdate(self, grain: int) -> Stamp | None:
        """Set the time of the change just made by ``grain`` nanoseconds back; None: we may not, the file is not ours.

        The next change by anybody must show in the time stamp, also when it comes in the same tick of the kernel's
        clock: so this change gets a stamp that lies before that tick, and that no other change has.
        """
        try:
            os.utime(self._fd, ns=(self._accessed, time.time_ns() - grain))
        except PermissionError:
            return None
        return Stamp.of(self._look_at_the_end())

    # ------------------------------------------------------------------------- a new file in the old one's place

    def _take_its_name(self, drop: set[int], place: int | None, record: bytes | None) -> bool:
        """False, and nothing done: there is no room or no right for a second file."""
        opened = os.fstat(self._fd)
        before = Stamp.of(opened)
        target = os.path.realpath(self._path)
        beside = _beside(target)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
            new = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            # Who finds the new file waits until all that belongs into it is there.
            with locked(new, exclusive=True):
                try:
                    self._be_like_the_old(new)
                    self._copy(new, drop, place, record)
                    if Stamp.of(os.fstat(self._fd)) != before or status_at(target, opened) is None:
                        raise MovedError
                    os.rename(beside, target)
                except (OSError, MovedError) as problem:
                    with contextlib.suppress(OSError):
                        os.unlink(beside)
                    if isinstance(problem, MovedError):
                        raise
                    return False
                self._follow_stragglers(new, before, record)
        finally:
            os.close(new)
        return True

    def _be_like_the_old(self, new: int) -> None:
        old = os.fstat(self._fd)
        ours = os.fstat(new)
        if (old.st_uid, old.st_gid) != (ours.st_uid, ours.st_gid):
            os.fchown(new, old.st_uid, old.st_gid)
        os.fchmod(new, stat.S_IMODE(old.st_mode))
        with contextlib.suppress(OSError):  # file systems without labels
            for name in os.listxattr(self._fd):
                os.setxattr(new, name, os.getxattr(self._fd, name))

    def _copy(self, new: int, drop: set[int], place: int | None, record: bytes | None) -> None:
        to = 0
        for first, last in _runs(self._count, drop):
            for start in range(first * RECORD_SIZE, last * RECORD_SIZE, _CHUNK):
                chunk = os.pread(self._fd, min(_CHUNK, last * RECORD_SIZE - start), start)
                if len(chunk) != min(_CHUNK, last * RECORD_SIZE - start):
                    raise MovedError
                _write(new, chunk, to)
                to += len(chunk)
        if record is not None:
            before = None if place is None else (place - sum(1 for p in drop if p < place)) * RECORD_SIZE
            _write(new, record, to if before is None else before)

    def _follow_stragglers(self, new: int, before: Stamp, record: bytes | None) -> None:
        """What others still did to the old file, done to the new one."""
        unlock(self._fd)
        give_up_at = time.monotonic() + _STRAGGLERS
        while not is_alone(self._fd) and time.monotonic() < give_up_at:
            time.sleep(0.0005)
        grown = os.fstat(self._fd).st_size - before.size
        if grown < 0:
            os.ftruncate(new, 0)
            if record is not None:
                _write(new, record, 0)
        if grown > 0:
            extra = os.pread(self._fd, grown - grown % RECORD_SIZE, before.size)
            _write(new, extra, os.fstat(new).st_size)

    # ------------------------------------------------------------------------- in place, beside others

    def _rewrite_in_place(self, drop: set[int], place: int | None, record: bytes | None) -> None:
        if record is not None and (place is None or not self.replace(place, record)):
            self.append(record)
            if place is not None:
                # The last record of a key counts, so what lies before it may be half old and half new.
                _write(self._fd, record, place * RECORD_SIZE)
                self._must_hold(place, record)
                self._cut(self._count - 1)
        for one in sorted(drop):  # the newest record of a key goes last: no older value comes back
            self._look_at_the_end()
            _write(self._fd, bytes(KEY_SIZE), one * RECORD_SIZE)
        self._empty |= drop
        if drop:
            self._close_gaps(min(drop))

    def _close_gaps(self, gap: int) -> None:
        """Move up what lies behind ``gap``: each record gets its key last, and there is none without until then."""
        for place in range(gap + 1, self._count):
            if place in self._empty:
                continue
            record = self._solid(place)
            _write(self._fd, record[KEY_SIZE:], gap * RECORD_SIZE + KEY_SIZE)
            _write(self._fd, record[:KEY_SIZE], gap * RECORD_SIZE)
            if read_record(self._fd, gap) != record:
                raise EmptiedError
            self._solid(place)
            _write(self._fd, bytes(KEY_SIZE), place * RECORD_SIZE)
            gap += 1
        self._empty = set()
        self._cut(gap)

    # ------------------------------------------------------------------------- what others did without a lock

    def _look_at_the_end(self) -> os.stat_result:
        """Writing behind the end would fill what lies between with zeros."""
        status = os.fstat(self._fd)
        if status.st_size < self._count * RECORD_SIZE:
            raise EmptiedError
        if status.st_size > self._count * RECORD_SIZE:
            raise MovedError
        return status

    def _must_hold(self, place: int, record: bytes) -> None:
        self._accessed = self._look_at_the_end().st_atime_ns
        if place and place - 1 not in self._empty:
            both = os.pread(self._fd, 2 * RECORD_SIZE, (place - 1) * RECORD_SIZE)
            if both[RECORD_SIZE:] != record or not both[0]:  # the one before: as in _solid
                raise EmptiedError
        elif read_record(self._fd, place) != record:
            raise EmptiedError

    def _cut(self, count: int) -> None:
        """Leave so many records."""
        self._look_at_the_end()
        os.ftruncate(self._fd, count * RECORD_SIZE)
        self._count = count
        if count and count - 1 not in self._empty:
            self._solid(count - 1)

    def _solid(self, place: int) -> bytes:
        """A record that has a key, unless the file was emptied just before we wrote behind its end."""
        record = read_record(self._fd, place)
        if not record[0]:
            raise EmptiedError
        return record


def _open(path: str, flags: int) -> tuple[int, os.stat_result]:
    try:
        fd = os.open(path, flags | _FLAGS, FILE_MODE)
    except BlockingIOError as problem:
        raise LockedError("the pool file is in use by another program") from problem
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise EffectError(f"{path}: not a regular file", reason=Reason.POOL_DAMAGED)
    return fd, status


def _beside(path: str) -> str:
    return f"{path}.new"


def _runs(count: int, drop: set[int]) -> Iterator[tuple[int, int]]:
    """First place, and the one behind the last, of what stays together."""
    first = 0
    for one in [*sorted(drop), count]:
        if one > first:
            yield first, one
        first = one + 1


def _write(fd: int, data: bytes, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done
