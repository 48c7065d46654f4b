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
from dataclasses import dataclass, field
from typing import Final

from hvring.guest import folders, leftovers
from hvring.guest.digest import Digest

FILE_MODE: Final = 0o640

#: Bytes after which the disk is told to begin with them: the fsync at the end is then a matter of the last few.
WRITE_OUT: Final = 4 << 20

_READ_BACK: Final = (
    5.0  # seconds for what has to be read again for the SHA-256: it is no reason for a copy to fail
)

_NO_NAMELESS_FILES: Final = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT, errno.ENOSYS)
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_NO_FSYNC_OF_FOLDERS: Final = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
_ACL: Final = "system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Wish:
    """Where a file shall go, and how: ``below`` are the components below the allowed directory ``root``.

    ``may_be_file``: the last of them is the file itself, unless there is a directory of that name.
    ``mode``, ``owner`` (uid and gid): None is that of the file that is replaced, or else :data:`FILE_MODE` and ours.
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
    sync: bool = True
    sha256: bool = False


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
    digest: Digest | None = None
    _waiting: int = 0  # bytes that the disk was not told about,
    _lowest: int = 1 << 63  # and between which offsets they lie
    _highest: int = 0
    _folders: list[int] = field(default_factory=list)

    @classmethod
    def begin(cls, wish: Wish) -> Part:
        """Reach the directory, check what can be checked now, and make the file.

        FileExistsError, or ENOSPC for a ``size`` that does not fit, are among what it raises.
        """
        made: list[folders.Made] = []
        try:
            folder, below, name = _reach(wish, made)
        except BaseException:
            _unmake(made)
            raise
        self = cls(wish, "/".join((wish.root.rstrip("/"), *below, name)), folder, name, made)
        try:
            exists = self._check_target()
            folders.check_flags(folder, to_remove=exists)
            _check_space(folder, wish.size)
            self._create()
            self.digest = Digest() if wish.sha256 else None
        except BaseException:
            self.abort()
            raise
        return self

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write all of ``data``; what was written before an error stays."""
        done = os.pwrite(self.fd, data, offset)
        while done < len(data):
            done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
        if self.digest is not None:
            self.digest.add(offset, data)
        if self.wish.sync:
            self._begin_write_out(offset, len(data))

    def prepare(self, size: int) -> str:
        """All but the name: owner, mode, and every byte on the disk.  EIO if there are not ``size`` of them.

        The SHA-256 if it was wished for, and did not take too long.
        """
        found = os.fstat(self.fd).st_size
        if found != size:
            raise OSError(errno.EIO, f"{found} bytes are in the file, {size} were written")
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
        self.part = None if self.part is None or not self._is_at(self.part) else self.part

    def settle(self) -> str:
        """The name on the disk, too; what is wrong with that, in words, or nothing."""
        trouble = ""
        if self.wish.sync:
            for folder in (self.folder, *(made.parent for made in self.made)):
                try:
                    os.fsync(folder)
                except OSError as problem:
                    if problem.errno not in _NO_FSYNC_OF_FOLDERS:
                        trouble = f"its name may not outlive a power failure: {problem.strerror}"
        return trouble

    def withdraw(self) -> None:
        """Nobody heard that it is there: take the name back, unless another file has lost it."""
        if self.is_named and not self.is_replacement and self._has_name():
            self.is_named = False
            try:
                os.unlink(self.name, dir_fd=self.folder)
            except OSError:
                self.is_named = True

    def abort(self) -> None:
        """The end.  Before :meth:`publish`, all that was made is removed; raises nothing; harmless later."""
        try:
            if self.part is not None:
                os.unlink(self.part, dir_fd=self.folder)
        except OSError:
            pass  # the next one who copies into this directory removes it
        self.part = None
        for fd in (self.fd, self.folder):
            if fd >= 0:
                _close(fd)
        self.fd = self.folder = -1
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

    def _begin_write_out(self, offset: int, size: int) -> None:
        """Now and then, have the kernel begin to write out what came; nothing waits for it."""
        self._waiting += size
        self._lowest = min(self._lowest, offset)
        self._highest = max(self._highest, offset + size)
        if self._waiting < WRITE_OUT:
            return
        try:
            os.posix_fadvise(self.fd, self._lowest, self._highest - self._lowest, os.POSIX_FADV_DONTNEED)
        except OSError:
            pass  # a file system that takes no advice: fsync will do it all
        self._waiting, self._lowest, self._highest = 0, 1 << 63, 0

    def _dress(self) -> None:
        """Owner and mode: as configured, or as the file has them that is replaced.

        Nobody may get to read the new contents who could not read the old ones: what cannot be kept is taken away.
        """
        old = self._replaced()
        mode = self.wish.mode
        if mode is None:
            # A host's bytes do not inherit the right to run as somebody else.
            mode = FILE_MODE if old is None else stat.S_IMODE(old.st_mode) & 0o777
        owner = self.wish.owner or (None if old is None else (old.st_uid, old.st_gid))
        attributes = _Attributes() if old is None or self.wish.mode is not None else _Attributes.of(self, old)
        if owner is not None:
            status = _give_to(self.fd, owner)
            if self.wish.owner is not None and (status.st_uid, status.st_gid) != owner:
                raise PermissionError(errno.EPERM, f"the file cannot be given to {owner[0]}:{owner[1]}")
            if status.st_gid != owner[1]:
                mode = _without_group(mode)
        if not attributes.are_known:
            mode = _without_group(mode)
        os.fchmod(self.fd, mode)
        for name, value in attributes.values.items():
            try:
                os.setxattr(self.fd, name, value)
            except OSError:
                if name == _ACL:  # the group's bits of the mode were those of the list
                    os.fchmod(self.fd, _without_group(mode))

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
            self.is_replacement = True
            os.rename(self.part, self.name, src_dir_fd=self.folder, dst_dir_fd=self.folder)
        else:
            folders.rename_noreplace(self.folder, self.part, self.name)

    def _has_name(self) -> bool:
        return self._is_at(self.name)

    def _is_at(self, name: str) -> bool:
        try:
            found, own = os.stat(name, dir_fd=self.folder, follow_symlinks=False), os.fstat(self.fd)
        except OSError:
            return False
        return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


