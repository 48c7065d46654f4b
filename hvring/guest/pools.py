# SPDX-License-Identifier: Apache-2.0
"""Key-value pools in the files of Linux's in-tree daemon, shared with other programs (PROTOCOL §4.4.5).

A file is an array of 2560-byte records: 512 bytes of key, 2048 of value, UTF-8, padded with NULs.
Records are changed in place, so that the file always consists of whole old and new records and the
locks that other programs hold stay valid. Nothing is forced to the disk, as in Linux.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from hvring.errors import EffectError
from hvring.guest import network
from hvring.guest.identity import Identity
from hvring.guest.locks import locked
from hvring.guest.network import IpInfo

DIRECTORY: Final = "/var/lib/hyperv"
KEY_SIZE: Final = 512
VALUE_SIZE: Final = 2048
RECORD_SIZE: Final = KEY_SIZE + VALUE_SIZE
POOLS: Final = range(5)

#: Enough for every known use, and a bound on what a host can make this machine store (40 MiB).
MAX_RECORDS: Final = 16384

DIRECTORY_MODE: Final = 0o755
FILE_MODE: Final = 0o644

#: What the host is told (PROTOCOL §3.3).
FAIL: Final = 0x80004005
DISK_FULL: Final = 0x80070070

#: The kernel's time stamps of files lag behind the clock by less than this, in nanoseconds.
_STAMP_GRAIN: Final = 50_000_000
#: The same where the file system keeps whole seconds only.
_COARSE_GRAIN: Final = 2_000_000_000


class KvpStore(Protocol):
    """What the data-exchange service needs. Every method may raise EffectError."""

    def get(self, pool: int, key: str) -> str | None:
        """The value, or None if there is no such key."""
        ...

    def set(self, pool: int, key: str, value: str) -> None:
        """Add or replace a value."""
        ...

    def delete(self, pool: int, key: str) -> bool:
        """Remove a key; False if it was not there."""
        ...

    def record(self, pool: int, index: int) -> tuple[str, str] | None:
        """Key and value at a place in the pool, or None past the end."""
        ...

    def automatic(self) -> Sequence[tuple[str, str]]:
        """The keys of the AUTO pool, made up on demand."""
        ...

    def ip_info(self, mac: str) -> IpInfo | None:
        """What is known of the adapter with this MAC address."""
        ...

    def adapter(self, guid: str) -> bool:
        """Whether there is an adapter with this instance GUID."""
        ...


class PoolLimitError(EffectError, ValueError):
    """A key or value that a record cannot hold."""


class Pool:
    """One pool file; a missing one is an empty pool. Safe to use from several threads and processes.

    Of records with the same key the first counts. Text that is not UTF-8 (only other programs write it) is
    read with replacement characters. Every method raises EffectError when the file cannot be used, and of it
    EffectBusyError when another program keeps it locked.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, patience: float = 2.0, max_records: int = MAX_RECORDS
    ) -> None:
        """``patience``: seconds to wait for other programs' locks; ``max_records``: set() stops there."""
        self.path = os.fspath(path)
        self._patience = patience
        self._max_records = max_records
        self._known = _NOTHING

    def __len__(self) -> int:
        return len(self._look())

    def get(self, key: str) -> str | None:
        """The value of ``key``, or None."""
        wanted = _field(key, KEY_SIZE, "key")
        now = self._look()
        place = now.places.get(wanted)
        return None if place is None else now.record(place)[1]

    def record(self, index: int) -> tuple[str, str] | None:
        """Key and value of record ``index``, or None past the end."""
        now = self._look()
        return now.record(index) if 0 <= index < len(now) else None

    def items(self) -> list[tuple[str, str]]:
        """All keys and values in the order of the file."""
        now = self._look()
        return [now.record(place) for place in range(len(now))]

    def set(self, key: str, value: str) -> None:
        """Replace the value of ``key`` in place, or append a record. Also raises PoolLimitError."""
        wanted = _field(key, KEY_SIZE, "key")
        record = wanted.ljust(KEY_SIZE, b"\0") + _field(value, VALUE_SIZE, "value").ljust(VALUE_SIZE, b"\0")
        with self._writing() as (fd, now):
            place = now.places.get(wanted, len(now))
            if place >= self._max_records:
                raise PoolLimitError(f"{self.path} is full: {len(now)} records", DISK_FULL)
            start = place * RECORD_SIZE
            _write(fd, record, start)
            now.image[start : start + RECORD_SIZE] = record
            now.places.setdefault(wanted, place)
            self._remember(fd, now)

    def delete(self, key: str) -> bool:
        """Remove the first record of ``key``; the ones behind it move up. False if it is not there."""
        if self.get(key) is None:
            return False
        wanted = _field(key, KEY_SIZE, "key")
        with self._writing() as (fd, now):
            place = now.places.get(wanted)
            if place is None:
                return False
            offset = place * RECORD_SIZE
            image = now.image[:offset] + now.image[offset + RECORD_SIZE :]
            _write(fd, image[offset:], offset)
            os.ftruncate(fd, len(image))
            self._remember(fd, _Snapshot(now.stamp, False, image, _index(image)))
            return True

    def create(self) -> None:
        """Make the file if it is missing."""
        with self._writing():
            pass

    def _look(self) -> _Snapshot:
        """The content now, without opening the file if it surely has not changed."""
        with self._explained():
            try:
                known = self._known
                if known.is_settled and _stamp(os.stat(self.path)) == known.stamp:
                    return known
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._known = _NOTHING
                return _NOTHING
            try:
                with locked(fd, exclusive=False, patience=self._patience):
                    return self._load(fd)
            finally:
                os.close(fd)

    @contextmanager
    def _writing(self) -> Iterator[tuple[int, _Snapshot]]:
        """The file locked, its content as it is now, a torn record at its end cut off."""
        with self._explained():
            while True:
                fd = self._open_or_create()
                try:
                    with locked(fd, exclusive=True, patience=self._patience):
                        if not _is_at(self.path, fd):
                            continue  # replaced or removed while we waited for the lock
                        now = self._load(fd)
                        if now.stamp.size != len(now.image):
                            os.ftruncate(fd, len(now.image))
                        self._known = _NOTHING  # unless the change works, the next look reads the file
                        yield fd, now
                        return
                finally:
                    os.close(fd)

    def _open_or_create(self) -> int:
        while True:
            try:
                return os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except FileNotFoundError:
                pass
            try:
                fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL, FILE_MODE)
            except FileExistsError:
                if os.path.islink(self.path):
                    raise  # it leads nowhere: the next round would find the same
                continue
            os.fchmod(fd, FILE_MODE)  # whatever the umask; an older file keeps the mode its owner chose
            return fd

    def _load(self, fd: int) -> _Snapshot:
        """What the locked file holds; read again only if that is not surely known."""
        before = self._known
        status = os.fstat(fd)
        stamp = _stamp(status)
        if before.is_settled and stamp == before.stamp:
            return before
        image = _read(fd, status.st_size - status.st_size % RECORD_SIZE)
        places = before.places
        if image and image == before.image:
            image = before.image  # both go on together
        else:
            places = _index(image)
        now = self._known = _Snapshot(stamp, _is_settled(stamp), image, places)
        return now

    def _remember(self, fd: int, now: _Snapshot) -> None:
        """Know the content of the locked file, that was just written, without reading it.

        The next change by anybody must show in the time stamp, also when it comes in the same tick of the kernel's
        clock: so this change gets a stamp that lies before that tick, and that no other change has.
        """
        status = os.fstat(fd)
        try:
            os.utime(fd, ns=(status.st_atime_ns, time.time_ns() - _STAMP_GRAIN))
        except PermissionError:
            return  # we may write the file but do not own it: the next look reads it
        stamp = _stamp(os.fstat(fd))
        self._known = _Snapshot(stamp, _is_settled(stamp), now.image, now.places)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as problem:
            full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
            raise EffectError(f"{self.path}: {problem.strerror}", DISK_FULL if full else FAIL) from problem


