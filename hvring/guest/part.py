# SPDX-License-Identifier: Apache-2.0
"""One file on its way in, on the disk: without a name, or under a temporary one, until it is whole.

What fails leaves the directory as it was: no file, no unfinished file, no directory that was made for it.
All this may wait for a file system for ever: it is called in a process that may (:mod:`hvring.guest.file_worker`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from hvring.guest import folders, leftovers
from hvring.guest.digest import Digest
from hvring.guest.dress import dress
from hvring.guest.room import Quota, Usage, allocate, check_space

#: Bytes after which it is looked what is still free, and the disk is told to begin with them: the fsync at the end is
#: then a matter of the last few.
WRITE_OUT: Final = 4 << 20

_READ_BACK: Final = (
    5.0  # seconds for what has to be read again for the SHA-256: it is no reason for a copy to fail
)

#: Of directories that are made, less the umask of this process.
DIRECTORY_MODE: Final = 0o755

_NO_NAMELESS_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS)
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_FSYNC_OF_FOLDERS: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a file shall go, and how: ``below`` are the components below the allowed directory ``root``.

    ``may_be_file``: the last of them is the file itself, unless there is a directory of that name.
    ``counted``: the directory whose ``quota`` counts, which is the one so many components below ``root``, or a path.
    The rest as in :class:`~hvring.guest.terms.Terms`.
    """

    root: str
    below: Sequence[str]
    name: str
    overwrite: bool = False
    create_path: bool = False
    may_be_file: bool = False
    size: int = 0
    mode: int | None = None
    owner: tuple[int, int] | None = None
    umask: int | None = None
    sync: bool = True
    sha256: bool = False
    allocate: bool = False
    quota: int | None = None
    counted: int | str = 0
    reserve: int = 0
    reserve_percent: float = 0.0


