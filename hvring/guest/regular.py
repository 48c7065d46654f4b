# SPDX-License-Identifier: Apache-2.0
"""Reading other programs' files: nothing in their place holds anybody up, and none fills the memory."""

from __future__ import annotations

import errno
import os
import stat
from typing import Final

#: Bytes of a file at most; nothing that is read here comes near it, but for logs of leases.
LARGEST: Final = 1 << 20


def read_regular(path: str | os.PathLike[str], limit: int = LARGEST, *, last: bool = False) -> bytes:
    """The first bytes of a regular file, or its ``last`` ones; raises OSError, EINVAL for a file of another kind.

    Directories of services belong to their users, and who opens a FIFO or a device there could wait for ever.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
        at = max(0, found.st_size - limit) if last else 0
        pieces = []
        while limit and (piece := os.pread(descriptor, limit, at)):
            pieces.append(piece)
            at, limit = at + len(piece), limit - len(piece)
        return b"".join(pieces)
    finally:
        os.close(descriptor)


def read_text(path: str | os.PathLike[str]) -> str:
    """What the kernel says in a file of /proc or /sys; "" if it does not."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def main(path: str) -> None:
    """A program that may hang in place of the agent: says when the file was written, and its first words."""
    try:
        text = read_regular(path, 64).decode("ascii", "replace")
        print(f"{os.stat(path).st_mtime:.3f}", " ".join(text.split()))
    except OSError as error:
        raise SystemExit(error.strerror or str(error)) from None