class PoolStore:
    """The five pools of a directory, and what is made up on demand: a :class:`KvpStore`."""

    def __init__(
        self,
        directory: str | os.PathLike[str] = DIRECTORY,
        *,
        identity: Identity | None = None,
        patience: float = 2.0,
    ) -> None:
        """``patience``: seconds to wait for other programs' locks; 0: EffectBusyError at once."""
        self.directory = os.fspath(directory)
        paths = [os.path.join(self.directory, f".kvp_pool_{n}") for n in POOLS]
        self.pools = tuple(Pool(path, patience=patience) for path in paths)
        self._identity = identity or Identity()

    def create(self) -> None:
        """Make the directory and the five files where they are missing; raises EffectError."""
        self._make_directory()
        for pool in self.pools:
            pool.create()

    def get(self, pool: int, key: str) -> str | None:
        """The value, or None if there is no such key."""
        return self._pool(pool).get(key)

    def set(self, pool: int, key: str, value: str) -> None:
        """Add or replace a value."""
        self._make_directory()
        self._pool(pool).set(key, value)

    def delete(self, pool: int, key: str) -> bool:
        """Remove a key; False if it was not there."""
        return self._pool(pool).delete(key)

    def record(self, pool: int, index: int) -> tuple[str, str] | None:
        """Key and value at a place in the pool, or None past the end."""
        return self._pool(pool).record(index)

    def automatic(self) -> Sequence[tuple[str, str]]:
        """The ten keys of the AUTO pool (PROTOCOL §4.4.4)."""
        return self._identity.automatic()

    def ip_info(self, mac: str) -> IpInfo | None:
        """What is known of the adapter with this MAC address."""
        return network.ip_info(mac)

    def adapter(self, guid: str) -> bool:
        """Whether there is an adapter with this instance GUID."""
        return network.adapter_exists(guid)

    def _pool(self, number: int) -> Pool:
        if number not in POOLS:
            raise EffectError(f"there is no pool {number}")
        return self.pools[number]

    def _make_directory(self) -> None:
        if os.path.isdir(self.directory):
            return
        try:
            os.makedirs(self.directory, exist_ok=True)
            os.chmod(self.directory, DIRECTORY_MODE)
        except OSError as problem:
            raise EffectError(f"{self.directory}: {problem.strerror}") from problem


