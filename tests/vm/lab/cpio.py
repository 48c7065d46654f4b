# SPDX-License-Identifier: Apache-2.0
"""Write a directory as a cpio archive (newc), the format of an initramfs: no cpio program is needed."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO


def write_newc(root: Path, out: IO[bytes]) -> None:
    """Directories, files and links under ``root``, owned by root, in sorted order, then the trailer."""
    paths = sorted(root.rglob("*"))
    for inode, path in enumerate(paths, 1):
        info = path.lstat()
        if stat.S_ISLNK(info.st_mode):
            data = os.fsencode(os.readlink(path))
        elif stat.S_ISREG(info.st_mode):
            data = path.read_bytes()
        elif stat.S_ISDIR(info.st_mode):
            data = b""
        else:
            raise ValueError(f"{path}: only directories, files and links go into the archive")
        _entry(out, path.relative_to(root).as_posix(), data, info.st_mode, inode)
    _entry(out, "TRAILER!!!", b"", 0, 0)


def _entry(out: IO[bytes], name: str, data: bytes, mode: int, inode: int) -> None:
    raw = os.fsencode(name) + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device (2), rdev (2), length of the name, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % f for f in fields) + raw
    out.write(head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4))