@dataclass(slots=True)
class _Attributes:
    """What a file has beside owner and mode, as far as a copy may have it."""

    values: dict[str, bytes] = field(default_factory=dict)
    are_known: bool = True

    @classmethod
    def of(cls, part: Part, old: os.stat_result) -> _Attributes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(part.name, flags, dir_fd=part.folder)
        except OSError:
            return cls(are_known=False)
        self = cls()
        try:
            if os.fstat(fd).st_ino != old.st_ino:
                return cls(are_known=False)
            for name in os.listxattr(fd):
                if name in (_ACL, "security.selinux") or name.startswith("user."):
                    self.values[name] = os.getxattr(fd, name)
        except OSError as problem:
            self.are_known = problem.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
        finally:
            _close(fd)
        return self


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
        return folders.open_below(top, below, made if wish.create_path else None), below, name
    finally:
        os.close(top)


def _check_space(folder: int, size: int) -> None:
    try:
        space = os.fstatvfs(folder)
    except OSError:
        return
    # No blocks at all: a file system without a figure (ramfs, some in user space), not a full one.
    if space.f_blocks and size > space.f_bfree * (space.f_frsize or space.f_bsize):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unmake(made: list[folders.Made]) -> None:
    for directory in reversed(made):
        directory.remove()


def _give_to(fd: int, owner: tuple[int, int]) -> os.stat_result:
    """As far as that is allowed: the group even where the user cannot be given.  What came of it."""
    uid, gid = owner
    for attempt in ((uid, gid), (-1, gid)):
        status = os.fstat(fd)
        if (status.st_uid, status.st_gid) == owner:
            return status
        try:
            os.fchown(fd, *attempt)
        except OSError:
            pass
    return os.fstat(fd)


def _without_group(mode: int) -> int:
    """The group may do what everybody may, and no more."""
    return mode & ~0o070 | (mode & 0o007) << 3 & mode


def _by_descriptor(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _close(fd: int) -> None:
    try:
        os.close(fd)
    except OSError:
        pass  # it is closed all the same
