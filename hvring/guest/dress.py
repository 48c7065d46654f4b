# SPDX-License-Identifier: Apache-2.0
"""Owner, mode and attributes of a file that arrives: as configured, or as the file has them that it replaces."""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass, field
from typing import Final

FILE_MODE: Final = 0o640

_ACL: Final = "system.posix_acl_access"


def dress(
    fd: int,
    folder: int,
    name: str,
    old: os.stat_result | None,
    *,
    mode: int | None,
    owner: tuple[int, int] | None,
    umask: int | None,
) -> None:
    """Make the file ``fd`` what it will be once it is called ``name``.  Raises OSError.

    ``old``: of the file that it replaces.  Nobody may get to read the new contents who could not read the old ones:
    what cannot be kept is taken away.
    """
    attributes = _Attributes() if old is None or mode is not None else _Attributes.of(folder, name, old)
    if mode is None:
        # A host's bytes do not inherit the right to run as somebody else.
        mode = FILE_MODE if old is None else stat.S_IMODE(old.st_mode) & 0o777
    mode &= ~(umask or 0)
    wanted = owner or (None if old is None else (old.st_uid, old.st_gid))
    if wanted is not None:
        status = _give_to(fd, wanted)
        if owner is not None and (status.st_uid, status.st_gid) != owner:
            raise PermissionError(errno.EPERM, f"the file cannot be given to {owner[0]}:{owner[1]}")
        if status.st_gid != wanted[1]:
            mode = _without_group(mode)
    if not attributes.are_known:
        mode = _without_group(mode)
    os.fchmod(fd, mode)
    for attribute, value in attributes.values.items():
        if attribute == _ACL and umask:
            os.fchmod(fd, _without_group(mode))  # a list would say otherwise than the bits
            continue
        try:
            os.setxattr(fd, attribute, value)
        except OSError:
            if attribute == _ACL:  # the group's bits of the mode were those of the list
                os.fchmod(fd, _without_group(mode))


@dataclass(slots=True)
class _Attributes:
    """What a file has beside owner and mode, as far as a copy may have it."""

    values: dict[str, bytes] = field(default_factory=dict)
    are_known: bool = True

    @classmethod
    def of(cls, folder: int, name: str, old: os.stat_result) -> _Attributes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=folder)
        except OSError:
            return cls(are_known=False)
        self = cls()
        try:
            if os.fstat(fd).st_ino != old.st_ino:
                return cls(are_known=False)
            for attribute in os.listxattr(fd):
                if attribute in (_ACL, "security.selinux") or attribute.startswith("user."):
                    self.values[attribute] = os.getxattr(fd, attribute)
        except OSError as problem:
            self.are_known = problem.errno in (errno.EOPNOTSUPP, errno.ENOSYS)
        finally:
            try:
                os.close(fd)
            except OSError:
                pass  # it is closed all the same
        return self


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