class _Stamp(NamedTuple):
    """What tells one state of a file from another."""

    device: int
    inode: int
    size: int
    modified: int  # content, as programs may claim; ns
    changed: int  # anything, as the kernel knows; ns


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """One state of a pool file; ``image`` holds whole records only.

    A change by this process goes on with the same image and index, so that it costs one record and not the file:
    a reader in another thread finds whole records, old or new, as it would in the file.
    """

    stamp: _Stamp
    is_settled: bool  # whether any later change shows in the stamp
    image: bytearray
    places: dict[bytes, int]  # the first record of each key

    def __len__(self) -> int:
        return len(self.image) // RECORD_SIZE

    def record(self, place: int) -> tuple[str, str]:
        start = place * RECORD_SIZE
        record = bytes(self.image[start : start + RECORD_SIZE])
        return _text(record[:KEY_SIZE]), _text(record[KEY_SIZE:])


_NOTHING: Final = _Snapshot(_Stamp(0, 0, 0, 0, 0), False, bytearray(), {})


def _field(text: str, size: int, what: str) -> bytes:
    """UTF-8 that fits a field together with its NUL."""
    try:
        raw = text.encode()
    except UnicodeEncodeError as problem:
        raise PoolLimitError(f"the {what} is not proper Unicode") from problem
    if b"\0" in raw:
        raise PoolLimitError(f"the {what} contains a NUL")
    if len(raw) >= size:
        raise PoolLimitError(f"the {what} is {len(raw)} bytes long, {size - 1} fit")
    return raw


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode(errors="replace")


def _index(image: bytearray) -> dict[bytes, int]:
    places: dict[bytes, int] = {}
    for place, start in enumerate(range(0, len(image), RECORD_SIZE)):
        places.setdefault(bytes(image[start : start + KEY_SIZE].partition(b"\0")[0]), place)
    return places


def _stamp(status: os.stat_result) -> _Stamp:
    return _Stamp(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_settled(stamp: _Stamp) -> bool:
    # A file changed a moment ago may change again under the same time stamp.
    grain = _STAMP_GRAIN if stamp.modified % 10**9 else _COARSE_GRAIN
    return time.time_ns() - stamp.modified > grain


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _read(fd: int, size: int) -> bytearray:
    image = bytearray(size)
    done = 0
    with memoryview(image) as room:
        while done < size:
            came = os.preadv(fd, [room[done:]], done)
            if not came:
                break  # shortened by a program that takes no lock
            done += came
    del image[done - done % RECORD_SIZE :]
    return image


def _write(fd: int, data: bytes | bytearray, offset: int) -> None:
    rest = memoryview(data)
    while rest:
        done = os.pwrite(fd, rest, offset)
        rest, offset = rest[done:], offset + done
