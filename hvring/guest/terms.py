# SPDX-License-Identifier: Apache-2.0
"""What files from a host must keep to below a directory: who owns them, how large they may be, what must stay free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: The number that is no user and no group: to the kernel it says "leave it".
NOBODY: Final = 2**32 - 1


@dataclass(frozen=True, slots=True)
class Terms:
    """Sizes in bytes; ValueError for what can be none.

    ``mode`` and ``owner`` (uid and gid) of the files; None: those of the file that is replaced, or else 0640 and this
    process's own.  ``umask``: bits that no file gets, nor a directory that is made for one; None: this process's, for
    directories only.  ``overwrite``, ``create_path``: whether the host may do that at all.  ``sync``: on the disk
    before the host is told; ``sha256``: whether each file's is made while it comes; ``allocate``: whether room for
    all of a file is taken when it begins.  ``max_size`` of one file, ``quota`` of all files below the directory;
    ``reserve`` and ``reserve_percent`` of the file system must stay free, whichever is more.
    """

    mode: int | None = None
    owner: tuple[int, int] | None = None
    umask: int | None = None
    overwrite: bool = True
    create_path: bool = True
    sync: bool = True
    sha256: bool = True
    allocate: bool = True
    max_size: int | None = None
    quota: int | None = None
    reserve: int = 0
    reserve_percent: float = 0.0

    def __post_init__(self) -> None:
        for bits, most in ((self.mode, 0o7777), (self.umask, 0o777)):
            if bits is not None and not 0 <= bits <= most:
                raise ValueError(f"{bits:o} is no mode from 0 to {most:o}")
        if self.owner is not None and not all(0 <= number < NOBODY for number in self.owner):
            raise ValueError(f"{self.owner} are no numbers of a user and a group")
        for size in (self.max_size, self.quota, self.reserve):
            if size is not None and not 0 <= size < 1 << 63:
                raise ValueError(f"no file and no directory has {size} bytes")
        if not 0 <= self.reserve_percent <= 100:
            raise ValueError(f"{self.reserve_percent:g} is no part of a hundred")