@dataclass(slots=True)
class Part:
    """A file that is being written; its lock shows that it is no leftover.  Every method raises OSError."""

    wish: Wish
    path: str
    folder: int
    name: str
    made: list[folders.Made]
    fd: int = -1
    part: str | None = None  # its temporary name, where it has one
    is_named: bool = False
    is_replacement: bool = False
    is_exchanged: bool = False  # what has the temporary name is the file that was replaced,
    old: int = -1  # and this a descriptor of it, whose lock keeps others from taking it for a leftover
    old_size: int = 0
    digest: Digest | None = None
    quota: Quota | None = None
    _size: int = 0
    _waiting: int = 0  # bytes that the disk was not told about,
    _lowest: int = 1 << 63  # and between which offsets they lie
    _highest: int = 0

    @classmethod
    def begin(cls, wish: Wish, usage: Usage | None = None) -> Part:
        """Reach the directory, check what can be checked now, make the file, and take room for it.

        FileExistsError, ENOSPC for a ``size`` that does not fit, and NoRoomError are among what it raises.
        """
        made: list[folders.Made] = []
        before = None if wish.umask is None else os.umask(wish.umask)
        try:
            folder, below, name = _reach(wish, made)
        except BaseException:
            _unmake(made)
            raise
        finally:
            if before is not None:
                os.umask(before)
        self = cls(wish, "/".join((wish.root.rstrip("/"), *below, name)), folder, name, made)
        try:
            exists = self._check_target()
            folders.check_flags(folder, to_remove=exists)
            self._check_room(wish.size)
            if wish.quota is not None:
                self.quota = _quota(wish, usage or Usage(), self.old_size)
                self.quota.check(wish.size)
            for directory in made:
                directory.give_to(wish.owner)
            self._create()
            if wish.allocate and wish.size:
                allocate(self.fd, wish.size)
            self.digest = Digest() if wish.sha256 else None
        except BaseException:
            self.abort()
            raise
        return self

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; what was written before an error stays."""
        if self.quota is not None:
            self.quota.check(offset + len(data))
        done = os.pwrite(self.fd, data, offset)
        while done < len(data):
            done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        if self.digest is not None:
            self.digest.add(offset, data)
        self._waiting += len(data)
        self._lowest = min(self._lowest, offset)
        self._highest = max(self._highest, offset + len(data))
        if self._waiting >= WRITE_OUT:
            self._check_room(0)
            self._begin_write_out()

    def prepare(self, size: int) -> str:
        """All but the name: owner, mode, and every byte on the disk.  EIO if there are not ``size`` of them.

        The SHA-256 if it was wished for, and did not take too long.
        """
        found = os.fstat(self.fd).st_size
        if found != size:
            raise OSError(errno.EIO, f"{found} bytes are in the file, {size} were written")
        self._size = size
        self._dress()
        if self.wish.sync:
            os.fsync(self.fd)
        return "" if self.digest is None else self.digest.finish(self.fd, size, _READ_BACK)

    def publish(self) -> None:
        """Give the file its name, or raise and leave what is there as it is."""
        try:
            self._give_name()
        except OSError:
            # A server may do what it is asked and lose the answer; what counts is what is there.
            if not self._has_name():
                raise
        self.is_named = True
        if self.part is not None and not self.is_exchanged and not self._is_at(self.part):
            self.part = None

    def settle(self) -> str:
        """The name on the disk, too, or it is taken back and OSError raised.

        What is wrong with that nevertheless, in words, where it cannot be taken back; or nothing.
        """
        if not self.wish.sync:
            return ""
        for folder in (self.folder, *(made.parent for made in self.made)):
            try:
                os.fsync(folder)
            except OSError as problem:
                if problem.errno in _NO_FSYNC_OF_FOLDERS:
                    continue
                self.withdraw()
                if not self.is_named:
                    raise
                return f"its name may not outlive a power failure: {problem.strerror}"
        return ""

    def withdraw(self) -> None:
        """Nobody heard that it is there: as it was before, unless somebody else has changed that."""
        if not self.is_named or not self._has_name():
            return
        try:
            if self.is_exchanged and self.part is not None:
                folders.exchange(self.folder, self.part, self.name)
            elif self.is_replacement:
                return
            else:
                os.unlink(self.name, dir_fd=self.folder)
        except OSError:
            return
        self.is_named = self.is_exchanged = False

    def keep(self) -> None:
        """Who wanted it has heard that it is there: what it replaced goes."""
        if self.is_named and self.part is not None:
            try:
                os.unlink(self.part, dir_fd=self.folder)
                self.part = None
            except OSError:
                pass  # abort tries it again
        if self.is_named and self.quota is not None:
            self.quota.take(self._size - self.old_size)

    def abort(self) -> None:
        """The end.  Before :meth:`publish`, all that was made is removed; raises nothing; harmless later."""
        try:
            if self.part is not None:
                os.unlink(self.part, dir_fd=self.folder)
        except OSError:
            pass  # the next one who copies into this directory removes it
        self.part = None
        for fd in (self.fd, self.old, self.folder):
            if fd >= 0:
                _close(fd)
        self.fd = self.old = self.folder = -1
        if self.is_named:
            for made in self.made:
                made.keep()
        else:
            _unmake(self.made)
        self.made = []

    end = abort

    def _check_target(self) -> bool:
        """Whether there is something that will be replaced."""
        try:
            status = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not self.wish.overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        self.old_size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        return True

    def _create(self) -> None:
        """A file without a name, which nothing can leave behind; where there are none, one with a temporary name."""
        try:
            self.fd = os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self.folder)
            if os.path.exists(_by_descriptor(self.fd)):
                return
            _close(self.fd)
            self.fd = -1
        except OSError as problem:
            if problem.errno not in _NO_NAMELESS_FILES:
                raise
        folders.check_flags(self.folder, to_remove=True)
        while True:
            name = leftovers.temporary_name()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(name, flags, 0o600, dir_fd=self.folder)
            self.part = name
            self._lock()
            if os.fstat(self.fd).st_nlink:
                return
            _close(self.fd)  # another receiver took it for a leftover before it was locked
            self.fd, self.part = -1, None

    def _lock(self) -> None:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX)
        except OSError as problem:
            if problem.errno not in _NO_LOCKS:  # where nobody can lock, nobody takes a file for a leftover
                raise

    def _begin_write_out(self) -> None:
        """Have the kernel begin to write out what came; nothing waits for it."""
        try:
            if self.wish.sync:
                os.posix_fadvise(self.fd, self._lowest, self._highest - self._lowest, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # a file system that takes no advice: fsync will do it all
        self._waiting, self._lowest, self._highest = 0, 1 << 63, 0

    def _check_room(self, coming: int) -> None:
        check_space(self.folder, coming, self.wish.reserve, self.wish.reserve_percent)

    def _dress(self) -> None:
        wish = self.wish
        dress(
            self.fd,
            self.folder,
            self.name,
            self._replaced(),
            mode=wish.mode,
            owner=wish.owner,
            umask=wish.umask,
        )

    def _replaced(self) -> os.stat_result | None:
        try:
            status = os.stat(self.name, dir_fd=self.folder, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return status if self.wish.overwrite and stat.S_ISREG(status.st_mode) else None

    def _give_name(self) -> None:
        if self.part is None:
            try:
                os.link(_by_descriptor(self.fd), self.name, dst_dir_fd=self.folder, follow_symlinks=True)
                return
            except FileExistsError:
                if not self.wish.overwrite:
                    raise
            folders.check_flags(self.folder, to_remove=True)
            self._lock()
            name = leftovers.temporary_name()
            os.link(_by_descriptor(self.fd), name, dst_dir_fd=self.folder, follow_symlinks=True)
            self.part = name
        if self.wish.overwrite:
            self._replace(self.part)
        else:
            folders.rename_noreplace(self.folder, self.part, self.name)

    def _replace(self, part: str) -> None:
        """Change places with the old file, which goes when nobody will want it back; else take its name from it."""
        self.old = leftovers.hold(self.folder, self.name)
        if self.old >= 0:
            self.is_exchanged = True
            try:
                folders.exchange(self.folder, part, self.name)
                self._refuse_directory(part)
                return
            except OSError as problem:
                if self._has_name():
                    raise
                self.is_exchanged = False
                if problem.errno not in (*folders.NOT_HERE, errno.ENOENT):
                    raise
        try:
            folders.rename_noreplace(self.folder, part, self.name)
            return  # there was nothing to replace, and it can be taken back
        except OSError:
            pass
        self.is_replacement = True
        os.rename(part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def _refuse_directory(self, part: str) -> None:
        """Somebody was fast, and what changed places is no file: put it back."""
        if stat.S_ISDIR(os.stat(part, dir_fd=self.folder, follow_symlinks=False).st_mode):
            folders.exchange(self.folder, part, self.name)
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))

    def _has_name(self) -> bool:
        return self._is_at(self.name)

    def _is_at(self, name: str) -> bool:
        try:
            found, own = os.stat(name, dir_fd=self.folder, follow_symlinks=False), os.fstat(self.fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def _reach(wish: Wish, made: list[folders.Made]) -> tuple[int, Sequence[str], str]:
    """The directory that the file goes into, its components, and the file's name in it."""
    top = os.open(wish.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if wish.may_be_file:
            try:
                return folders.open_below(top, wish.below), wish.below, wish.name
            except OSError as problem:
                if problem.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    raise
            below, name = wish.below[:-1], wish.below[-1]
        else:
            below, name = wish.below, wish.name
        mode = DIRECTORY_MODE if wish.umask is None else 0o777
        return folders.open_below(top, below, made if wish.create_path else None, mode), below, name
    finally:
        os.close(top)


def _quota(wish: Wish, usage: Usage, replaced: int) -> Quota:
    """What the file may take; there is nothing yet in a directory that is not there yet."""
    assert wish.quota is not None
    if isinstance(wish.counted, str):
        folder = os.open(wish.counted, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    else:
        top = os.open(wish.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            folder = folders.open_below(top, wish.below[: wish.counted])
        finally:
            os.close(top)
    try:
        return usage.quota(folder, wish.quota, replaced)
    finally:
        os.close(folder)


def _unmake(made: list[folders.Made]) -> None:
    for directory in reversed(made):
        directory.remove()


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # it is closed all the same
